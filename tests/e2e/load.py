"""Calls without end from several connections, every one of which is accounted for."""

import contextlib
import json
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.wire import request

LIMIT_S = 30.0
_MOST_CALLS = 200_000
_MOST_S = 300


@dataclass(frozen=True, slots=True)
class Call:
    """One request. ``status`` is 0 when the connection broke or was refused. Times are monotonic."""

    began: float
    ended: float
    status: int
    answer: Any = None

    @property
    def well(self) -> bool:
        """Answered by the function, with its value?"""
        return self.status == 200 and self.answer.get("error") is None

    @property
    def code(self) -> str:
        """What a refusal is called; empty for an answer."""
        return "" if self.status == 200 else "broken" if self.status == 0 else str(self.answer.get("code"))


@dataclass
class Load:
    """``calls`` grows while the load runs; read it as often as you like."""

    calls: list[Call] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if not call.well]

    @property
    def codes(self) -> Counter[str]:
        """How many calls failed, by what they were told."""
        return Counter(call.code for call in self.failed)

    def well_since(self, moment: float) -> int:
        """Calls that began after ``moment`` and succeeded."""
        return sum(call.began > moment and call.well for call in self.calls)


@contextlib.contextmanager
def load(url: str, function: str, *, callers: int = 4, pause_s: float = 0.01, event: object = None) -> Iterator[Load]:
    """``callers`` connections that call the function again and again; all have ended at the end.

    A connection that the server ends between two calls, having said so, is made anew; any other end is a failed call.
    """
    running = Load()
    host, _, port = url.removeprefix("http://").partition(":")
    message = request("POST", f"/functions/{function}/invoke".encode(), json.dumps(event).encode())
    threads = [
        threading.Thread(target=_call, args=((host, int(port)), message, running, pause_s), name=f"caller-{number}")
        for number in range(callers)
    ]
    for thread in threads:
        thread.start()
    try:
        yield running
    finally:
        running.stop.set()
        for thread in threads:
            thread.join()


def _call(address: tuple[str, int], message: bytes, running: Load, pause_s: float) -> None:
    sock: socket.socket | None = None
    until = time.monotonic() + _MOST_S
    while not running.stop.is_set() and len(running.calls) < _MOST_CALLS and time.monotonic() < until:
        began = time.monotonic()
        status, answer, goes_on = 0, None, False
        try:
            sock = sock or socket.create_connection(address, timeout=LIMIT_S)
            sock.sendall(message)
            status, answer, goes_on = _read(sock)
        except OSError as exc:
            answer = {"code": repr(exc)}
        running.calls.append(Call(began, time.monotonic(), status, answer))
        if not goes_on and sock is not None:
            sock.close()
            sock = None
        running.stop.wait(pause_s)
    if sock is not None:
        sock.close()


def _read(sock: socket.socket) -> tuple[int, Any, bool]:
    """Status, document, and whether the connection goes on. Raises OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    while len(body) < int(headers["content-length"]):
        body += _more(sock)
    return int(first.split()[1]), json.loads(body), headers.get("connection") != "close"


def _more(sock: socket.socket) -> bytes:
    piece = sock.recv(65536)
    if not piece:
        raise ConnectionError("the connection ended before the answer did")
    return piece


_SCRIPT = """
wrk.method = "POST"
wrk.body = "null"
wrk.headers["Content-Type"] = "application/json"
function delay() return %d end
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('TOTALS [%%d, %%d, %%d, %%d, %%d, %%d]\\n',
    summary.requests, e.connect, e.read, e.write, e.status, e.timeout))
end
"""


@dataclass
class Totals:
    """``failed``: by connect, read, write, status and timeout, as wrk counts them."""

    requests: int = 0
    failed: Sequence[int] = ()


@contextlib.contextmanager
def wrk(url: str, function: str, folder: Path, *, connections: int = 4, pause_ms: int = 5) -> Iterator[Totals]:
    """The same by wrk, as everybody knows it. The totals are there at the end."""
    script = folder / "calls.lua"
    script.write_text(_SCRIPT % pause_ms)
    command = ["wrk", "-t1", f"-c{connections}", f"-d{_MOST_S}s", f"--timeout={LIMIT_S:.0f}s", "-s", str(script)]
    process = subprocess.Popen([*command, f"{url}/functions/{function}/invoke"], stdout=subprocess.PIPE, text=True)
    totals = Totals()
    try:
        yield totals
        process.send_signal(2)  # SIGINT: finish and say
        said, _ = process.communicate(timeout=LIMIT_S)
        (line,) = (line for line in said.splitlines() if line.startswith("TOTALS "))
        totals.requests, *totals.failed = json.loads(line.removeprefix("TOTALS "))
    finally:
        process.kill()
        process.communicate()
