"""A worker as a process of its own, without a sandbox: the line protocol and what modules can do."""

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova.execution.launch import launch_for
from nova.runtimes.registry import Runtimes

RUNTIME = Runtimes().resolve("wasm")


@dataclass
class Worker:
    """The host's end of the line."""

    line: socket.socket
    process: subprocess.Popen[bytes]
    ready: dict[str, Any]

    def __post_init__(self) -> None:
        self._buffer = b""

    def send(self, request_id: str, payload: bytes = b"{}", *, timeout_s: float = 10, **context: Any) -> None:
        members = {"request_id": request_id, "deadline_ms": int((time.time() + timeout_s) * 1000), **context}
        self.line.sendall(b'{"input": %b, "context": %b}\n' % (payload, json.dumps(members).encode()))

    def tell(self, **message: Any) -> None:
        self.line.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """The next line."""
        while b"\n" not in self._buffer:
            data = self.line.recv(1 << 16)
            assert data, "the worker has ended"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def until_answer(self, request_id: str = "a") -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The answer of a call, and the lines that came before it."""
        before: list[dict[str, Any]] = []
        while True:
            message = self.hear()
            if message.get("request_id") == request_id and ("output" in message or "error" in message):
                return message, before
            before.append(message)

    def call(self, payload: bytes = b"{}", **context: Any) -> Any:
        """The output of a call that succeeds."""
        self.send("a", payload, **context)
        answer, _ = self.until_answer()
        assert "output" in answer, answer
        return answer["output"]

    def error(self, payload: bytes = b"{}", **context: Any) -> tuple[str, str]:
        """Type and message of the error of a call."""
        self.send("a", payload, **context)
        answer, _ = self.until_answer()
        return answer["error"]["type"], answer["error"]["message"]


@contextlib.contextmanager
def worker(
    folder: Path,
    module: str | bytes,
    *,
    concurrency: int = 1,
    memory_mb: int = 64,
    fuel: int = 0,
    env: Mapping[str, str] = {},
) -> Iterator[Worker]:
    """A worker that has loaded ``module``, or says why not in ``ready``."""
    scratch, entry = folder / "tmp", folder / "handler.wasm"
    scratch.mkdir(exist_ok=True)
    entry.write_bytes(module.encode() if isinstance(module, str) else module)
    ours, theirs = socket.socketpair()
    ours.settimeout(20)

    def lay_out() -> None:
        for number in (4, 3) if theirs.fileno() == 3 else (3, 4):
            os.dup2(theirs.fileno(), number)
            os.set_inheritable(number, True)

    process = subprocess.Popen(
        launch_for(RUNTIME, fuel=fuel).argv,
        close_fds=False,
        preexec_fn=lay_out,
        env={"TMPDIR": str(scratch), "SECRET": "x"},
    )
    theirs.close()
    try:
        made = Worker(ours, process, {})
        made.tell(
            init={
                "handler": "handler.handle",
                "entry": str(entry),
                "code_dir": str(folder),
                "mode": "persistent",
                "concurrency": concurrency,
                "env": {"NOVA_MEMORY_LIMIT_MB": str(memory_mb), **env},
            }
        )
        made.ready = made.hear()
        yield made
    finally:
        ours.close()
        process.kill()
        process.wait()
