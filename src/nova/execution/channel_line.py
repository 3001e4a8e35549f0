"""One worker, driven by the host: its line socket and the pipes of its prints.

This is the warm path: a call is one send, its answer one receive and a future resolved from the reader callback. No task,
no timer and no stream object belong to a call.
"""

import asyncio
import os
import select
import socket
from collections import deque
from typing import Final

import structlog

from nova import payload
from nova.agent.lines import PrintBuffer
from nova.agent.messages import GuestError
from nova.agent.worker import (
    Ask,
    Chunk,
    Ending,
    Event,
    Garbage,
    Log,
    Ready,
    Result,
    TooLong,
    WorkerSession,
    cancel_line,
    credit_line,
    told_line,
)
from nova.errors import FunctionError, NovaError
from nova.execution.backends.base import WorkerResult
from nova.execution.channel_call import Call, LineOwner
from nova.execution.channel_stream import OUTPUT_LIMIT, Collected, Stream, checked, too_large

log = structlog.get_logger(__name__)

_READ: Final = 1 << 16  # larger buffers are mapped and unmapped by malloc at every read
_PIPE_READ: Final = 1 << 16
_DRAIN_READS: Final = 16
"""Reads of one drain: more than a pipe can hold, so a worker that never stops printing cannot hold up the loop."""


