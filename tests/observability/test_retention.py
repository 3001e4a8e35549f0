"""What is past its time goes, from every table that grows; what is not stays."""

import asyncio
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from psycopg.types.json import Jsonb

from nova.config import Settings
from nova.errors import NovaError
from nova.ids import new_id
from nova.observability import retention
from nova.observability.retention import BATCH, BEHIND_S, DAYS_AHEAD, INTERVAL_S, SLOW_S, Retention, Rule, rules
from nova.store.db import Database
from nova.store.invocations import InvocationStore
from tests.events.support import id_at
from tests.execution.fakes import make_snapshot
from tests.mock_clock import MockClock, settle
from tests.observability.records import Free, row, write

pytestmark = pytest.mark.anyio
HELLO = make_snapshot("hello", function_id=new_id())


class Watched:
    """The duty on a clock of its own, and what it says that went."""

    def __init__(self, database: Database, more: list[Rule] | None = None) -> None:
        self.clock = MockClock()
        self.settings = Settings()
        self.told: dict[str, int] = {}
        self.store = InvocationStore(database)
        own = rules(self.settings, database)
        self.duty = Retention([*own, *(more or [])], self.store, self.settings, self._deleted, self.clock)

    def _deleted(self, table: str, rows: int) -> None:
        self.told[table] = self.told.get(table, 0) + rows

    def ago(self, **span: float) -> datetime:
        return self.clock.now() - timedelta(**span)


async def _series(database: Database, table: str, *buckets: datetime) -> None:
    for bucket in buckets:
        await database.run(
            f"INSERT INTO {table} VALUES ('default', 'default', %(id)s, %(bucket)s, 1, 'f', 1, 0, 0, 1, 1, 1, '{{1}}', 0)",
            id=HELLO.function_id,
            bucket=bucket,
        )


async def _ages(database: Database, table: str, column: str) -> list[Any]:
    return [found["at"] for found in await database.fetch(f"SELECT {column} AS at FROM {table} ORDER BY 1")]


async def test_each_table_keeps_what_its_setting_says(database: Database) -> None:
    watched = Watched(database)
    ago = watched.ago
    await _series(database, "metrics_minute", ago(days=8), ago(days=7, minutes=1), ago(days=6))
    await _series(database, "metrics_hour", ago(days=401), ago(days=399))
    for age in (ago(hours=25), ago(hours=23)):
        await database.run(
            "INSERT INTO trace_spans (tenant_id, namespace, trace_id, span_id, name, plane, node, started_at, duration_us)"
            " VALUES ('default', 'default', 't', %(id)s, 'n', 'comet', 'a', %(at)s, 1)",
            id=new_id(),
            at=age,
        )
    for age in (ago(days=366), ago(days=364)):
        await database.run(
            "INSERT INTO audit_logs (id, created_at, tenant_id, namespace, actor, action, resource, outcome, request_id)"
            " VALUES (%(id)s, %(at)s, 'default', 'default', 'a', 'x', 'r', 'success', 'q')",
            id=new_id(),
            at=age,
        )
    for age in (ago(hours=2), ago(minutes=30)):
        await database.run(
            "INSERT INTO cluster_nodes (id, plane, name, address, info, lease_until)"
            " VALUES (%(id)s, 'comet', 'a', 'a:1', %(info)s, %(at)s)",
            id=new_id(),
            info=Jsonb({}),
            at=age,
        )
    await watched.duty.round()
    assert await _ages(database, "metrics_minute", "bucket") == [ago(days=6)]
    assert await _ages(database, "metrics_hour", "bucket") == [ago(days=399)]
    assert await _ages(database, "trace_spans", "started_at") == [ago(hours=23)]
    assert await _ages(database, "audit_logs", "created_at") == [ago(days=364)]
    assert await _ages(database, "cluster_nodes", "lease_until") == [ago(minutes=30)]
    assert watched.told == {
        "metrics_minute": 2, "metrics_hour": 1, "trace_spans": 1, "audit_logs": 1, "cluster_nodes": 1,
    }  # fmt: skip


async def test_history_of_schedules_and_keys_that_expired(database: Database) -> None:
    watched = Watched(database)
    ago = watched.ago
    async with database.transaction() as conn:
        await conn.run("SET LOCAL session_replication_role = replica")  # the schedule itself does not matter here
        for status, at in (("fired", ago(days=31)), ("queued", ago(days=31)), ("missed", ago(days=29))):
            await conn.run(
                "INSERT INTO schedule_runs (schedule_id, scheduled_for, status) VALUES (%(id)s, %(at)s, %(status)s)",
                id=new_id(),
                at=at,
                status=status,
            )
        for key, state, expires, lease in (
            ("gone", "done", ago(minutes=1), None),
            ("valid", "done", ago(minutes=-1), None),
            ("orphan", "running", ago(minutes=1), ago(seconds=1)),
            ("alive", "running", ago(minutes=1), ago(seconds=-20)),
        ):
            await conn.run(
                "INSERT INTO idempotency_keys (tenant_id, namespace, realm, key, request_hash, state, subject,"
                " lease_until, expires_at)"
                " VALUES ('default', 'default', 'r', %(key)s, '', %(state)s, %(id)s, %(lease)s, %(expires)s)",
                key=key,
                state=state,
                id=new_id(),
                lease=lease,
                expires=expires,
            )
    await watched.duty.round()
    assert await _ages(database, "schedule_runs", "status") == ["missed", "queued"]
    assert await _ages(database, "idempotency_keys", "key") == ["alive", "valid"]
    assert watched.told == {"schedule_runs": 1, "idempotency_keys": 2}


