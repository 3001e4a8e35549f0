"""Prepared statements on connections kept for them: what goes in comes out, and no error or lost connection is anybody else's."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from nova.store.db import Database, Row
from nova.store.lines import Lines, Prepared

pytestmark = pytest.mark.anyio
BACK = Prepared.of(
    "back",
    "SELECT %(texts)b::text[] AS texts, %(numbers)b::bigint[] AS numbers, %(times)b::timestamptz[] AS times,"
    " %(one)s::text AS one, %(one)s::text IS NULL AS missing, %(floats)b::float8[] AS floats, %(json)s::jsonb AS json",
)
DIVIDE = Prepared.of("divide", "SELECT 1 / %(by)s::int AS result")
SLEEP = Prepared.of("sleep", "SELECT pg_sleep(%(s)s)::text AS slept")
NOW = datetime(2026, 3, 1, 12, 30, 0, 123456, UTC)


@pytest.fixture
async def lines(database: Database) -> AsyncIterator[Lines]:
    made = Lines(database.dsn, "tests lines", most=1)
    yield made
    await made.close()


async def fetch(lines: Lines, statement: Prepared, given: Mapping[str, Any]) -> list[Row]:
    """As soon as there is a connection."""
    async with asyncio.timeout(30):
        while (rows := await lines.fetch(statement, given)) is None:
            await asyncio.sleep(0.01)
    return rows


async def test_values_come_back_as_they_went_in(lines: Lines) -> None:
    awkward = ['quote" back\\slash', "", "NULL", "{a,b}", "new\nline \u2028 😀", " spaces ", None, "x" * 200_000]
    given = {
        "texts": awkward,
        "numbers": [1, -2, None, 2**60],
        "times": [NOW, None],
        "one": "it's",
        "floats": [0.1, 1e300],
        "json": '{"a": "\\u0041"}',
    }
    assert await lines.fetch(BACK, given) is None, "the first finds no connection, and goes another way"
    (row,) = await fetch(lines, BACK, given)
    assert row == {**given, "missing": False, "json": {"a": "A"}}
    empty = {"texts": [], "numbers": [], "times": [], "one": None, "floats": [], "json": "[]"}
    assert await fetch(lines, BACK, empty) == [{**empty, "missing": True, "json": []}]
    with pytest.raises(psycopg.DataError):
        await lines.fetch(BACK, {**empty, "one": "a\0b"})


async def test_an_error_is_its_askers_and_the_connection_goes_on(lines: Lines) -> None:
    assert await fetch(lines, DIVIDE, {"by": 1}) == [{"result": 1}]
    with pytest.raises(psycopg.errors.DivisionByZero):
        await lines.fetch(DIVIDE, {"by": 0})
    assert await lines.fetch(DIVIDE, {"by": 1}) == [{"result": 1}]


async def test_a_lost_connection_is_an_outage_and_is_replaced(lines: Lines, database: Database) -> None:
    await fetch(lines, DIVIDE, {"by": 1})
    await fetch(lines, SLEEP, {"s": 0})
    waiting = asyncio.create_task(lines.fetch(SLEEP, {"s": 60}))
    await asyncio.sleep(0)
    assert await lines.fetch(DIVIDE, {"by": 1}) is None, "one at a time"
    ended = "SELECT pg_terminate_backend(pid) AS done FROM pg_stat_activity WHERE application_name = 'tests lines'"
    assert await database.fetch(f"{ended} AND datname = current_database()") == [{"done": True}]
    with pytest.raises(psycopg.OperationalError):
        await waiting
    assert await fetch(lines, DIVIDE, {"by": 1}) == [{"result": 1}]


async def test_whoever_leaves_disturbs_nobody(lines: Lines) -> None:
    await fetch(lines, DIVIDE, {"by": 1})
    await fetch(lines, SLEEP, {"s": 0})
    leaving = asyncio.create_task(lines.fetch(SLEEP, {"s": 0.2}))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert await fetch(lines, DIVIDE, {"by": 1}) == [{"result": 1}]
