"""Advances runs: work of kind ``run``. Whoever claims a run loads it, lets its machine say what is to be done, writes each
moment in one transaction under its lease, and then does it.

A run that only waits is given back until its earliest timer, or until it is told something: it holds no worker. A function may
be called twice when its process dies; what a node came to is written once, and a node that has ended is never begun again.
"""

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from datetime import datetime

import structlog

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.ports import Invoker
from nova.domain.workflows.state import Failure, Step
from nova.errors import NovaError
from nova.events.workflows.calling import Calls, failure_of
from nova.events.workflows.definitions import Definitions
from nova.events.workflows.live import Live, ended_run, machine_of
from nova.events.workflows.observers import NoEvents, RunEvents
from nova.events.workflows.writing import Writer
from nova.store.db import Database
from nova.store.listen import Channel
from nova.store.workflow_runs import KIND, ClaimedRun, RunStore
from nova.store.workflow_signals import SignalStore, Told, tell
from nova.store.workflow_writes import RunWrite, Written
from nova.work.notices import Notices
from nova.work.queue import WorkItem
from nova.work.runner import Claimed, Kind, Notifications

log = structlog.get_logger(__name__)
MAX_LOST = 20
"""Processes that failed or died, one after the other, while they had the run; then it is given up."""
_KEPT = 256
"""Runs that wait and that this process can go on with without reading them again."""
_LOOK_S = 10.0
"""How often a run that is worked on is asked for what it was told, should the notification be lost."""
_NOTIFY_S = 0.1
"""Between two notices that one run has changed."""