async def test_finished_jobs_and_deliveries_go_and_dead_ones_later(database: Database) -> None:
    watched = Watched(database)
    ago = watched.ago
    for status, at in (
        ("succeeded", ago(days=8)),
        ("succeeded", ago(days=6)),
        ("cancelled", ago(days=8)),
        ("dlq", ago(days=8)),
        ("dlq", ago(days=31)),
        ("queued", None),
    ):
        await database.run(
            "INSERT INTO async_invocations (id, tenant_id, namespace, function_id, function_name, payload, status,"
            " max_attempts, backoff_base_ms, backoff_max_ms, max_age_s, source, caller, finished_at, error)"
            " VALUES (%(id)s, 'default', 'default', %(id)s, 'f', '{}', %(status)s, 3, 1, 1, 1, 'api', 'o', %(at)s, '{}')",
            id=id_at(at or ago(days=40)),
            status=status,
            at=at,
        )
    for status, at in (("delivered", ago(days=8)), ("dead", ago(days=8)), ("dead", ago(days=31)), ("pending", None)):
        await database.run(
            "INSERT INTO event_outbox (id, tenant_id, namespace, source, function_id, target_type, target, caller,"
            " event, status, finished_at)"
            " VALUES (%(id)s, 'default', 'default', gen_random_uuid()::text, %(id)s, 'webhook', 'x', 'o', '{}',"
            " %(status)s, %(at)s)",
            id=new_id(),
            status=status,
            at=at,
        )
    await watched.duty.round()
    assert await _ages(database, "async_invocations", "status") == ["dlq", "queued", "succeeded"]
    assert await _ages(database, "event_outbox", "status") == ["dead", "pending"]
    assert watched.told == {"async_invocations": 3, "event_outbox": 2}


async def test_a_setting_that_is_changed_acts_in_the_next_round(database: Database) -> None:
    watched = Watched(database)
    await _series(database, "metrics_minute", watched.ago(days=3))
    await watched.duty.round()
    assert watched.told == {}
    watched.settings.retention.metrics_minute_days = 2
    await watched.duty.round()
    assert watched.told == {"metrics_minute": 1}


async def test_call_records_go_by_days_and_partitions_are_ready(database: Database) -> None:
    """OB6: captured output is deleted on schedule."""
    watched = Watched(database)
    today = watched.clock.now().date()
    await watched.store.prepare_days(today - timedelta(days=40), 50)
    await write(watched.store, [row(HELLO, watched.ago(days=days)) for days in (0, 29, 30, 31, 31, 39)])
    await watched.duty.round()
    assert watched.told == {"invocation_logs": 3}
    assert len(await _ages(database, "invocation_logs", "created_at")) == 3
    names = [found["name"] for found in await database.fetch(
        "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'invocation_logs'::regclass"
    )]  # fmt: skip
    assert f"invocation_logs_{today + timedelta(days=DAYS_AHEAD):%Y%m%d}" in names
    watched.settings.executor.log_retention_days = 7
    await watched.duty.round()
    assert watched.told == {"invocation_logs": 5}


async def test_old_builds_go_unless_a_version_names_them(database: Database) -> None:
    watched = Watched(database)
    await database.run(
        "INSERT INTO functions (id, tenant_id, namespace, name, data, etag, created_by)"
        " VALUES (%(id)s, 'default', 'default', 'hello', '{}', 'e', 'test')",
        id=HELLO.function_id,
    )
    for days in (40, 31, 29):
        await database.run(
            "INSERT INTO builds (id, tenant_id, namespace, function_id, version, cache_key, status, finished_at)"
            " VALUES (%(id)s, 'default', 'default', %(function)s, 1, 'k', 'failed',"
            " now() - make_interval(days => %(days)s))",
            id=new_id(),
            function=HELLO.function_id,
            days=days,
        )
    await watched.duty.round()
    assert watched.told == {"builds": 2}


async def test_many_rows_go_in_batches_and_one_table_that_fails_stops_no_other(database: Database) -> None:
    left = [2 * BATCH + 5]
    limits: list[int] = []

    async def sweep(_now: datetime, limit: int) -> int:
        limits.append(limit)
        gone = min(limit, left[0])
        left[0] -= gone
        return gone

    async def broken(_now: datetime, _limit: int) -> int:
        raise NovaError("dependency_unavailable", "away")

    watched = Watched(database, [Rule("broken", broken), Rule("crowded", sweep)])
    await watched.duty.round()
    assert (left, limits) == ([0], [BATCH] * 3)
    assert watched.told == {"crowded": 2 * BATCH + 5}


