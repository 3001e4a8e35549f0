"""Call records by day: partitions ahead of time, and nothing older than the setting."""

from datetime import timedelta
from typing import Any

import pytest

from nova.config import ExecutorSettings
from nova.execution.retention import DAYS_AHEAD, INTERVAL_S, LogRetention
from nova.ids import new_id
from nova.store import callrows
from nova.store.callrows import FinishedCall
from nova.store.db import Database
from nova.store.invocations import InvocationStore
from tests.execution.fakes import make_snapshot
from tests.execution.finished import finished
from tests.mock_clock import MockClock, settle

pytestmark = pytest.mark.anyio
SNAPSHOT = make_snapshot(function_id=new_id())


async def _write(database: Database, clock: MockClock, *days_ago: int) -> None:
    rows = []
    for days in days_ago:
        at_us = int((clock.now() - timedelta(days=days)).timestamp() * 1e6)
        call, result = finished(SNAPSHOT, stdout=f"{days} days ago")
        row = FinishedCall(at_us, call, SNAPSHOT, result)
        rows.append(callrows.encode(callrows.version_prefix(SNAPSHOT), row, None, None))
    await InvocationStore(database).append(rows, ())


async def _where(database: Database) -> dict[str, str]:
    """Which partition holds which record."""
    rows = await database.fetch("SELECT stdout, tableoid::regclass::text AS place FROM invocation_logs")
    return {row["stdout"]: row["place"] for row in rows}


def _retention(database: Database, clock: MockClock, days: int = 30) -> tuple[LogRetention, list[tuple[str, int]]]:
    told: list[tuple[str, int]] = []
    settings = ExecutorSettings(log_retention_days=days)
    duty = LogRetention(InvocationStore(database), settings, clock, lambda table, rows: told.append((table, rows)))
    return duty, told


async def test_partitions_are_ready_before_their_day_and_records_fall_into_them(database: Database) -> None:
    clock = MockClock()
    duty, _ = _retention(database, clock)
    await duty.start()
    try:
        await _write(database, clock, 0, -DAYS_AHEAD, 400)
        assert await _where(database) == {
            "0 days ago": f"invocation_logs_{clock.now():%Y%m%d}",
            f"-{DAYS_AHEAD} days ago": f"invocation_logs_{clock.now() + timedelta(days=DAYS_AHEAD):%Y%m%d}",
            "400 days ago": "invocation_logs_default",
        }
    finally:
        await duty.close()


async def test_records_older_than_the_setting_go_and_are_counted(database: Database) -> None:
    """OB6: captured output is deleted on schedule, from day partitions and from the default one."""
    clock = MockClock()
    store = InvocationStore(database)
    await store.prepare_days(clock.now().date() - timedelta(days=8), 10)
    await _write(database, clock, 0, 6, 7, 8, 8, 40)
    duty, told = _retention(database, clock, days=7)
    await duty.tend()
    assert sorted(await _where(database)) == ["0 days ago", "6 days ago", "7 days ago"]
    assert told == [("invocation_logs", 3)]
    await duty.tend()
    assert told == [("invocation_logs", 3)]


async def test_a_record_without_its_partition_moves_when_that_is_made(database: Database) -> None:
    clock = MockClock()
    await _write(database, clock, 0, 1)
    await InvocationStore(database).prepare_days(clock.now().date(), 1)
    places = await _where(database)
    assert places["0 days ago"] == f"invocation_logs_{clock.now():%Y%m%d}"
    assert places["1 days ago"] == "invocation_logs_default"


async def test_it_goes_on_by_itself(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = MockClock()
    duty, _ = _retention(database, clock)
    rounds: list[Any] = []

    async def tend() -> None:
        rounds.append(clock.now())

    monkeypatch.setattr(duty, "tend", tend)
    await duty.start()
    try:
        await settle()
        await clock.advance(INTERVAL_S * 3)
        assert len(rounds) == 4
    finally:
        await duty.close()
