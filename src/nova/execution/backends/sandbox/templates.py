"""Templates: sealed places that wait for a function, kept ready per kind and refilled off the path of calls."""

import asyncio
import functools
import math
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import structlog

from nova.execution.backends.base import Channel
from nova.service import Background

log = structlog.get_logger(__name__)

SOON = 16
"""Up to so many templates of a kind each claim that finds none doubles their number; beyond, each adds one."""
CALM_S = 60.0
"""A kind that grew shrinks again after this time without a claim that found nothing."""
REFILL_DELAY_S = 0.05
"""Refilling waits this long after a claim, so that it does not compete with the claimed instance's own start. The last
template of a kind is replaced at once."""
FIRST_RETRY_S, LAST_RETRY_S = 0.1, 10.0


class AnyKind(Hashable, Protocol):
    """What must be equal for one template to serve."""

    @property
    def runtime(self) -> str: ...


KindT = TypeVar("KindT", bound=AnyKind)


AnyKindT = TypeVar("AnyKindT", bound=AnyKind, covariant=True)


class Blank(Protocol[AnyKindT]):
    """A place that waits; ``ended`` is done when it is dead."""

    @property
    def kind(self) -> AnyKindT: ...

    @property
    def channel(self) -> Channel: ...

    @property
    def ended(self) -> "asyncio.Future[Any]": ...


BlankT = TypeVar("BlankT", bound=Blank[Any])


@dataclass(slots=True)
class _Shelf(Generic[BlankT]):
    """The templates of one kind."""

    base: int
    target: int
    ready: deque[BlankT] = field(default_factory=deque)
    missed: float = -math.inf


class Templates(Generic[KindT, BlankT]):
    """``boot`` makes one; ``end`` frees one that nobody takes. ``keep``: so many of each kind that has been asked for once."""

    def __init__(
        self,
        boot: Callable[[KindT], Awaitable[BlankT]],
        end: Callable[[BlankT], Awaitable[object]],
        targets: Mapping[KindT, int],
        *,
        keep: int = 0,
        most: int = SOON,
    ) -> None:
        """``most``: templates of one kind, however large the demand."""
        self._boot = boot
        self._end = end
        self._keep = keep
        self._most = most
        self._shelves: dict[KindT, _Shelf[BlankT]] = {kind: _Shelf(count, count) for kind, count in targets.items()}
        self._wanted = asyncio.Event()
        self._background = Background("sandbox.templates")
        self._failures: defaultdict[KindT, int] = defaultdict(int)
        self._retry_at: dict[KindT, float] = {}
        self._burials: set[asyncio.Future[object]] = set()

    async def start(self) -> None:
        self._wanted.set()
        self._background.spawn("refill", self._refill())

    async def close(self) -> None:
        await self._background.close()
        for shelf in self._shelves.values():
            while shelf.ready:
                self._bury(shelf.ready.pop())
        await asyncio.gather(*self._burials)

    def take(self, kind: KindT) -> BlankT | None:
        """A living template, or None. Either way the shelf is filled up later; more so when nothing was there."""
        shelf = self._shelves.setdefault(kind, _Shelf(self._keep, self._keep))
        cell = self._pop(shelf)
        if cell is None:
            shelf.missed = time.monotonic()
            more = max(1, shelf.target) if shelf.target < SOON else 1
            shelf.target = min(self._most, shelf.target + more)
            self._wanted.set()
        elif not shelf.ready:
            self._wanted.set()
        else:
            asyncio.get_running_loop().call_later(REFILL_DELAY_S, self._wanted.set)
        return cell

    def _pop(self, shelf: _Shelf[BlankT]) -> BlankT | None:
        while shelf.ready:
            cell = shelf.ready.popleft()
            if cell.channel.usable and not cell.ended.done():
                return cell
            self._bury(cell)
        return None

    def counts(self) -> dict[KindT, tuple[int, int]]:
        """Per kind: how many are ready, how many there should be."""
        return {kind: (len(shelf.ready), shelf.target) for kind, shelf in self._shelves.items()}

    def _ended(self, cell: BlankT, _how: asyncio.Future[Any]) -> None:
        """A place ended; if it was still a template, what it held is freed and another is made."""
        shelf = self._shelves[cell.kind]
        if cell in shelf.ready:
            shelf.ready.remove(cell)
            self._bury(cell)
            self._wanted.set()

    def _bury(self, cell: BlankT) -> None:
        burial = asyncio.ensure_future(self._end(cell))
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)

    # -- refilling -----------------------------------------------------------------------------------------------

    async def _refill(self) -> None:
        """One at a time: the launcher stays free for claims, and the machine for calls."""
        while True:
            kind = self._next_missing()
            if kind is None:
                self._wanted.clear()
                await self._pause()
                await self._shrink()
                continue
            try:
                cell = await self._boot(kind)
            except Exception as error:
                self._put_off(kind, error)
                continue
            self._failures.pop(kind, None)
            self._shelves[kind].ready.append(cell)
            cell.ended.add_done_callback(functools.partial(self._ended, cell))

    def _next_missing(self) -> KindT | None:
        now = time.monotonic()
        for kind, shelf in self._shelves.items():
            if len(shelf.ready) < shelf.target and self._retry_at.get(kind, now) <= now:
                return kind
        return None

    async def _pause(self) -> None:
        """Until a template is missing, a failed kind is due again, or a shelf may shrink."""
        now = time.monotonic()
        due = [at - now for kind, at in self._retry_at.items() if at > now]
        due += [shelf.missed + CALM_S - now for shelf in self._shelves.values() if shelf.target > shelf.base]
        try:
            async with asyncio.timeout(max(0.0, min(due)) if due else None):
                await self._wanted.wait()
        except TimeoutError:
            return

    async def _shrink(self) -> None:
        now = time.monotonic()
        for shelf in self._shelves.values():
            if shelf.target > shelf.base and now >= shelf.missed + CALM_S:
                shelf.target = shelf.base
                while len(shelf.ready) > shelf.target:
                    await self._end(shelf.ready.pop())

    def _put_off(self, kind: KindT, error: Exception) -> None:
        self._failures[kind] += 1
        delay = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(self._failures[kind], 10))
        self._retry_at[kind] = time.monotonic() + delay
        log.warning("no template could be made", runtime=kind.runtime, error=str(error), retry_s=round(delay, 1))