async def test_one_table_does_not_keep_the_others_waiting(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MAX_BATCHES", 3)
    rounds: list[str] = []

    async def endless(_now: datetime, limit: int) -> int:
        rounds.append("endless")
        return limit

    async def other(_now: datetime, _limit: int) -> int:
        rounds.append("other")
        return 0

    watched = Watched(database, [Rule("endless", endless), Rule("other", other)])
    await watched.duty.round()
    assert rounds == ["endless"] * 3 + ["other"]


async def test_it_goes_on_by_itself(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(database)
    rounds: list[Any] = []

    async def once() -> None:
        rounds.append(watched.clock.now())

    monkeypatch.setattr(watched.duty, "round", once)
    work = asyncio.create_task(watched.duty.lead(Free()))
    try:
        await settle()
        await watched.clock.advance(INTERVAL_S * 3)
        assert len(rounds) == 4
    finally:
        work.cancel()


async def test_a_table_that_is_behind_is_gone_on_with_at_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MAX_BATCHES", 3)
    left = [5 * BATCH]

    async def sweep(_now: datetime, limit: int) -> int:
        gone = min(limit, left[0])
        left[0] -= gone
        return gone

    watched = Watched(database)
    duty = Retention([Rule("crowded", sweep)], watched.store, watched.settings, lambda table, rows: None, watched.clock)
    await watched.duty.round()  # the days are tended: what follows waits for the clock alone
    duty._tended = watched.duty._tended
    work = asyncio.create_task(duty.lead(Free()))
    try:
        await watched.clock.advance(0)
        assert left == [2 * BATCH]
        await watched.clock.advance(BEHIND_S)
        assert left == [0]
    finally:
        work.cancel()


async def test_a_statement_that_takes_long_is_followed_by_a_pause_and_a_smaller_one(database: Database) -> None:
    watched = Watched(database)
    limits: list[int] = []

    async def slow(_now: datetime, limit: int) -> int:
        limits.append(limit)
        await watched.clock.sleep(SLOW_S * 2)
        return limit if len(limits) < 3 else 0

    duty = Retention([Rule("slow", slow)], watched.store, watched.settings, lambda table, rows: None, watched.clock)
    await watched.duty.round()
    duty._tended = watched.duty._tended
    work = asyncio.create_task(duty.round())
    began = watched.clock.monotonic()
    while not work.done() and watched.clock.monotonic() < began + 60:
        await watched.clock.advance(SLOW_S)
    assert not await work
    assert limits == [BATCH, BATCH // 2, BATCH // 4]
    assert watched.clock.monotonic() - began >= SLOW_S * 2 * 5


class _Overheard:
    """Stands where the database does, and keeps what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def run(self, sql: str, /, **params: Any) -> int:
        self.asked.append((sql, params))
        return 0

    async def one(self, sql: str, /, **params: Any) -> None:
        self.asked.append((sql, params))


_PAST = {
    "event_deliveries": "INSERT INTO event_deliveries (subscription_id, sequence, generation, tenant_id, namespace, topic_id,"
    " status, attempts, replay, ended_at) SELECT %(id)s, n, 0, 'default', 'default', %(id)s, 'succeeded', 1, false,"
    " %(old)s - make_interval(secs => n) FROM generate_series(1, 10000) n",
    "event_dedup": "INSERT INTO event_dedup (topic_id, key, message_id, sequence, expires_at)"
    " SELECT %(id)s, int4send(n), %(id)s, n, %(old)s FROM generate_series(1, 10000) n",
    "trace_spans": "INSERT INTO trace_spans (tenant_id, namespace, trace_id, span_id, name, plane, node, started_at, duration_us)"
    " SELECT 'default', 'default', 't', n::text, 'n', 'comet', 'a', %(old)s, 1 FROM generate_series(1, 10000) n",
    "audit_logs": "INSERT INTO audit_logs (id, created_at, tenant_id, namespace, actor, action, resource, outcome, request_id)"
    " SELECT gen_random_uuid(), %(old)s, 't' || n %% 2, 'default', 'a', 'x', 'r', 'success', 'q'"
    " FROM generate_series(1, 10000) n",
}


async def test_no_batch_reads_a_table_from_its_beginning(database: Database) -> None:
    """It would read again, each time, all that the batches before it have emptied and nobody has cleaned up yet."""
    overheard = _Overheard()
    planned = {rule.table: rule.sweep for rule in rules(Settings(), cast(Database, overheard))}
    swept = {rule.table: rule.sweep for rule in rules(Settings(), database)}
    now = MockClock().now()
    for table, past in _PAST.items():
        await database.run(past, id=new_id(), old=now - timedelta(days=800))
        await database.run(f"ANALYZE {table}")
        overheard.asked.clear()
        await planned[table](now, 100)
        for sql, params in overheard.asked:
            plan = [row["QUERY PLAN"] for row in await database.fetch(f"EXPLAIN {sql}", **params)]
            assert not [line for line in plan if f"Seq Scan on {table}" in line], plan
        assert [await swept[table](now, 9_000) for _ in range(3)] == (
            [9_000, 1_000, 0] if table != "event_dedup" else [10_000, 0, 0]
        )