class WorkerLine:
    """A loaded worker. With ``multiplex`` calls are told apart by their ids, otherwise there is one at a time.

    ``retiring`` is the owner's: it gets no further call.
    """

    def __init__(
        self, owner: LineOwner, number: int, descriptors: tuple[int, int, int], *, multiplex: bool, instance_id: str
    ) -> None:
        line, stdout, stderr = descriptors
        self.number = number
        self.multiplex = multiplex
        self.retiring = False
        self._owner = owner
        self._instance_id = instance_id
        self._loop = asyncio.get_running_loop()
        self._sock = socket.socket(fileno=line)
        self._sock.setblocking(False)
        self._line_fd = line
        self._session = WorkerSession()
        self._pipes = {stdout: PrintBuffer(), stderr: PrintBuffer()}
        self._stdout, self._stderr = self._pipes.values()
        self._unread = select.poll()
        self._current: Call | None = None
        self._calls: dict[str, Call] = {}
        self._outgoing: deque[memoryview] = deque()
        self._closed = False
        self._ending = False
        self.paused = False
        """whoever takes the pieces of its call is full: nothing is read until that has changed"""
        self._later: list[Event] = []
        self._loading: asyncio.Future[Ready | FunctionError] | None = None
        self._loop.add_reader(line, self._on_line)
        for fd in self._pipes:
            self._loop.add_reader(fd, self._on_print, fd)
            self._unread.register(fd, select.POLLIN)

    # -- loading -------------------------------------------------------------------------------------------------

    def load(self, data: bytes) -> "asyncio.Future[Ready | FunctionError]":
        """Send the init line to a worker that has none; what came of it. Until then the owner has it serve nobody."""
        loading: asyncio.Future[Ready | FunctionError] = self._loop.create_future()
        self._loading = loading
        self._write(data)
        return loading

    def fail_load(self, error: FunctionError) -> None:
        """The load that is under way, if one is, has ended otherwise."""
        self._loaded(error)

    def prints(self) -> tuple[str, str]:
        """What was printed while it loaded."""
        return self._stdout.take(), self._stderr.take()

    def _take_load(self, event: Event) -> None:
        match event:
            case Ready():
                self.multiplex = event.multiplex
                self._loaded(event)
            case Result():
                error = event.error or GuestError("Nova.InitError", "the worker answered before it was asked")
                self._loaded(FunctionError(error.type, error.message, error.stack))
            case Ask() | Garbage() | TooLong():
                self._loaded(FunctionError("Nova.InitError", "the worker does not speak the line protocol"))

    def _loaded(self, outcome: Ready | FunctionError) -> None:
        if self._loading is not None:
            self._drain()
            loading, self._loading = self._loading, None
            if not loading.done():
                loading.set_result(outcome)

    # -- calls ---------------------------------------------------------------------------------------------------

    def send(self, call: Call, data: bytes) -> None:
        """Put a call's line on the socket at once; what does not fit follows when the worker reads."""
        call.line = self
        if self.multiplex:
            call.stdout, call.stderr = PrintBuffer(), PrintBuffer()
            self._calls[call.request_id] = call
        else:
            self._current = call
        if call.pieces is not None:
            call.pieces.begin(self)
        self._write(data)

    def tell_cancelled(self, call: Call) -> None:
        """Ask a multiplexing worker to give up one call."""
        self._write(cancel_line(call.request_id))

    def grant(self, call: Call, size: int) -> None:
        """Let a multiplexing worker send more pieces of one call."""
        self._write(credit_line(call.request_id, size))

    def tell(self, number: int, status: int, body: bytes) -> None:
        """Answer a question of the worker; one that is gone hears nothing."""
        if not self._closed:
            self._write(told_line(number, status, body))

    def pause(self) -> None:
        """Read no more until :meth:`resume`; the worker comes to wait in its write."""
        self.paused = True
        self._stop_reading()

    def resume(self) -> None:
        if self.paused and not self._closed:
            self.paused = False
            later, self._later = self._later, []
            self._handle(later)
            if not self.paused and not self._closed:
                self._loop.add_reader(self._line_fd, self._on_line)

    def in_flight(self) -> list[Call]:
        return list(self._calls.values()) if self._current is None else [self._current]

    def has(self, call: Call) -> bool:
        """Its worker has not answered it yet."""
        return call is self._current or self._calls.get(call.request_id) is call

    def finish(self, call: Call, output: bytes | None, error: FunctionError | None) -> None:
        """End a call with what was printed until now."""
        stdout, stderr = self._release(call)
        call.settle(output, error, stdout, stderr)

    def _release(self, call: Call) -> tuple[str, str]:
        """The line does not have the call any more; what it printed."""
        if call.stdout is not None and call.stderr is not None:
            self._calls.pop(call.request_id, None)
            return call.stdout.take(), call.stderr.take()
        self._drain()
        self._current = None
        return self._stdout.take(), self._stderr.take()

    def expire(self, call: Call, error: FunctionError) -> None:
        """Answer a multiplexed call now; its worker still has to confirm that it gave it up."""
        if call.stdout is not None and call.stderr is not None:
            call.settle(None, error, call.stdout.take(), call.stderr.take())

    def read_rest(self) -> None:
        """Take in what a dead worker had still written."""
        for _ in range(_DRAIN_READS):
            if self._closed or self.paused or not self._on_line():
                return

    def close(self) -> None:
        """Give back the descriptors; idempotent. Calls in flight are the owner's to end, before."""
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        self._loop.remove_writer(self._line_fd)
        self._sock.close()
        for fd in self._pipes:
            self._loop.remove_reader(fd)
            os.close(fd)

    # -- the line socket -----------------------------------------------------------------------------------------

    def _write(self, data: bytes) -> None:
        sent = 0
        if not self._outgoing:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return  # the worker is gone; the reader learns it and the exit report says why
        if sent < len(data):
            if not self._outgoing:
                self._loop.add_writer(self._line_fd, self._on_writable)
            self._outgoing.append(memoryview(data)[sent:])

    def _on_writable(self) -> None:
        while self._outgoing:
            try:
                sent = self._sock.send(self._outgoing[0])
            except BlockingIOError:
                return
            except OSError:
                self._outgoing.clear()
                break
            if sent < len(self._outgoing[0]):
                self._outgoing[0] = self._outgoing[0][sent:]
            else:
                self._outgoing.popleft()
        self._loop.remove_writer(self._line_fd)

    def _on_line(self) -> bool:
        """Read once; True when there was something."""
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._stop_reading()
            self._owner.line_ended(self)
            return False
        return self._handle(self._session.feed(data))

    def _handle(self, events: list[Event]) -> bool:
        for event in events:
            if self._closed:  # by its owner, on account of an event before
                return False
            if self.paused:
                self._later.append(event)
            elif self._loading is not None:
                self._take_load(event)
            else:
                self._take(event)
        return not self.paused

    def _stop_reading(self) -> None:
        self._loop.remove_reader(self._line_fd)

    def _take(self, event: Event) -> None:
        match event:
            case Result():
                call = self._calls.get(event.request_id or "") if self.multiplex else self._current
                if call is not None:
                    self._answered(call, event)
                else:
                    self._owner.line_broken(self, "the worker answered a call that is not in flight")
            case Chunk():
                self._piece(event)
            case Ask():
                self._owner.line_asks(self, event.document)
            case Log():
                self._logged(event)
            case Ending():
                self._ending = True
                if not self.in_flight():
                    self._owner.line_ending(self)
            case TooLong() if self._current is not None:
                self._answered(self._current, Result(None, None, None))
            case TooLong():
                self._owner.line_broken(self, "the worker wrote a line that is too long")
            case Garbage():
                self._owner.line_broken(self, event.reason)

    def _piece(self, event: Chunk) -> None:
        call = self._calls.get(event.request_id or "") if self.multiplex else self._current
        if call is None:
            self._owner.line_broken(self, "the worker wrote a piece of a call that is not in flight")
            return
        if call.done():  # its caller has gone; the worker has been told
            return
        try:
            piece = checked(event)
        except NovaError as refused:
            self._owner.line_broken(self, refused.detail)
            return
        if call.pieces is None:
            call.pieces = Collected()
        call.pieces.take(piece)

    def answer(self, call: Call, result: Result) -> None:
        """The worker's answer, once all pieces before it are taken."""
        if self.has(call) and not self._closed:
            self._answered(call, result)

    def _answered(self, call: Call, result: Result) -> None:
        output, error = result.output, None
        if call.pieces is not None and call.pieces.wait(result):
            return
        if result.error is not None:
            error = FunctionError(result.error.type, result.error.message, result.error.stack)
        elif output is None:
            error = too_large()
        else:
            try:
                output = payload.check(output, limit=OUTPUT_LIMIT, empty=b"")
            except NovaError as refused:
                if refused.code != "payload_too_large":
                    self._owner.line_broken(self, refused.detail)
                    return
                output, error = None, too_large()
            if call.pieces is not None and output == b"null":
                output, error = call.pieces.result()
        stdout, stderr = self._release(call)
        if self._ending:
            self._owner.line_ending(self)
        else:
            self._owner.line_free(self)
        call.answered(WorkerResult(output, error, stdout, stderr))  # last: it may bring the line its next call

    # -- prints --------------------------------------------------------------------------------------------------

    def _logged(self, event: Log) -> None:
        call = self._calls.get(event.request_id or "")
        buffer = None if call is None else call.stderr if event.stream == "stderr" else call.stdout
        if buffer is not None:
            buffer.add(event.text.encode("utf-8", "backslashreplace"))
            buffer.miss(event.dropped)
            if call is not None and isinstance(call.pieces, Stream):
                call.pieces.printed(event.stream == "stderr", event.text.encode("utf-8", "backslashreplace"))
        else:
            self._outside(len(event.text))

    def _on_print(self, fd: int) -> bool:
        """Read once; True when there may be more."""
        try:
            data = os.read(fd, _PIPE_READ)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(fd)
            self._unread.unregister(fd)
            return False
        if self._current is not None:
            self._pipes[fd].add(data)
            if isinstance(self._current.pieces, Stream):
                self._current.pieces.printed(self._pipes[fd] is self._stderr, data)
        elif self._loading is not None:
            self._pipes[fd].add(data)
        else:
            self._outside(len(data))
        return True

    def _drain(self) -> None:
        """Prints come before the answer: take what lies in the pipes. One system call when there is nothing."""
        for fd, _ in self._unread.poll(0):
            for _ in range(_DRAIN_READS):
                if not self._on_print(fd):
                    break

    def _outside(self, size: int) -> None:
        log.debug("print outside any call", instance_id=self._instance_id, bytes=size)
