"""Call records on their way to PostgreSQL: a call only appends to a list; writing happens in batches behind it.

Three places can hold a record, in this order: the buffer in memory; when the buffer is full or the database does not
take a batch, a bounded spill on disk that is replayed when the database is back (or memory again, when the disk refuses it);
and when that is full too, a counter.
"""

import asyncio
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import psycopg
import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt, wait_exponential

from nova.config import ExecutorSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.function import FunctionSnapshot
from nova.errors import NovaError
from nova.execution import capture
from nova.execution.spill import Spill
from nova.store import callrows
from nova.store.callrows import FinishedCall
from nova.store.invocations import InvocationStore

log = structlog.get_logger(__name__)
SPILL_BYTES = 64 * 1024 * 1024
TRIES = 3
_FLUSH_BYTES = 4 * 1024 * 1024
"""a buffer with this much in it is written before it has a full batch"""
_BUFFER_BYTES = 64 * 1024 * 1024
"""a buffer with this much in it counts as full"""
_MOST_WAITING = 10_000
_MOST_WAITING_BYTES = 256 * 1024 * 1024
"""beyond these (or four buffers) records are counted as lost: the disk does not keep up either"""
_HELD_BYTES = 64 * 1024 * 1024
"""rows kept in memory because neither the database nor the disk takes them"""
_PACE_S = 0.15
"""between two batches, while nobody reads and the buffer is less than half full: a write has a price, whatever its size"""
_PROBE_S = 0.5
_ENCODE_CHUNK = 50
"""rows encoded before the event loop gets a turn"""
_REPLAY_CHUNK = 500
_MAX_PREFIXES = 4096
_Refused = (NovaError, TimeoutError)
"""the database does not take it now; anything else is about the rows themselves"""


@dataclass(slots=True)
class LogCounts:
    """What became of records since start. Every record ends in ``written`` or ``dropped``; spilled ones on the way."""

    written: int = 0
    spilled: int = 0
    dropped: int = 0
    flush_failures: int = 0


