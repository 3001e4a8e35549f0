"""Asynchronous handlers with concurrency: many calls in one event loop, prints and answers tagged with their call."""

import asyncio
import io
import json
import os
import sys
import threading
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any, Final, NoReturn

from nova.runtimes.python import answers
from nova.runtimes.python.context import Context
from nova.runtimes.python.loading import Function
from nova.runtimes.python.pieces import Flow

_INPUT_FD: Final = 3
_RESULT_FD: Final = 4
_READ: Final = 1 << 16
_CANCEL: Final = b'{"cancel": "'
_CREDIT: Final = b'{"credit": "'
_CONTEXT: Final = b', "context": '
_PRINT_PIECE: Final = 8192
_request: ContextVar[str] = ContextVar("request_id", default="")
_writing = threading.Lock()


def request_id() -> str:
    """The call that the running task belongs to; empty outside any."""
    return _request.get()


def serve(function: Function, code_dir: str) -> NoReturn:
    """Serve calls until the host goes away."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    calls = Calls(function, code_dir, loop)
    loop.add_reader(_INPUT_FD, calls.on_readable)
    loop.run_forever()
    os._exit(0)


class Calls:
    """The calls in flight, by request id."""

    def __init__(self, function: Function, code_dir: str, loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._code_dir = code_dir
        self._loop = loop
        self._buffer = bytearray()
        self._tasks: dict[str, asyncio.Task[bytes]] = {}
        self._flows: dict[str, Flow] = {}
        self._thread = threading.get_ident()
        Context.sender = self.send
        self._streams = (TaggedStream("stdout", sys.stdout), TaggedStream("stderr", sys.stderr))
        sys.stdout, sys.stderr = self._streams

    def on_readable(self) -> None:
        data = os.read(_INPUT_FD, _READ)
        if not data:
            os._exit(0)
        self._buffer += data
        if b"\n" not in data:
            return
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            self._take(bytes(line))

    def _take(self, line: bytes) -> None:
        if line.startswith(_CANCEL):
            task = self._tasks.get(line[len(_CANCEL) : line.rindex(b'"')].decode())
            if task is not None:
                task.cancel()
            return
        if line.startswith(_CREDIT):
            credit = json.loads(line)
            if (flow := self._flows.get(credit["credit"])) is not None:
                flow.grant(credit["bytes"])
            return
        middle = line.rindex(_CONTEXT)
        context = Context(line[middle + len(_CONTEXT) : -1].decode())
        call = str(context.request_id)
        _request.set(call)  # the task copies it
        tag = b'"request_id": "%b", ' % call.encode()
        flow = self._flows[call] = Flow(tag, context._parsed().get("stream_credit"), write)
        task = self._loop.create_task(self._run(tag, line[len(b'{"input": ') : middle], context, flow))
        self._tasks[call] = task
        task.add_done_callback(lambda done: self._finish(call, tag, done))
        _request.set("")

    def send(self, call: str, piece: Any) -> Awaitable[None]:
        """``context.write``."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("context.write belongs to the thread of the event loop")
        flow = self._flows.get(call)
        if flow is None:
            raise RuntimeError("the call has ended")
        return flow.send(piece)

    async def _run(self, tag: bytes, payload: bytes, context: Context, flow: Flow) -> bytes:
        """The answer's line. A cancelled call has none; it may not even have begun."""
        try:
            value = self._function.call(json.loads(payload), context)
            if hasattr(type(value), "__await__"):
                value = await value
            return answers.of_value(await flow.all_of(value), tag)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            return answers.of_exception(error, self._code_dir, tag)

    def _finish(self, call: str, tag: bytes, task: asyncio.Task[bytes]) -> None:
        del self._tasks[call]
        self._flows.pop(call).end()
        for stream in self._streams:
            stream.finish(call)
        write(answers.of_platform("Cancelled", "the call was cancelled", tag) if task.cancelled() else task.result())


class TaggedStream(io.TextIOBase):
    """A text stream whose lines go to the host with the id of the call that printed them."""

    def __init__(self, name: str, outside: Any) -> None:
        self._name = name
        self._outside = outside
        self._pending: dict[str, str] = {}

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        number: int = self._outside.fileno()
        return number

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def write(self, text: str, /) -> int:
        call = _request.get()
        if not call:
            self._outside.write(text)
            return len(text)
        pending = self._pending.pop(call, "") + text
        if "\n" in text or len(pending) > _PRINT_PIECE:
            self._send(call, pending)
        else:
            self._pending[call] = pending
        return len(text)

    def finish(self, call: str) -> None:
        """The call is over: send what has no newline yet."""
        if pending := self._pending.pop(call, ""):
            self._send(call, pending)

    def _send(self, call: str, text: str) -> None:
        for start in range(0, len(text), _PRINT_PIECE * 8):
            piece = {"request_id": call, "stream": self._name, "text": text[start : start + _PRINT_PIECE * 8]}
            write(json.dumps({"log": piece}).encode() + b"\n")


def write(line: bytes) -> None:
    """Lines of several threads must not mix."""
    with _writing:
        written = os.write(_RESULT_FD, line)
        while written < len(line):
            written += os.write(_RESULT_FD, line[written : written + _READ])
