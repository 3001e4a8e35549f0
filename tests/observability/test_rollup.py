"""Roll-ups: each record counted once, whenever it arrives and whoever dies, and the numbers are those of the records."""

import asyncio
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.ids import new_id
from nova.observability import rollup
from nova.observability.rollup import INTERVAL_S, Rollup
from nova.service import ServiceGroup
from nova.store.db import Connection, Database, Row
from nova.store.invocations import InvocationStore
from nova.store.listen import Listener
from nova.store.series import NAMESPACE, SeriesStore
from nova.work.leader import Duty, Leases
from nova.work.queue import LeaseLost
from tests.execution.fakes import make_snapshot
from tests.execution.finished import boom
from tests.mock_clock import MockClock, settle
from tests.observability.records import Free, row, unfenced, write

pytestmark = pytest.mark.anyio
HELLO = make_snapshot("hello", function_id=new_id())
OTHER = make_snapshot("other", function_id=new_id())
AT = datetime(2026, 11, 20, 10, 30, 20, tzinfo=UTC)


async def _rows(database: Database, table: str, function_id: str | UUID) -> list[Row]:
    return await database.fetch(
        f"SELECT * FROM {table} WHERE function_id = %(id)s ORDER BY bucket, version", id=str(function_id)
    )


async def _count(database: Database, function_id: str | UUID = NAMESPACE, table: str = "metrics_minute") -> int:
    return sum(found["invocations"] for found in await _rows(database, table, function_id))


async def test_minutes_and_hours_have_what_the_records_say(database: Database) -> None:
    store, series = InvocationStore(database), SeriesStore(database)
    await write(
        store,
        [
            row(HELLO, AT, 10),
            row(HELLO, AT + timedelta(seconds=30), 30, error=boom()),
            row(HELLO, AT + timedelta(minutes=1), 50, cold_start=True),
            row(HELLO, AT + timedelta(hours=1), 1),
            row(OTHER, AT, 7),
        ],
    )
    assert await series.roll_up(unfenced, limit=100)

    minutes = await _rows(database, "metrics_minute", HELLO.function_id)
    assert [(m["bucket"].minute, m["invocations"], m["errors"], m["cold_starts"]) for m in minutes] == [
        (30, 2, 1, 0),
        (31, 1, 0, 1),
        (30, 1, 0, 0),
    ]
    first = minutes[0]
    assert (first["duration_sum_ms"], first["duration_min_ms"], first["duration_max_ms"]) == (40, 10, 30)
    assert (first["function_name"], first["version"], sum(first["durations"])) == ("hello", 1, 2)
    hours = await _rows(database, "metrics_hour", HELLO.function_id)
    assert [(h["bucket"].hour, h["invocations"], h["duration_max_ms"]) for h in hours] == [(10, 3, 50), (11, 1, 1)]
    assert await _count(database, OTHER.function_id) == 1
    assert await _count(database) == 5


async def test_gigabyte_seconds_come_from_the_version_s_memory(database: Database) -> None:
    await database.run(
        "INSERT INTO functions (id, tenant_id, namespace, name, data, etag, created_by)"
        " VALUES (%(id)s, 'default', 'default', 'hello', '{}', 'e', 'test')",
        id=HELLO.function_id,
    )
    await database.run(
        "INSERT INTO function_versions (function_id, version, data, code_hash, code_size, created_by)"
        """ VALUES (%(id)s, 1, '{"limits": {"memory_mb": 512}}', 'x', 1, 'test')""",
        id=HELLO.function_id,
    )
    await write(InvocationStore(database), [row(HELLO, AT, 4000), row(HELLO, AT, 2000)])
    await SeriesStore(database).roll_up(unfenced, limit=100)
    assert [found["gb_seconds"] for found in await _rows(database, "metrics_hour", HELLO.function_id)] == [3.0]


async def test_records_that_come_late_or_in_pieces_are_added_once(database: Database) -> None:
    """Batches, writers in between, a spill file that is replayed, records of days ago."""
    store, series = InvocationStore(database), SeriesStore(database)
    await write(store, [row(HELLO, AT, 1 + number) for number in range(25)])
    while await series.roll_up(unfenced, limit=10):
        pass
    late = [row(HELLO, AT - timedelta(days=3), 5), row(HELLO, AT, 5)]
    await store.append_once(late, ())
    await series.roll_up(unfenced, limit=10)
    await store.append_once(late, ())  # replayed again after a crash
    assert await series.roll_up(unfenced, limit=10) == 0
    assert await _count(database) == 27
    assert await _count(database, table="metrics_hour") == 27
    minutes = await _rows(database, "metrics_minute", NAMESPACE)
    assert [(found["bucket"].day, found["invocations"]) for found in minutes] == [(17, 1), (20, 26)]
    assert sum(minutes[1]["durations"]) == 26


