"""A build's output on its way to the database: visible while the build runs, bounded, its end kept for the error."""

import asyncio
import codecs
from collections import deque
from contextlib import suppress

import structlog

from nova.errors import NovaError
from nova.store.builds import LOG_LIMIT, BuildStore

log = structlog.get_logger(__name__)
_FLUSH_S = 0.25
_TAIL_LINES = 30
_TAIL_CHARS = 4000


class BuildLog:
    """Takes bytes as they come and writes them in pieces. Use as a context manager: leaving it writes the rest."""

    def __init__(self, builds: BuildStore, build_id: str) -> None:
        self._builds = builds
        self._build_id = build_id
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending: list[str] = []
        self._sent = 0
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._line = ""
        self._some = asyncio.Event()
        self._closing = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "BuildLog":
        self._writer = asyncio.create_task(self._run(), name=f"build-log.{self._build_id}")
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._closing.set()
        self._some.set()
        if self._writer is not None:
            await self._writer

    def write(self, data: bytes) -> None:
        """Output of a step."""
        self._take(self._decoder.decode(data))

    def say(self, line: str) -> None:
        """A line of the platform's own."""
        self._take(f"{'' if not self._line else chr(10)}» {line}\n")

    @property
    def tail(self) -> str:
        """The last lines of output, at most 4000 characters."""
        return "\n".join([*self._tail, self._line]).strip()[-_TAIL_CHARS:]

    def _take(self, text: str) -> None:
        *lines, self._line = (self._line + text).split("\n")
        self._line = self._line[-_TAIL_CHARS:]
        self._tail.extend(lines)
        if self._sent <= LOG_LIMIT:
            # one character past the limit makes the store cut and say so; more would only fill memory
            self._pending.append(text[: LOG_LIMIT + 1 - self._sent])
            self._sent += len(self._pending[-1])
            self._some.set()

    async def _run(self) -> None:
        """Gather output for a moment, then write it in one piece, until the build is over."""
        while not self._closing.is_set():
            await self._some.wait()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), _FLUSH_S)
            self._some.clear()
            await self._flush()

    async def _flush(self) -> None:
        text, self._pending = "".join(self._pending), []
        if not text:
            return
        try:
            await self._builds.append_log(self._build_id, text)
        except NovaError as error:
            self._pending.insert(0, text)
            self._some.set()
            log.warning("cannot write a build's log", build=self._build_id, error=error.detail)
