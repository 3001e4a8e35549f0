"""Files of this machine: an event for each that is made, changed or deleted below a directory.

The kernel's notifications say when to look; what is there says what happened. So nothing is missed when notifications are lost
or nobody was running, and each state of a file, named by its path, time and size, makes one event.
"""

import asyncio
import hashlib
import os
import stat
import zlib
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from pathspec import GitIgnoreSpec
from pydantic import AfterValidator, Field
from tenacity import AsyncRetrying, retry_if_exception_type, wait_fixed
from watchfiles import awatch

from nova import payload
from nova.api.table import Model
from nova.events.triggers.base import Context, Sink, SourceError, SourceEvent

MAX_FILES = 10_000
"""Files below a watched directory that fit its pattern."""
RESCAN_S = 30.0
"""How often everything is looked at without a notification."""
_TICK_S = 0.05
_AGAIN_S = 0.3
PLACE = ("path", "pattern")

Op = Literal["created", "modified", "deleted"]
State = tuple[int, int]
"""time of the last change in nanoseconds, and size in bytes"""


def _absolute(text: str) -> str:
    if not os.path.isabs(text) or "\x00" in text:
        raise ValueError("an absolute path")
    return text


class Config(Model):
    """``pattern`` is a glob such as ``*.csv`` or ``in/**/*.json``, relative to ``path``. ``settle_ms``: a file must have stayed
    as it is for so long. ``existing``: what is there at first makes events too."""

    path: Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_absolute)]
    pattern: str = Field("**", min_length=1, max_length=1024)
    events: list[Op] = Field(default=["created", "modified", "deleted"], min_length=1, max_length=3)
    settle_ms: int = Field(500, ge=0, le=600_000)
    existing: bool = False


def make(config: Config, context: Context) -> "Filesystem":
    return Filesystem(config, context)


def within(path: str, roots: Sequence[Path]) -> Path:
    """The directory behind ``path``, links resolved. Raises :class:`SourceError` unless it is one, below one of ``roots``."""
    if not roots:
        raise SourceError("no directory of this machine may be watched: triggers.fs_roots is empty")
    found = Path(path).resolve()
    if not any(found.is_relative_to(root.expanduser().resolve()) for root in roots):
        raise SourceError(f"{path!r} is not below a directory of triggers.fs_roots")
    if not found.is_dir():
        raise SourceError(f"{path!r} is not a directory of this machine")
    return found


