"""The six planes as processes of their own, for tests: started together, killed one by one, restarted in place."""

import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.e2e.server import READY_LIMIT_S, STOP_LIMIT_S, clean_environment, free_port

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

    def start(self, *flags: str) -> None:
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
    """Six processes on one data directory; use as a context manager. ``comets``: how many of them."""

    def __init__(self, data_dir: Path, *, comets: int = 1) -> None:
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
                plane.stop()

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