class Engine:
    """The handler of work of kind ``run``. ``kind`` makes the row for a :class:`~nova.work.runner.Runner`."""

    def __init__(
        self,
        db: Database,
        invoker: Invoker,
        notices: Notices,
        notifications: Notifications,
        *,
        max_items: Callable[[], int],
        max_depth: Callable[[], int],
        events: RunEvents | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._db = db
        self._store = RunStore(db)
        self._signals = SignalStore(db)
        self._definitions = Definitions(self._store)
        self._calls = Calls(invoker, clock)
        self._writer = Writer(db, notices)
        self._notices = notices
        self._max_items = max_items
        self._max_depth = max_depth
        self._events = events or NoEvents()
        self._clock = clock
        self._live: dict[str, Live] = {}
        self._kept: OrderedDict[str, Live] = OrderedDict()
        notifications.on(Channel.RUNS, self._on_told)
        notifications.on_reconnect(self._all_told)

    def kind(self, workers: Callable[[], int]) -> Kind:
        return Kind(self, workers, max_attempts=None, claim=self.claim, backoff_max_s=10)

    async def start(self) -> None:
        await self._writer.start()

    async def close(self) -> None:
        """After the runner."""
        await self._writer.close()

    async def claim(self, owner: str, batch: int, lease_s: float) -> Claimed:
        runs, more = await self._store.claim(owner, batch, lease_s)
        return Claimed([_item(run, owner) for run in runs], more)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        raise AssertionError("runs count their attempts themselves")

    async def run(self, item: WorkItem) -> None:
        """Advance a run until it ends or only waits. Raises :class:`LeaseLost` when it was taken over."""
        claimed: ClaimedRun = item.noun
        live = await self._load(claimed, item.owner)
        if live is None:
            return
        self._live[claimed.id] = live
        try:
            await self._advance(live)
        finally:
            if self._live.get(claimed.id) is live:  # not that of a later claim by this process
                del self._live[claimed.id]
            await _cancel(list(live.tasks.values()))

    # Taking it up

    async def _load(self, claimed: ClaimedRun, owner: str) -> Live | None:
        kept = self._kept.pop(claimed.id, None)
        if claimed.attempt > MAX_LOST:
            error = Failure("Nova.WorkerLost", f"{MAX_LOST} attempts to advance the run were lost")
            log.error("a run is given up", run=claimed.id, attempts=claimed.attempt)
            await self._writer.commit(RunWrite(claimed, owner, status="failed", error=error.encoded(), then="finish"))
            return None
        if claimed.status == "pending":
            return await self._not_yet(claimed, owner)
        if kept is not None and _same(kept.claimed, claimed):
            kept.claimed, kept.owner, kept.told = claimed, owner, claimed.told
            return kept
        definition = await self._definitions.get(claimed.workflow_id, claimed.version)
        machine = machine_of(definition, claimed, max_items=self._max_items(), max_depth=self._max_depth())
        live = Live(claimed, owner, machine)
        now = self._clock.now()
        live.begin(await self._store.nodes(claimed.id) if claimed.begun else [], now)
        if machine.board.runs:
            await self._missing(live, now)
        return live

    async def _not_yet(self, claimed: ClaimedRun, owner: str) -> Live | None:
        """The run waits for its turn; all it can be told is to end."""
        told = await self._signals.read(claimed.id, seen=0)
        cancel = next((one for one in told if one.kind == "cancel"), None)
        write = RunWrite(claimed, owner, then="release", seen=max((one.no for one in told), default=0))
        if cancel is not None:
            error = Failure("Nova.Cancelled", payload.decode(cancel.payload)["reason"] or "cancelled")
            write = RunWrite(
                claimed, owner, status="cancelled", error=error.encoded(), consumed=[cancel.id], then="finish"
            )
        elif self._clock.now() >= claimed.deadline_at:
            error = Failure("Nova.Timeout", "the run did not end in its time")
            write = RunWrite(claimed, owner, status="timed_out", error=error.encoded(), then="finish")
        else:
            write.wake_s = (claimed.deadline_at - self._clock.now()).total_seconds()
        await self._writer.commit(write)
        return None

    async def _missing(self, live: Live, now: datetime) -> None:
        """Runs below this one that never began: they were refused, and the process died before it wrote so."""
        there = await self._store.children(live.claimed.id)
        for run_id, ref in list(live.machine.board.runs.items()):
            if run_id not in there and not any(start.run_id == run_id for start in live.machine.board.step.runs):
                live.machine.run_refused(ref, Failure("Nova.NotStarted", "the run below could not begin"), now)

    # Advancing it

    async def _advance(self, live: Live) -> None:
        machine = live.machine
        while True:
            if live.told:
                await self._read(live)
            while live.ended:
                call, end = live.ended.popleft()
                machine.call_ended(call.ref, call.purpose, end, self._clock.now())
            machine.tick(self._clock.now())
            if await self._moment(live):
                return
            await self._something(live)

    async def _moment(self, live: Live) -> bool:
        """Write what there is and do it. True: this process is done with the run."""
        machine = live.machine
        step = machine.take()
        for run_id in step.cancelled_runs:
            await self._cancel_below(live, run_id)
        idle = machine.ended is None and not machine.busy and not step.calls and not live.told
        if step.writes or machine.ended is not None or idle:
            write = live.write(step)
            if idle:
                write.then = "release"
                write.wake_s = self._until(machine.next_alarm)
            written = await self._writer.commit(write)
            self._count(live, step)
            if write.then == "finish":
                return True
            if not self._refused(live, written) and idle:
                self._keep(live)
                return True
        await self._drop(live, step)
        live.queued.extend(step.calls)
        self._calls.begin(live)
        return False

    def _refused(self, live: Live, written: Written) -> bool:
        """Some runs below this one could not begin; then it was not given back."""
        found = False
        for run_id, error in written.refused.items():
            ref = live.machine.board.runs.get(run_id)
            if ref is not None:
                live.machine.run_refused(ref, failure_of(error), self._clock.now())
                live.heard.set()
                found = True
        return found

    async def _drop(self, live: Live, step: Step) -> None:
        """Cancel calls that are not wanted any more, and wait until they are gone: what undoes them must come after."""
        if not step.cancelled_calls:
            return
        dropped = set(step.cancelled_calls)
        live.queued = deque(call for call in live.queued if call.ref not in dropped)
        await _cancel([task for ref in dropped if (task := live.tasks.pop((ref, "call"), None)) is not None])

    def _keep(self, live: Live) -> None:
        """It will be told something soon, most likely here."""
        live.heard.clear()
        self._kept[live.claimed.id] = live
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)

    def _count(self, live: Live, step: Step) -> None:
        run, ended = live.claimed, live.machine.ended
        for ref in step.changed:
            state = live.machine.board.state(ref)
            if state.ended:
                self._events.node_ended(state.status)
        if ended is not None:
            self._events.run_ended(run.scope, run.workflow, ended.status)
        if ended is not None or self._clock.monotonic() - live.notified > _NOTIFY_S:
            live.notified = self._clock.monotonic()
            self._notices.tell(Channel.RUNS, json.dumps({"run": run.id}))

    def _until(self, alarm: datetime | None) -> float | None:
        return None if alarm is None else max(0.0, (alarm - self._clock.now()).total_seconds())

    async def _something(self, live: Live) -> None:
        """Wait until something happened, or is due."""
        until = self._until(live.machine.next_alarm)
        try:
            async with asyncio.timeout(_LOOK_S if until is None else min(until, _LOOK_S)):
                await live.heard.wait()
        except TimeoutError:
            live.told = live.told or until is None or until > _LOOK_S
        live.heard.clear()

    # What it was told

    def _on_told(self, message: str) -> None:
        if not self._live or '"told"' not in message:
            return
        live = self._live.get(json.loads(message)["run"])
        if live is not None:
            live.told = True
            live.heard.set()

    def _all_told(self) -> None:
        """Notifications may have been missed."""
        for live in self._live.values():
            live.told = True
            live.heard.set()

    async def _read(self, live: Live) -> None:
        live.told = False
        for one in await self._signals.read(live.claimed.id, seen=live.seen):
            live.seen = one.no
            self._hear(live, one)

    def _hear(self, live: Live, told: Told) -> None:
        machine, now = live.machine, self._clock.now()
        match told.kind:
            case "event":
                machine.sent(told.key, told.payload, told.id, now)
            case "child":
                machine.run_ended(told.key, *ended_run(told.payload), told.id, now)
            case "message":
                machine.message(told.key, told.payload, told.id, now)
            case "approval":
                machine.decided(told.key, told.payload, told.id, now)
            case "cancel":
                asked = payload.decode(told.payload)
                machine.cancel(asked["reason"], asked["compensate"], told.id, now)
            case "pause":
                machine.pause(told.id)
            case "resume":
                machine.resume(told.id, now)

    async def _cancel_below(self, live: Live, run_id: str) -> None:
        told = payload.encode({"reason": f"the run above is cancelled: {live.claimed.id}", "compensate": True})
        try:
            async with self._db.transaction() as conn:
                await tell(conn, live.claimed.scope, run_id, "cancel", payload=told, sender=f"run:{live.claimed.id}")
        except NovaError as error:
            if error.code not in ("invalid_state", "not_found"):  # it has ended, or never began
                raise


def _item(run: ClaimedRun, owner: str) -> WorkItem:
    return WorkItem(run.id, KIND, run.scope, run.id, {}, run.attempt, run.fence, owner, noun=run)


def _same(kept: ClaimedRun, now: ClaimedRun) -> bool:
    """Has nobody else had the run since?"""
    return now.fence == kept.fence + 1 and now.generation == kept.generation


async def _cancel(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.gather(*tasks, return_exceptions=True)