async def test_two_at_once_count_nothing_twice(database: Database) -> None:
    store, series = InvocationStore(database), SeriesStore(database)
    for part in range(8):
        await write(store, [row(HELLO, AT + timedelta(minutes=part), 5) for _ in range(50)])

    async def roll_up() -> None:
        while await series.roll_up(unfenced, limit=30):
            await asyncio.sleep(0)

    await asyncio.gather(roll_up(), roll_up(), roll_up())
    assert await _count(database) == await _count(database, HELLO.function_id) == 400


async def test_who_lost_the_lease_adds_nothing(database: Database) -> None:
    store, series = InvocationStore(database), SeriesStore(database)
    await write(store, [row(HELLO, AT)])

    async def lost(_conn: Connection) -> None:
        raise LeaseLost("rollup")

    with pytest.raises(LeaseLost):
        await series.roll_up(lost, limit=10)
    assert await _count(database) == 0
    await series.roll_up(unfenced, limit=10)
    assert await _count(database) == 1


_CHILD = """
import asyncio, sys
from nova.store.db import Database
from nova.store.series import SeriesStore
async def free(conn): pass
async def main():
    async with Database(sys.argv[1], min_conns=1, max_conns=2) as db:
        print("ready", flush=True)
        while True:
            await SeriesStore(db).roll_up(free, limit=7)
asyncio.run(main())
"""


async def test_killed_at_any_moment_it_has_counted_each_record_once(database: Database, tmp_path: Path) -> None:
    """SIGKILL in the middle of its work, several times; what is left to do is done by the next."""
    store, series = InvocationStore(database), SeriesStore(database)
    total = 0
    for kill_after in (0.0, 0.05, 0.15):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _CHILD, database.dsn, stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        assert await asyncio.wait_for(child.stdout.readline(), 20) == b"ready\n"
        for _ in range(5):
            await write(store, [row(HELLO, AT, 5) for _ in range(20)])
            total += 20
        await asyncio.sleep(kill_after)
        child.kill()
        await child.wait()
    while await series.roll_up(unfenced, limit=50):
        pass
    assert await _count(database) == await _count(database, table="metrics_hour") == total


async def test_the_duty_goes_on_by_itself_and_outlives_the_database_being_away(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = MockClock()
    store = SeriesStore(database)
    answers: list[Any] = [7, 0, NovaError("dependency_unavailable", "away"), 0]
    asked: list[int] = []

    async def roll_up(_check: Any, *, limit: int) -> int:
        asked.append(limit)
        answer = answers.pop(0) if answers else 0
        if isinstance(answer, NovaError):
            raise answer
        return int(answer)

    monkeypatch.setattr(store, "roll_up", roll_up)
    work = asyncio.create_task(Rollup(store, clock).lead(Free()))
    try:
        await settle()
        assert len(asked) == 2
        await clock.advance(INTERVAL_S * 2)
        assert len(asked) == 4
        assert INTERVAL_S <= 5
    finally:
        work.cancel()


async def test_namespaces_do_not_mix(database: Database) -> None:
    store, series = InvocationStore(database), SeriesStore(database)
    theirs = make_snapshot("hello", function_id=new_id(), scope=Scope("acme", "default"))
    await write(store, [row(HELLO, AT), row(theirs, AT), row(theirs, AT)])
    await series.roll_up(unfenced, limit=10)
    for scope, expected in ((Scope(), 1), (Scope("acme", "default"), 2), (Scope("acme", "x"), 0)):
        points = await series.points(
            scope, NAMESPACE, AT - timedelta(hours=1), AT + timedelta(hours=1), timedelta(hours=1), "hour"
        )
        assert sum(point.invocations for point in points) == expected


async def test_as_a_duty_it_counts_under_its_lease(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real lease: the fence that it checks is the one it holds, and a second process changes nothing."""
    monkeypatch.setattr(rollup, "INTERVAL_S", 0.05)
    store, series = InvocationStore(database), SeriesStore(database)
    async with ServiceGroup() as group:
        listener = await group.start(Listener(database.dsn))
        for node in ("a", "b"):
            leases = await group.start(Leases(database.dsn, listener, node=node))
            await group.start(Duty(rollup.DUTY, Rollup(series).lead, leases))
        await write(store, [row(HELLO, AT) for _ in range(10)])
        async with asyncio.timeout(10):
            while await _count(database) < 10:
                await asyncio.sleep(0.02)
        await write(store, [row(HELLO, AT) for _ in range(10)])
        async with asyncio.timeout(10):
            while await _count(database) < 20:
                await asyncio.sleep(0.02)
    assert await _count(database, HELLO.function_id) == 20
