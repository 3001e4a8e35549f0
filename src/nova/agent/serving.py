"""What the agent's own runners share: their end of the line protocol, and one run of one program."""

import json
import os
import select
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from nova.agent.messages import GuestError
from nova.agent.process import adopt_orphans
from nova.agent.worker import error_line

INPUT_FD: Final = 3
RESULT_FD: Final = 4
READ: Final = 1 << 16


class Lines:
    """A worker's end: blocking reads of lines on 3, writes on 4."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0

    def read(self) -> bytes | None:
        """The next line without its LF; None when the host has gone."""
        while (end := self._buffer.find(b"\n", self._searched)) < 0:
            self._searched = len(self._buffer)
            data = os.read(INPUT_FD, READ)
            if not data:
                return None
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def write(self, line: bytes) -> None:
        write_all(RESULT_FD, line)


def write_all(fd: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The init line, as a runner sees it."""

    entry: str
    code_dir: str
    concurrency: int
    env: dict[str, str]
    raw: bytes


def load(lines: Lines, argv: tuple[str, ...]) -> tuple[Loaded, tuple[str, ...]]:
    """Wait for the init line and resolve ``argv`` for its entry. Exits after an error line when it cannot be run."""
    raw = lines.read()
    if raw is None:
        os._exit(0)
    init: dict[str, Any] = json.loads(raw)["init"]
    loaded = Loaded(init["entry"], init["code_dir"], init["concurrency"], init["env"], raw)
    adopt_orphans()
    name = os.path.relpath(loaded.entry, loaded.code_dir)
    if not os.path.isfile(loaded.entry):
        refuse(lines, f"{name} does not exist in the code")
    if argv and argv[0] == "{entry}" and not os.access(loaded.entry, os.X_OK):
        refuse(lines, f"{name} is not executable")
    return loaded, tuple(loaded.entry if word == "{entry}" else word for word in argv)


def refuse(lines: Lines, message: str) -> None:
    """End this worker: the function cannot be loaded."""
    lines.write(error_line(GuestError("Nova.InitError", message)))
    os._exit(1)


def ready(lines: Lines) -> None:
    lines.write(b'{"ready": {"concurrency": 1}}\n')


class Pump:
    """A poll loop over pipes of one child: what is to be written, and who takes what is read."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._writes: dict[int, memoryview] = {}
        self._reads: dict[int, Callable[[bytes], None]] = {}

    def write(self, fd: int, data: bytes) -> None:
        """Write ``data`` as the pipe takes it, then close it. A reader that goes away early is no error."""
        os.set_blocking(fd, False)
        self._writes[fd] = memoryview(data)
        self._poll.register(fd, select.POLLOUT)

    def read(self, fd: int, take: Callable[[bytes], None]) -> None:
        os.set_blocking(fd, False)
        self._reads[fd] = take
        self._poll.register(fd, select.POLLIN)

    def until_exit(self, pid: int) -> int:
        """Pump until the process ends and what it left in its pipes is read; returns its wait status."""
        pidfd = os.pidfd_open(pid)
        self._poll.register(pidfd, select.POLLIN)
        try:
            while True:
                ready = [fd for fd, _ in self._poll.poll()]
                for fd in ready:
                    if fd in self._writes:
                        self._write_some(fd)
                    elif fd in self._reads:
                        self._read_some(fd)
                if pidfd in ready:
                    break
            for fd in list(self._reads):
                while self._read_some(fd):
                    pass
            return os.waitpid(pid, 0)[1]
        finally:
            for fd in (pidfd, *self._reads, *self._writes):
                os.close(fd)

    def _write_some(self, fd: int) -> None:
        view = self._writes[fd]
        try:
            view = view[os.write(fd, view[:READ]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            view = view[:0]
        self._writes[fd] = view
        if not view:
            self._drop(fd)
            del self._writes[fd]

    def _read_some(self, fd: int) -> bool:
        try:
            data = os.read(fd, READ)
        except BlockingIOError:
            return False
        if data:
            self._reads[fd](data)
            return True
        self._drop(fd)
        del self._reads[fd]
        return False

    def _drop(self, fd: int) -> None:
        self._poll.unregister(fd)
        os.close(fd)


def call_env(env: Mapping[str, str], context: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a process that serves one call."""
    trace = str(context.get("traceparent") or "")
    return {
        **env,
        "NOVA_REQUEST_ID": str(context.get("request_id") or ""),
        "NOVA_TRACE_PARENT": trace,
        "TRACEPARENT": trace,
        "TRACESTATE": str(context.get("tracestate") or ""),
        "NOVA_STREAMING": "1" if context.get("streaming") else "",
        "NOVA_CALL_DEPTH": str(context.get("call_depth") or 0),
        "NOVA_CALL_CHAIN": ",".join(context.get("call_chain") or ()),
        "NOVA_CALLER_FUNCTION": str(context.get("caller_function") or ""),
    }