class LogBatcher:
    """Takes the record of each finished call. ``spill_dir`` belongs to this process alone."""

    def __init__(
        self,
        store: InvocationStore,
        settings: ExecutorSettings,
        spill_dir: Path,
        *,
        spill_bytes: int = SPILL_BYTES,
    ) -> None:
        self.counts = LogCounts()
        self._store = store
        self._settings = settings
        self._batch = settings.log_batch_size
        self._buffer = settings.log_buffer_size
        self._most = max(4 * self._buffer, _MOST_WAITING)
        self._spill = Spill(spill_dir, callrows.LAYOUT, max_bytes=spill_bytes)
        self._held: list[bytes] = []
        self._waiting: list[FinishedCall] = []
        self._waiting_bytes = 0
        self._taken = 0
        self._aside = 0
        self._settled = 0
        self._settlers: list[tuple[int, asyncio.Future[None]]] = []
        self._prefixes: dict[tuple[str, int], bytes] = {}
        self._some = asyncio.Event()
        self._due = asyncio.Event()
        self._overfull = asyncio.Event()
        self._last_write = 0.0
        self._outage = False
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def in_outage(self) -> bool:
        """True while records go to the spill file because the database does not take them."""
        return self._outage

    async def start(self) -> None:
        if unusable := await asyncio.to_thread(self._spill.open):
            self._lose(unusable, "they were spilled by another version")
        if not self._spill.empty:
            self._some.set()
        self._tasks = [
            asyncio.create_task(self._flushing(), name="logs.flush"),
            asyncio.create_task(self._spilling(), name="logs.spill"),
        ]

    async def close(self) -> None:
        """Write what waits; what the database does not take at once is spilled for the next start."""
        self._closing = True
        for event in (self._some, self._due, self._overfull):
            event.set()
        await asyncio.gather(*self._tasks)
        finish = self._put_aside if self._outage else self._write
        await finish(self._take())
        held, self._held = self._held, []
        await self._spill_rows(held)
        if self._held:
            self._lose(len(self._held), "neither the database nor the disk takes them")

    def record(self, call: CallRequest, snapshot: FunctionSnapshot, result: CallResult) -> None:
        """Keep the record of a finished call. Never waits, never fails."""
        waiting = self._waiting
        count = len(waiting) + 1
        if count > self._most or self._waiting_bytes > _MOST_WAITING_BYTES:
            self._lose(1, "the buffer is full and the disk does not keep up")
            return
        waiting.append(FinishedCall(time.time_ns() // 1000, call, snapshot, result))
        self._waiting_bytes += len(call.payload) + len(result.output or b"") + len(result.stdout) + len(result.stderr)
        if count == 1:
            self._some.set()
        if count == self._batch or self._waiting_bytes > _FLUSH_BYTES:
            self._due.set()
        if count >= self._buffer or self._waiting_bytes > _BUFFER_BYTES:
            self._overfull.set()

    async def settle(self, timeout_s: float = 2.0) -> None:
        """Wait until everything recorded so far is where readers find it; at most ``timeout_s``, and not in an outage.

        For readers in this process: a caller finds the record of the call that has just been answered.
        """
        target = self._taken + len(self._waiting)
        if self._settled >= target or self._outage:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._settlers.append((target, done))
        self._due.set()
        await asyncio.wait({done}, timeout=timeout_s)

    # The two loops: one towards the database; one towards the disk when the first is held up

    async def _flushing(self) -> None:
        while not self._closing:
            await self._wait_until_due()
            if self._outage and not await self._replay():
                await self._put_aside(self._take())
                continue
            await self._write(self._take())
            if self._set_aside:
                await self._replay()

    async def _wait_until_due(self) -> None:
        if not self._waiting:
            self._some.clear()
            await _wait(self._some, _PROBE_S if self._set_aside or self._outage else None)
        if len(self._waiting) < self._batch and not self._settlers and not self._closing:
            self._due.clear()
            await _wait(self._due, self._settings.log_flush_interval)
        await self._pace()

    async def _pace(self) -> None:
        """Let a batch grow while there is room: under load one write then carries hundreds of records."""
        deadline = self._last_write + _PACE_S
        while not self._settlers and not self._closing and len(self._waiting) < self._buffer // 2:
            if (rest := deadline - time.monotonic()) <= 0:
                return
            await asyncio.sleep(min(rest, _PACE_S / 5))

    async def _spilling(self) -> None:
        while not self._closing:
            await self._overfull.wait()
            self._overfull.clear()
            if not self._closing:
                await self._put_aside(self._take())

    def _take(self) -> list[FinishedCall]:
        batch, self._waiting = self._waiting, []
        self._waiting_bytes = 0
        self._taken += len(batch)
        return batch

    async def _write(self, batch: Sequence[FinishedCall]) -> None:
        if not batch:
            return
        rows = await self._encode(batch)
        try:
            await self._store_rows(rows, {done.snapshot.function_id for done in batch})
        except _Refused as exc:
            self._note_outage(exc)
            await self._spill_rows(rows)
        else:
            self._note_settled(len(batch))
        self._last_write = time.monotonic()

    async def _put_aside(self, batch: Sequence[FinishedCall]) -> None:
        if batch:
            await self._spill_rows(await self._encode(batch))

    async def _spill_rows(self, rows: Sequence[bytes]) -> None:
        self._aside += len(rows)
        try:
            kept = await asyncio.to_thread(self._spill.put, rows)
        except OSError as exc:
            log.error("call records cannot be spilled", error=str(exc), rows=len(rows))
            self._hold(rows)
            return
        self.counts.spilled += kept
        if kept < len(rows):
            self._lose(len(rows) - kept, "the spill is full")

    def _hold(self, rows: Sequence[bytes]) -> None:
        """Keep in memory what the disk refuses, as far as it goes."""
        room = _HELD_BYTES - sum(map(len, self._held))
        for number, row in enumerate(rows):
            room -= len(row)
            if room < 0:
                self._lose(len(rows) - number, "neither the database nor the disk takes them")
                return
            self._held.append(row)

    @property
    def _set_aside(self) -> bool:
        """Are there records that the database did not take when they came?"""
        return bool(self._held) or not self._spill.empty

    async def _replay(self) -> bool:
        """Bring what was set aside into the database; False when it does not take it now.

        The first piece is also the probe that ends an outage.
        """
        aside, self._aside = self._aside, 0
        try:
            while held := self._held[:_REPLAY_CHUNK]:
                async with asyncio.timeout(self._settings.log_timeout):
                    await self._append_once(held, ())
                del self._held[: len(held)]
        except _Refused as exc:
            self._aside += aside
            self._note_outage(exc)
            return False
        for segment in await asyncio.to_thread(self._spill.segments):
            try:
                if not await self._replay_segment(segment):
                    return True
            except _Refused as exc:
                self._aside += aside
                self._note_outage(exc)
                return False
            except OSError as exc:
                log.error(
                    "a spill segment cannot be read; it stays for the next start", path=str(segment), error=str(exc)
                )
                self._spill.leave(segment)
        self._note_settled(aside)
        if self._outage:
            self._outage = False
            log.info("call records are written again", spilled=self.counts.spilled, lost=self.counts.dropped)
        return True

    async def _replay_segment(self, segment: Path) -> bool:
        """False when closing came first: the segment stays, and rows that were written are not written twice."""
        rows = self._spill.read(segment)
        while chunk := await asyncio.to_thread(_chunk, rows):
            if self._closing:
                return False
            async with asyncio.timeout(self._settings.log_timeout):
                await self._append_once(chunk, ())
        await asyncio.to_thread(self._spill.done, segment)
        return True

    # One batch

    async def _encode(self, batch: Sequence[FinishedCall]) -> list[bytes]:
        rows: list[bytes] = []
        max_kb = self._settings.capture_max_kb
        for number, done in enumerate(batch, 1):
            try:
                given, returned = capture.kept(done.snapshot.capture, max_kb, done.call, done.result)
                rows.append(callrows.encode(self._prefix(done.snapshot), done, given, returned))
            except Exception as exc:  # one odd record must not take its batch with it
                self._lose(1, f"it cannot be encoded: {exc!r}")
            if number % _ENCODE_CHUNK == 0:
                await asyncio.sleep(0)
        return rows

    def _prefix(self, snapshot: FunctionSnapshot) -> bytes:
        key = (snapshot.function_id, snapshot.version)
        prefix = self._prefixes.get(key)
        if prefix is None:
            if len(self._prefixes) >= _MAX_PREFIXES:
                self._prefixes.clear()
            prefix = self._prefixes[key] = callrows.version_prefix(snapshot)
        return prefix

    async def _store_rows(self, rows: Sequence[bytes], functions: Collection[str]) -> None:
        """Write, three times if need be. Only the first try may use the plain way: a later one may repeat a write
        whose answer was lost."""
        async for attempt in AsyncRetrying(
            stop=self._give_up,
            wait=wait_exponential(0.1, max=1),
            retry=retry_if_exception_type(_Refused),
            reraise=True,
        ):
            with attempt:
                try:
                    async with asyncio.timeout(self._settings.log_timeout):
                        if attempt.retry_state.attempt_number == 1:
                            await self._append(rows, functions)
                        else:
                            await self._append_once(rows, functions)
                except _Refused:
                    self.counts.flush_failures += 1
                    raise

    def _give_up(self, state: RetryCallState) -> bool:
        return self._closing or stop_after_attempt(TRIES)(state)

    async def _append(self, rows: Sequence[bytes], functions: Collection[str]) -> None:
        try:
            await self._store.append(rows, functions)
        except psycopg.Error:
            await self._append_once(rows, functions)
        else:
            self.counts.written += len(rows)

    async def _append_once(self, rows: Sequence[bytes], functions: Collection[str]) -> None:
        try:
            await self._store.append_once(rows, functions)
        except psycopg.Error as exc:
            if len(rows) == 1:
                self._lose(1, f"the database refuses it: {str(exc).strip()}")
                return
            middle = len(rows) // 2
            await self._append_once(rows[:middle], functions)
            await self._append_once(rows[middle:], functions)
        else:
            self.counts.written += len(rows)

    # Book-keeping

    def _note_outage(self, exc: BaseException) -> None:
        if not self._outage:
            self._outage = True
            log.warning("call records go to disk until the database is back", error=str(exc))
        for _, done in self._settlers:
            if not done.done():
                done.set_result(None)
        self._settlers = []

    def _note_settled(self, count: int) -> None:
        self._settled += count
        still = []
        for target, done in self._settlers:
            if target > self._settled:
                still.append((target, done))
            elif not done.done():
                done.set_result(None)
        self._settlers = still

    def _lose(self, count: int, why: str) -> None:
        if self.counts.dropped == 0 or count > 1:
            log.error("call records are lost", count=count, reason=why)
        self.counts.dropped += count


def _chunk(rows: Iterator[bytes]) -> list[bytes]:
    return list(islice(rows, _REPLAY_CHUNK))


async def _wait(event: asyncio.Event, timeout_s: float | None) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
