"""The duty that removes what is past its time, in whichever process is in charge of it.

Every table that grows has a :class:`Rule`. Deleting what is old is the same whoever does it, so a former leader that still
deletes does no harm; being led once only spares the database.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import Settings
from nova.errors import NovaError
from nova.observability.rollup import Fence
from nova.store.builds import BuildStore
from nova.store.bus_deliveries import DeliveryStore
from nova.store.bus_outbox import BusOutboxStore
from nova.store.db import Database
from nova.store.durable import DurableStore
from nova.store.invocations import InvocationStore
from nova.store.messages import MessageRetention
from nova.store.outbox import OutboxStore
from nova.store.retention import AgedTable, JobRetention, RetentionStore
from nova.store.state import StateStore
from nova.store.workflow_runs import RunStore

log = structlog.get_logger(__name__)
DUTY = "retention"
INTERVAL_S = 60.0
BATCH = 1000
MAX_BATCHES = 200
"""Of one table in one round, so that one table does not keep the others waiting."""
BEHIND_S = 1.0
"""Between two rounds as long as there is more than a round removes."""
SLOW_S, QUICK_S = 0.25, 0.05
"""A statement that takes longer removes half as many rows the next time, one that takes less twice as many, up to the batch."""
_SMALLEST = 10
_WITH_MANY = 50
"""Batch of what has rows of its own below it, up to thousands each."""
_MANY = 10
"""Messages come by thousands a second: so many batches of them go in one statement."""
DAYS_AHEAD = 2
"""Day partitions of the call records that are there before their day."""
NODE_KEPT_S = 3600.0
"""A process that fell silent is shown for this long after its lease."""

Sweep = Callable[[datetime, int], Awaitable[int]]
"""Takes the present and a limit; removes at most so many rows that are past their time and returns how many."""
Deleted = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Rule:
    """``sweep`` keeps one ``table`` in bounds."""

    table: str
    sweep: Sweep
    first: int = BATCH
    """The limit of the first batch; later ones go by the time that one takes."""


def rules(settings: Settings, db: Database) -> list[Rule]:
    """Every table but that of the call records. Settings are read in each round: they are hot."""
    kept = settings.retention
    store, builds, outbox = RetentionStore(db), BuildStore(db), OutboxStore(db)
    messages, bus_outbox, bus_deliveries = MessageRetention(db), BusOutboxStore(db), DeliveryStore(db)
    runs, durable = RunStore(db), DurableStore(db)
    jobs = JobRetention(db)
    states = StateStore(db, lambda: settings.limits.state_mb << 20)

    def aged(table: AgedTable, age: Callable[[], timedelta]) -> Rule:
        async def sweep(now: datetime, limit: int) -> int:
            return await store.delete(table, now - age(), limit=limit)

        return Rule(table, sweep)

    async def old_jobs(now: datetime, limit: int) -> int:
        return await jobs.delete(*ended(now), limit)

    async def old_deliveries(now: datetime, limit: int) -> int:
        return await outbox.delete_finished(*ended(now), limit)

    def ended(now: datetime) -> tuple[datetime, datetime]:
        """Before when what is well goes, and before when what is dead."""
        return now - timedelta(days=kept.async_days), now - timedelta(days=kept.dlq_days)

    async def old_messages(now: datetime, limit: int) -> int:
        return await messages.sweep(now, limit * _MANY)

    async def old_names(now: datetime, limit: int) -> int:
        return await messages.sweep_keys(now, limit * _MANY)

    async def published(now: datetime, limit: int) -> int:
        return await bus_outbox.delete_published(now - timedelta(days=kept.deliveries_days), limit)

    async def delivered(now: datetime, limit: int) -> int:
        done, dead = now - timedelta(days=kept.deliveries_days), now - timedelta(days=kept.dlq_days)
        return await bus_deliveries.delete_old(done, dead, limit)

    async def old_builds(_now: datetime, limit: int) -> int:
        return await builds.retire(older_than_s=kept.builds_days * 86_400, limit=limit)

    async def old_runs(now: datetime, limit: int) -> int:
        return await runs.delete_finished(now - timedelta(days=kept.runs_days), limit)

    async def old_executions(now: datetime, limit: int) -> int:
        return await durable.sweep(now - timedelta(days=kept.runs_days), limit)

    return [
        aged("metrics_minute", lambda: timedelta(days=kept.metrics_minute_days)),
        aged("metrics_hour", lambda: timedelta(days=kept.metrics_hour_days)),
        aged("trace_spans", lambda: timedelta(hours=kept.traces_hours)),
        aged("audit_logs", lambda: timedelta(days=kept.audit_days)),
        aged("cluster_nodes", lambda: timedelta(seconds=NODE_KEPT_S)),
        aged("schedule_runs", lambda: timedelta(days=kept.schedule_runs_days)),
        aged("idempotency_keys", timedelta),  # at their own expiry
        Rule("function_state", states.sweep),  # at its own expiry
        Rule("async_invocations", old_jobs),
        Rule("event_outbox", old_deliveries),
        Rule("event_messages", old_messages),  # as each topic says
        Rule("event_dedup", old_names),  # at their own expiry
        Rule("bus_outbox", published),
        Rule("event_deliveries", delivered),
        Rule("dag_runs", old_runs, _WITH_MANY),
        Rule("durable_executions", old_executions, _WITH_MANY),
        Rule("builds", old_builds),
    ]


class Retention:
    """``lead`` is the work of a :class:`nova.work.leader.Duty`; ``deleted(table, rows)`` hears what went.

    The call records are kept in one partition per day: those of the next days are made here, and whole days dropped. Between two
    batches passes as much time as the first of them took, so that the database has at least half of its time for others.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        invocations: InvocationStore,
        settings: Settings,
        deleted: Deleted,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._rules = rules
        self._invocations = invocations
        self._settings = settings
        self._deleted = deleted
        self._clock = clock
        self._tended: tuple[datetime, int] | None = None
        self._limits = {rule.table: rule.first for rule in rules}
        self._behind = False

    async def lead(self, fence: Fence) -> None:
        """Until cancelled; waits while the database does not answer."""
        while True:
            behind = await self.round()
            await self._clock.sleep(BEHIND_S if behind else INTERVAL_S)

    async def round(self) -> bool:
        """Everything once; is there more? A table that cannot be cleared does not keep the others from it."""
        self._behind = False
        await self._guarded("invocation_logs", self._call_records)
        for rule in self._rules:
            await self._guarded(rule.table, lambda rule=rule: self._swept(rule))  # type: ignore[misc]
        return self._behind

    async def _guarded(self, table: str, clear: Callable[[], Awaitable[int]]) -> None:
        try:
            rows = await clear()
        except NovaError as error:
            log.warning("retention waits for the database", table=table, error=error.detail)
            return
        if rows:
            log.info("old rows removed", table=table, rows=rows)

    async def _swept(self, rule: Rule) -> int:
        total = 0
        for _ in range(MAX_BATCHES):
            limit, began = self._limits[rule.table], self._clock.monotonic()
            gone = await rule.sweep(self._clock.now(), limit)
            took = self._clock.monotonic() - began
            self._limits[rule.table] = _next_limit(limit, took)
            if gone:
                self._deleted(rule.table, gone)
            total += gone
            if gone < limit:
                return total
            if took:
                await self._clock.sleep(took)
        self._behind = True
        return total

    async def _call_records(self) -> int:
        """Once for each day and setting: nothing changes in between."""
        now = self._clock.now()
        days = self._settings.executor.log_retention_days
        today = (now.replace(hour=0, minute=0, second=0, microsecond=0), days)
        if self._tended == today:
            return 0
        await self._invocations.prepare_days(now.date(), DAYS_AHEAD)
        _, rows = await self._invocations.purge(now.date() - timedelta(days=days))
        self._tended = today
        if rows:
            self._deleted("invocation_logs", rows)
        return rows


def _next_limit(limit: int, took_s: float) -> int:
    if took_s > SLOW_S:
        return max(_SMALLEST, limit // 2)
    return min(BATCH, limit * 2) if took_s < QUICK_S else limit
