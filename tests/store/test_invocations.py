"""Call records in the table: the order of commits is the order of the feed."""

import asyncio
import time
from uuid import UUID

import pytest

from nova.ids import new_id
from nova.store import callrows
from nova.store.callrows import FinishedCall
from nova.store.db import Database
from nova.store.invocations import InvocationStore
from tests.execution.fakes import make_snapshot
from tests.execution.finished import finished

pytestmark = pytest.mark.anyio
SNAPSHOT = make_snapshot(function_id=new_id())


def _rows(count: int) -> tuple[list[bytes], list[str]]:
    prefix = callrows.version_prefix(SNAPSHOT)
    rows, ids = [], []
    for _ in range(count):
        call, result = finished(SNAPSHOT)
        ids.append(call.request_id)
        rows.append(callrows.encode(prefix, FinishedCall(time.time_ns() // 1000, call, SNAPSHOT, result), b"{}", None))
    return rows, ids


async def test_a_reader_that_follows_seq_misses_nothing_while_many_write(database: Database) -> None:
    """GW5: several processes write at once; a reader that only ever goes forward sees every record once."""
    store = InvocationStore(database)
    written: list[str] = []
    done = asyncio.Event()

    async def write() -> None:
        for _ in range(20):
            rows, ids = _rows(7)
            await store.append(rows, {SNAPSHOT.function_id})
            written.extend(ids)

    async def read() -> list[str]:
        seen: list[str] = []
        after = 0
        while True:
            last = done.is_set()
            for row in await store.feed(UUID(SNAPSHOT.function_id), after, request_id=None, since=None, limit=50):
                seen.append(str(row["id"]))
                after = row["seq"]
            if last and len(seen) >= len(written):
                return seen

    reading = asyncio.create_task(read())
    await asyncio.gather(*(write() for _ in range(4)))
    done.set()
    async with asyncio.timeout(20):
        seen = await reading
    assert len(seen) == len(set(seen)) == 560
    assert set(seen) == set(written)


async def test_writing_again_what_is_there_changes_nothing(database: Database) -> None:
    """EX6: a write whose answer was lost may be repeated."""
    store = InvocationStore(database)
    rows, _ = _rows(5)
    more, _ = _rows(2)
    await store.append(rows, ())
    assert await store.append_once([*rows, *more], ()) == 2
    found = await database.one("SELECT count(*) AS n, count(DISTINCT id) AS ids FROM invocation_logs")
    assert found == {"n": 7, "ids": 7}


async def test_the_columns_that_rows_are_encoded_for_exist(database: Database) -> None:
    """A migration that changes a column's type or name without the encoder fails here."""
    types = await database.fetch(
        "SELECT attname AS name, format_type(atttypid, NULL) AS type FROM pg_attribute"
        " WHERE attrelid = 'invocation_logs'::regclass AND attnum > 0 AND NOT attisdropped"
    )
    columns = {row["name"]: row["type"] for row in types}
    encoded = callrows.COLUMNS.split(", ")
    assert set(columns) - set(encoded) == {"seq"}
    assert {columns[name] for name in ("duration_ms", "queue_ms", "boot_ms", "init_ms")} == {"double precision"}
    assert {columns[name] for name in ("input", "output", "error_stack")} == {"json"}
