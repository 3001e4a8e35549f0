"""The six planes as processes of their own, for tests: started together, killed one by one, restarted in place."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.server import LOOPBACK, READY_LIMIT_S, STOP_LIMIT_S, clean_environment, free_port

BIN = Path(sys.executable).parent
NAMES = ("nova", "comet", "corona", "nebula", "aurora", "zenith")


@dataclass
class Plane:
    """One process. ``argv`` without the program's folder."""

    name: str
    argv: list[str]
    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    more: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    """predecessors that drain"""
    _log_from: int = 0

    def start(self, *flags: str) -> None:
        self._log_from = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [str(BIN / self.argv[0]), *self.argv[1:], *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=clean_environment(),
            )

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def succeed(self, *flags: str) -> None:
        """Start a successor beside the process that runs; whoever asks ends the predecessor, or waits for its end."""
        assert self.process is not None
        self.more.append(self.process)
        self.start(*flags)

    def predecessors_end(self) -> None:
        """Wait until every predecessor has drained and ended, each without an error."""
        for process in self.more:
            code = process.wait(STOP_LIMIT_S)
            assert code == 0, f"{self.name} ended with {code}:\n{self.tail()}"
        self.more.clear()

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def ready(self) -> bool:
        """Has the process that was started last said so?"""
        assert self.alive, f"{self.name} ended:\n{self.tail()}"
        return self.said("ready")

    def said(self, message: str, **fields: str) -> bool:
        """Is there such a record in the log since the last start?"""
        return any(record.get("msg") == message and fields.items() <= record.items() for record in self.records())

    def records(self) -> Iterator[Mapping[str, Any]]:
        """The log since the last start."""
        if not self.log.exists():
            return
        with self.log.open(errors="replace") as log:
            log.seek(self._log_from)
            for line in log:
                with contextlib.suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end; its exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise AssertionError(f"{self.name} did not end within {STOP_LIMIT_S} s:\n{self.tail()}") from None
        return self.process.returncode

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


class SixPlanes:
    """Six processes on one data directory; use as a context manager. ``comets``: how many of them. ``settings``: of all."""

    def __init__(self, data_dir: Path, *, comets: int = 1, settings: Mapping[str, object] | None = None) -> None:
        self.data_dir = data_dir
        logs = data_dir.with_suffix(".logs")
        logs.mkdir(parents=True, exist_ok=True)
        self.ports = {name: free_port() for name in NAMES}
        self.comet_ports = [self.ports["comet"], *(free_port() for _ in range(comets - 1))]
        self.url = f"http://127.0.0.1:{self.ports['zenith']}"
        at = {name: f"127.0.0.1:{port}" for name, port in self.ports.items()}
        grpc_addresses = ",".join(f"127.0.0.1:{port}" for port in self.comet_ports)
        nova_url = ["--nova-url", f"http://{at['nova']}"]
        common = ["--data-dir", str(data_dir), "--log-format", "json"]
        config = logs / "nova.json"
        config.write_text(json.dumps({"egress": {"allow": [LOOPBACK]}, **(settings or {})}))
        common += ["--config", str(config)]
        self._logs = logs
        argvs = {
            "nova": ["nova", "daemon", "--planes", "control", "--http", at["nova"]],
            "corona": ["corona", "daemon", "--comet-grpc", grpc_addresses, "--health-addr", at["corona"]],
            "nebula": ["nebula", "daemon", "--comet-grpc", grpc_addresses, "--health-addr", at["nebula"]],
            "aurora": ["aurora", "daemon", "--listen", at["aurora"]],
            "zenith": ["zenith", "serve", "--listen", at["zenith"], "--comet-grpc", grpc_addresses, *nova_url],
        }
        for number, port in enumerate(self.comet_ports):
            argvs[f"comet-{number}" if number else "comet"] = ["comet", "daemon", "--grpc", f"127.0.0.1:{port}"]
        self.planes = {name: Plane(name, argv + common, logs / f"{name}.log") for name, argv in argvs.items()}
        self.log = self.planes["comet"].log

    def __enter__(self) -> "SixPlanes":
        try:
            for plane in self.planes.values():
                plane.start()
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for name in ("zenith", *(n for n in self.planes if n != "zenith")):
            plane = self.planes[name]
            if plane.process is not None:
                with contextlib.suppress(ProcessLookupError):
                    plane.send(signal.SIGCONT)
                plane.stop()
            for predecessor in plane.more:
                predecessor.kill()
                predecessor.wait()

    def add(self, name: str, like: str) -> Plane:
        """One more process of a plane that exists, not started yet. It has a port of its own."""
        model = self.planes[like]
        port = self.ports[name] = free_port()
        argv = [part.replace(f":{self.ports[like]}", f":{port}") for part in model.argv]
        plane = self.planes[name] = Plane(name, argv, self._logs / f"{name}.log")
        return plane

    def remove(self, name: str) -> None:
        """Stop a process that :meth:`add` made, and forget it."""
        plane = self.planes.pop(name)
        if plane.process is not None:
            plane.stop()

    def health(self) -> Mapping[str, str]:
        """What zenith says of each plane."""
        answer = httpx.get(self.url + "/health", trust_env=False, timeout=60)
        said: dict[str, str] = answer.json()["planes"]
        return said

    def well(self) -> bool:
        """Does zenith say that everything works?"""
        try:
            return set(self.health().values()) == {"ok"}
        except (httpx.TransportError, ValueError, KeyError):
            return False

    def heal(self) -> None:
        """Start what is dead, let run what was stopped, and wait until all is well."""
        for plane in self.planes.values():
            if not plane.alive:
                plane.start()
            plane.send(signal.SIGCONT)
        deadline = time.monotonic() + READY_LIMIT_S
        while not (all(plane.ready for plane in self.planes.values()) and self.well()):
            assert time.monotonic() < deadline, f"not well within {READY_LIMIT_S} s:\n{self.planes['zenith'].tail()}"
            time.sleep(0.05)

    @property
    def pid(self) -> int:
        """Of the process that runs functions."""
        return self.planes["comet"].pid

    def wait_ready(self) -> None:
        """Until zenith says that calls are served and both workers are healthy."""
        deadline = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline:
            for plane in self.planes.values():
                if plane.process is not None and plane.process.poll() is not None:
                    raise AssertionError(f"{plane.name} ended with {plane.process.returncode}:\n{plane.tail()}")
            if self._zenith_ready() and all(self.healthy(name) for name in ("corona", "nebula")):
                return
            time.sleep(0.05)
        raise AssertionError(f"not ready within {READY_LIMIT_S} s:\n{self.planes['zenith'].tail()}")

    def _zenith_ready(self) -> bool:
        try:
            return httpx.get(self.url + "/health/ready", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    def healthy(self, name: str) -> bool:
        """Does a plane that speaks gRPC say that it serves?"""
        with grpc.insecure_channel(f"127.0.0.1:{self.ports[name]}") as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