class Filesystem:
    def __init__(self, config: Config, context: Context) -> None:
        self._config = config
        self._context = context
        self._spec = GitIgnoreSpec.from_lines([config.pattern])
        self._known: dict[str, State] = {}
        self._under_way: set[str] = set()
        self._dirty = False
        self._settling: dict[str, tuple[State | None, float]] = {}

    async def check(self) -> None:
        await asyncio.to_thread(within, self._config.path, self._context.settings.fs_roots)

    async def lag(self) -> int | None:
        return len(self._settling) + len(self._under_way)

    async def run(self, sink: Sink) -> None:
        root = await asyncio.to_thread(within, self._config.path, self._context.settings.fs_roots)
        kept = await sink.position()
        if kept is not None:
            states = msgspec.json.decode(zlib.decompress(kept), type=dict[str, State])
            self._known = {_undump(name): state for name, state in states.items()}
        elif not self._config.existing:
            self._known = await self._scan(root)
            self._dirty = True
            await self._save(sink)
        sink.connected()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._saving(sink))
            async for _ in self._looks(root):
                for name, op in await self._settled(root):
                    while len(self._under_way) >= self._context.window:
                        await asyncio.sleep(_TICK_S)
                    self._under_way.add(name)
                    group.create_task(self._deliver(sink, name, op, self._settling.pop(name)[0]))

    async def _looks(self, root: Path) -> AsyncIterator[None]:
        """Whenever something may have changed or settled, and once in a while anyway."""
        yield
        settle_s = self._config.settle_ms / 1000
        hints: asyncio.Event = asyncio.Event()
        hinting = asyncio.create_task(self._hint(root, hints))
        try:
            while True:
                busy = bool(self._settling or self._under_way)
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(_TICK_S, settle_s / 2) if busy else RESCAN_S):
                        await hints.wait()
                hints.clear()
                if not root.is_dir():
                    raise SourceError(f"{self._config.path!r} is not a directory any more")
                yield
        finally:
            hinting.cancel()
            await asyncio.wait({hinting})

    async def _hint(self, root: Path, hints: asyncio.Event) -> None:
        """Whatever ends the notifications (a name that is not UTF-8 does) is itself one; they begin again. So is their beginning:
        what changed just before it is in none."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(Exception), wait=wait_fixed(_AGAIN_S), before_sleep=lambda _: hints.set()
        ):
            with attempt:
                begun = False
                async for changes in awatch(
                    root, watch_filter=None, step=20, debounce=100, recursive=True, yield_on_timeout=True
                ):
                    if changes or not begun:
                        hints.set()
                    begun = True

    async def _settled(self, root: Path) -> list[tuple[str, Op]]:
        """What has changed since its last event, and has stayed so for long enough, oldest first."""
        found = await self._scan(root)
        now = self._context.clock.monotonic()
        changed = [name for name, state in found.items() if self._known.get(name) != state]
        gone = [name for name in self._known if name not in found]
        waiting = set(changed) | set(gone)
        for name in self._settling.keys() - waiting:
            del self._settling[name]
        due: list[tuple[str, Op]] = []
        for name in changed + gone:
            if name in self._under_way:
                continue
            state = found.get(name)
            before = self._settling.get(name)
            if before is None or before[0] != state:
                before = self._settling[name] = (state, now)
            if now - before[1] >= self._config.settle_ms / 1000:
                due.append((name, "deleted" if state is None else "modified" if name in self._known else "created"))
        return sorted(due, key=lambda item: found.get(item[0], (0, 0)))

    async def _scan(self, root: Path) -> dict[str, State]:
        return await asyncio.to_thread(lambda: dict(self._files(root)))

    def _files(self, root: Path) -> Iterator[tuple[str, State]]:
        """Regular files that fit the pattern; links are not followed."""
        count = 0
        for folder, _, names in os.walk(root):
            for name in names:
                path = os.path.join(folder, name)
                relative = os.path.relpath(path, root)
                if not self._spec.match_file(relative):
                    continue
                try:
                    info = os.lstat(path)
                except OSError:
                    continue
                if stat.S_ISREG(info.st_mode):
                    count += 1
                    if count > MAX_FILES:
                        raise SourceError(f"more than {MAX_FILES} files fit the pattern")
                    yield relative, (info.st_mtime_ns, info.st_size)

    async def _deliver(self, sink: Sink, name: str, op: Op, state: State | None) -> None:
        try:
            if op in self._config.events:
                await sink.deliver(self._event(name, op, state))
            if state is None:
                self._known.pop(name, None)
            else:
                self._known[name] = state
            self._dirty = True
        finally:
            self._under_way.discard(name)

    def _event(self, name: str, op: Op, state: State | None) -> SourceEvent:
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        mtime, size = state if state is not None else self._known.get(name, (0, 0))
        named = f"{op}\0{_dump(name)}\0{mtime}\0{size}"
        data = {"path": shown, "op": op, "size": size, "mtime": mtime / 1e9}
        return SourceEvent(
            id=hashlib.sha256(named.encode()).hexdigest()[:40],
            type="nova.trigger.filesystem",
            source=self._context.source,
            data=payload.encode(data),
            subject=shown,
            ordering_key=hashlib.sha256(_dump(name).encode()).hexdigest()[:40],
        )

    async def _saving(self, sink: Sink) -> None:
        """What was delivered is remembered within a second; whatever dies before delivers it again."""
        while True:
            await self._context.clock.sleep(1.0)
            await self._save(sink)

    async def _save(self, sink: Sink) -> None:
        if self._dirty:
            self._dirty = False
            states = {_dump(name): state for name, state in self._known.items()}
            position = await asyncio.to_thread(lambda: zlib.compress(msgspec.json.encode(states)))
            await sink.save(position)


def _dump(name: str) -> str:
    """A file's name as text, whatever bytes it is made of."""
    return name.encode("utf-8", "surrogateescape").decode("latin-1")


def _undump(name: str) -> str:
    return name.encode("latin-1").decode("utf-8", "surrogateescape")
