"""Where effects are written: a server on a host of its own, in a network namespace that the chaos does not touch.

Functions reach it as any private address behind the host. As a program, inside the namespace, it appends each line that it
gets to a file before it answers, and is a receiver of webhooks: ``/ok`` writes a message down, ``/called`` the end of a job, and
``/hangs`` never answers.
"""

import contextlib
import http.server
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.oracle import Effect

EFFECTS_PORT, HOOKS_PORT = 7070, 8080
HANGS_S = 20.0
_PREFIX = "chaos-"
_DONE = b"!"


@dataclass(frozen=True)
class Ledger:
    """``address`` is the host's, ``network`` what the platform has to be allowed to reach."""

    address: str
    network: str
    file: Path
    process: "subprocess.Popen[bytes]"

    def effects(self) -> list[Effect]:
        """All of them, in the order in which they came."""
        return [Effect(**json.loads(line)) for line in self.file.read_bytes().splitlines()]

    def hook(self, path: str) -> str:
        return f"http://{self.address}:{HOOKS_PORT}/{path}"


@contextlib.contextmanager
def ledger(folder: Path) -> Iterator[Ledger]:
    """Needs root, for the namespace."""
    _sweep()
    number = os.getpid()
    name, here, there = f"{_PREFIX}{number}", f"ch{number}a", f"ch{number}b"
    network = f"10.{100 + number % 100}.{number // 100 % 250}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("addr", "add", f"{network}.1/24", "dev", here)
        _ip("link", "set", here, "up")
        _ip("-n", name, "addr", "add", f"{network}.2/24", "dev", there)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", there, "up")
        _ip("-n", name, "route", "add", "default", "via", f"{network}.1")
        file = folder / "ledger.jsonl"
        file.touch()
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "tests.chaos.ledger", str(file)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"serving\n", "the ledger did not start"
            yield Ledger(f"{network}.2", f"{network}.0/24", file, process)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    finally:
        _ip("netns", "del", name)


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


def _sweep() -> None:
    """Namespaces of runs that were killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split(" ", 1)[0]
        owner = name.removeprefix(_PREFIX)
        if name.startswith(_PREFIX) and owner.isdigit() and not Path("/proc", owner).exists():
            _ip("netns", "del", name)


class _Book:
    """One append for each effect: a line is in the file before anybody is told that it is."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - as long as the process
        self._turn = threading.Lock()

    def write(self, effect: Any) -> None:
        line = json.dumps(effect).encode() + b"\n"
        with self._turn:
            self._file.write(line)


def _serve(path: str) -> None:
    book = _Book(path)

    class Effects(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                book.write(json.loads(line))
                self.wfile.write(_DONE)

    class Hooks(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/hangs":
                self.connection.settimeout(HANGS_S)
                with contextlib.suppress(OSError):
                    self.connection.recv(1)
                self.close_connection = True
                return
            data = json.loads(body)["data"]
            if self.path == "/called":  # the end of a job
                effect = {"source": "callback", "key": data["payload"]["key"], "step": "job"}
            else:
                effect = {"source": "webhook", "key": data["key"], "step": str(data["n"]), "level": data["n"]}
            book.write({**effect, "token": uuid.uuid4().hex})
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    for server in (_Threads(("0.0.0.0", EFFECTS_PORT), Effects), _Threads(("0.0.0.0", HOOKS_PORT), Hooks)):
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("serving", flush=True)
    threading.Event().wait()


class _Threads(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = socket.SOMAXCONN

    def handle_error(self, *_: object) -> None:
        """Functions are killed in the middle of a line; that is the idea."""


if __name__ == "__main__":
    _serve(sys.argv[1])
