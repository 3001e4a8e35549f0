"""A real server for everybody's tests: ``nova up`` as a process of its own, started once for the whole run."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from nova.client import Client

READY_LIMIT_S = 180
LOOPBACK = "127.0.0.0/8"
"""What servers under test may be told to connect to: brokers and databases of the same test."""
STOP_LIMIT_S = 60
_PORTS = random.SystemRandom()
NOVA = str(Path(sys.executable).parent / "nova")
ORBIT = str(Path(sys.executable).parent / "orbit")


@dataclass(frozen=True)
class NovaServer:
    url: str
    data_dir: Path
    pid: int
    log: Path

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def client(self, **options: Any) -> Client:
        return Client(self.url, **options)


def free_port() -> int:
    """A port that nobody listens on, and that the kernel gives no connection before it is bound."""
    while True:
        port = _PORTS.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def clean_environment() -> dict[str, str]:
    """The environment without settings that would reach the server or the command line."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("NOVA_", "ZENITH_"))}


class RunningNova:
    """``nova up`` on a directory; use as a context manager. ``more`` are further flags."""

    def __init__(self, data_dir: Path, *more: str, port: int | None = None) -> None:
        self.port = port or free_port()
        self.data_dir = data_dir
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = data_dir.with_suffix(".log")
        self._argv = [NOVA, "up", "--http", f"127.0.0.1:{self.port}", "--data-dir", str(data_dir)]
        self._argv += ["--log-format", "json", *more]

    def __enter__(self) -> "RunningNova":
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=clean_environment() | {"NOVA_EGRESS_ALLOW": LOOPBACK},
            )
        try:
            self._wait_ready()
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end; its exit code. Safe to call twice."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"nova did not end within {STOP_LIMIT_S} s:\n{self.tail()}") from None
        return self.process.returncode

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise AssertionError(f"nova ended with {self.process.returncode}:\n{self.tail()}")
            try:
                if httpx.get(self.url + "/health/ready", trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"nova was not ready within {READY_LIMIT_S} s:\n{self.tail()}")


@pytest.fixture(scope="session")
def nova_up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NovaServer]:
    """One running ``nova up``, shared by every test that asks; leave nothing behind in it that others could trip over."""
    with RunningNova(tmp_path_factory.mktemp("nova") / "data") as running:
        yield NovaServer(running.url, running.data_dir, running.process.pid, running.log)


@pytest.fixture(scope="session", params=["nova up", "six planes"])
def nova_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NovaServer]:
    """The platform in both of its shapes: whoever asks runs twice, and must find the same behaviour."""
    if request.param == "nova up":
        yield request.getfixturevalue("nova_up")
        return
    from tests.e2e.planes import SixPlanes

    with SixPlanes(tmp_path_factory.mktemp("planes") / "data") as planes:
        yield NovaServer(planes.url, planes.data_dir, planes.pid, planes.log)
