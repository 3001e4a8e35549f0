"""Waiting for what a started process is about to do, within bounds."""

import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def wait_until(holds: Callable[[], bool], within_s: float, otherwise: Callable[[], str]) -> None:
    """Raises AssertionError with ``otherwise()`` when the condition does not hold in time."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(otherwise())
        time.sleep(0.1)


def wait_for_port(port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Until somebody listens on ``port`` of the loopback; the process must live on."""

    def listening() -> bool:
        assert process.poll() is None, log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(listening, 10, log.read_text)
