"""An answer piece by piece: what generators yield and ``context.write`` is given, as lines to the host."""

import asyncio
import base64
import contextlib
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, Final

from nova.runtimes.python import answers

_OVERHEAD: Final = 64
"""Bytes of credit that a piece costs beside its data; the host reckons alike."""
_CUT: Final = 1 << 16
"""Characters or bytes of one line: longer text and bytes go in several, which are the same to whoever gets them."""
PLAIN: Final = frozenset((dict, list, str, int, float, bool, type(None), tuple))
"""Types of results that are certainly no stream."""


class Sent:
    """What ``context.write`` returns when there is nothing to wait for, for handlers that await it."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


SENT: Final = Sent()


def lines(piece: Any, tag: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """The lines for a piece, each with what it costs of the credit. Raises :class:`answers.NotJson`."""
    if isinstance(piece, str):
        for start in range(0, len(piece) or 1, _CUT):
            yield _line(b"text", answers.document(piece[start : start + _CUT], "the piece"), tag)
    elif isinstance(piece, bytes | bytearray | memoryview):
        view = memoryview(piece).cast("B")
        for start in range(0, len(view) or 1, _CUT):
            yield _line(b"b64", b'"%b"' % base64.b64encode(view[start : start + _CUT]), tag)
    else:
        data = answers.document(piece, "the piece")
        if len(data) > answers.OUTPUT_LIMIT:
            raise answers.NotJson(f"the piece has {len(data)} bytes; the limit is {answers.OUTPUT_LIMIT}")
        yield _line(b"json", data, tag)


def _line(kind: bytes, data: bytes, tag: bytes) -> tuple[bytes, int]:
    return b'{%b"chunk": {"enc": "%b", "data": %b}}\n' % (tag, kind, data), len(data) + _OVERHEAD


def is_stream(value: Any) -> bool:
    """Something that yields pieces without an event loop."""
    return hasattr(type(value), "__next__")


def is_async_stream(value: Any) -> bool:
    return hasattr(type(value), "__anext__")


class Writer:
    """The pieces of a worker's only call: each is written at once, and a host that does not read holds the handler up."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._lock = threading.Lock()
        self._call = ""
        self.used = False

    def begin(self, call: str) -> None:
        self._call = call

    def end(self) -> None:
        """The answer comes next: threads that the call left behind write nothing into it."""
        with self._lock:
            self._call = ""
            self.used = False

    def send(self, call: str, piece: Any) -> Sent:
        """``context.write``. Raises RuntimeError for a call that has ended."""
        self.used = True
        for line, _ in lines(piece):
            with self._lock:
                if call != self._call:
                    raise RuntimeError("the call has ended")
                self._write(line)
        return SENT

    def each(self, stream: Any) -> Any:
        """All that it yields; returns what a generator returns."""
        self.used = True
        try:
            while True:
                try:
                    piece = next(stream)
                except StopIteration as end:
                    return end.value
                for line, _ in lines(piece):
                    with self._lock:
                        self._write(line)
        finally:
            if hasattr(stream, "close"):
                stream.close()

    async def async_each(self, stream: Any) -> None:
        self.used = True
        async with _closing(stream):
            async for piece in stream:
                for line, _ in lines(piece):
                    with self._lock:
                        self._write(line)


class Flow:
    """The pieces of one of many calls. Beyond its credit they wait here until the host gives more, so that a reader who is
    slow holds up its own call alone. ``credit`` None: as much as it likes."""

    def __init__(self, tag: bytes, credit: int | None, write: Callable[[bytes], None]) -> None:
        self._tag = tag
        self._credit: float = float("inf") if credit is None else credit
        self._write = write
        self._queue: deque[tuple[bytes, int]] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._ended = False

    def send(self, piece: Any) -> Awaitable[None]:
        """``context.write``: awaiting what it returns waits until the piece has gone."""
        if self._ended:
            raise RuntimeError("the call has ended")
        self._queue.extend(lines(piece, self._tag))
        self._go_on()
        return self.gone()

    def gone(self) -> Awaitable[None]:
        """Waits until all pieces have left."""
        if not self._queue:
            return SENT
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def grant(self, size: int) -> None:
        self._credit += size
        self._go_on()

    def _go_on(self) -> None:
        while self._queue and self._credit > 0:
            line, cost = self._queue.popleft()
            self._credit -= cost
            self._write(line)
        if not self._queue:
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def all_of(self, value: Any) -> Any:
        """The pieces of a handler's result if it is a stream; what remains is the result."""
        if is_stream(value):
            value = await self._each(value)
        elif is_async_stream(value):
            async with _closing(value):
                async for piece in value:
                    await self.send(piece)
            value = None
        await self.gone()
        return value

    async def _each(self, stream: Any) -> Any:
        try:
            while True:
                try:
                    piece = next(stream)
                except StopIteration as end:
                    return end.value
                await self.send(piece)
                await asyncio.sleep(0)  # the other calls' turn
        finally:
            if hasattr(stream, "close"):
                stream.close()

    def end(self) -> None:
        """Nothing goes out any more."""
        self._ended = True
        self._queue.clear()


def _closing(stream: Any) -> contextlib.AbstractAsyncContextManager[Any]:
    """However it ends, the generator's ``finally`` runs."""
    return contextlib.aclosing(stream) if hasattr(stream, "aclose") else contextlib.nullcontext()
