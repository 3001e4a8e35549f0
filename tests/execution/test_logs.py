"""The batcher against a real database: nothing is lost without being counted, and no call ever waits."""

import asyncio
import errno
import os
import signal
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from nova.config import ExecutorSettings
from nova.domain.function import Capture
from nova.execution.logs import LogBatcher
from nova.execution.spill import Spill
from nova.ids import new_id
from nova.store.db import Database
from nova.store.embedded import EmbeddedPostgres
from nova.store.invocations import InvocationStore
from nova.store.migrate import migrate
from tests.execution.fakes import make_snapshot
from tests.execution.finished import boom, finished

pytestmark = pytest.mark.anyio
SNAPSHOT = make_snapshot(function_id=new_id())


@asynccontextmanager
async def batching(
    database: Database, folder: Path, spill_bytes: int = 1 << 24, **settings: Any
) -> AsyncIterator[LogBatcher]:
    batcher = LogBatcher(
        InvocationStore(database), ExecutorSettings(**settings), folder / "spill", spill_bytes=spill_bytes
    )
    await batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not await condition():
            await asyncio.sleep(0.05)


async def rows(database: Database) -> list[dict[str, Any]]:
    return await database.fetch("SELECT * FROM invocation_logs ORDER BY seq")


async def count(database: Database) -> int:
    row = await database.one("SELECT count(*) AS n FROM invocation_logs")
    assert row is not None
    return int(row["n"])


async def test_each_finished_call_has_exactly_one_record(database: Database, tmp_path: Path) -> None:
    """EX6: 2,500 calls recorded in bursts leave 2,500 records with their ids, in the order in which they ended."""
    ids = []
    async with batching(database, tmp_path) as batcher:
        for number in range(2500):
            call, result = finished(SNAPSHOT)
            ids.append(call.request_id)
            batcher.record(call, SNAPSHOT, result)
            if number % 50 == 0:
                await asyncio.sleep(0.002)
        await batcher.settle(30)
    assert [str(row["id"]) for row in await rows(database)] == ids
    assert batcher.counts.written == 2500
    assert batcher.counts.dropped == 0


async def test_a_burst_faster_than_the_database_is_readable_once_settled(database: Database, tmp_path: Path) -> None:
    """EX6: what overflows the buffer takes the way over the disk, and settling waits for that too."""
    async with batching(database, tmp_path, log_buffer_size=100, log_batch_size=100) as batcher:
        ids = set()
        for number in range(2000):
            call, result = finished(SNAPSHOT)
            ids.add(call.request_id)
            batcher.record(call, SNAPSHOT, result)
            if number % 80 == 0:
                await asyncio.sleep(0)
        await batcher.settle(30)
        assert batcher.counts.spilled > 0
        assert {str(row["id"]) for row in await rows(database)} == ids


async def test_a_record_says_what_happened(database: Database, tmp_path: Path) -> None:
    async with batching(database, tmp_path) as batcher:
        call, result = finished(
            SNAPSHOT,
            b'{"n": 1}',
            error=boom(),
            cold_start=True,
            source="template",
            stdout="hello\n",
            stderr="oops\n",
        )
        call.qualifier = "canary"
        call.client_request_id = "mine"
        call.traceparent = f"00-{'ab' * 16}-{'cd' * 8}-01"
        batcher.record(call, SNAPSHOT, result)
    [row] = await rows(database)
    wanted = {
        "tenant_id": "default",
        "namespace": "default",
        "function_name": "hello",
        "version": 1,
        "runtime": "python",
        "qualifier": "canary",
        "trigger": "http",
        "caller": "operator",
        "status": "error",
        "success": False,
        "error_kind": "ValueError",
        "error_message": "bad date",
        "error_stack": ["main.py:12 in handler"],
        "cold_start": True,
        "start_source": "template",
        "instance_id": "instance-1",
        "duration_ms": 1.5,
        "queue_ms": 0.1,
        "input_size": 8,
        "output_size": 0,
        "input": {"n": 1},
        "output": None,
        "stdout": "hello\n",
        "stderr": "oops\n",
        "trace_id": "ab" * 16,
        "client_request_id": "mine",
    }
    assert {name: row[name] for name in wanted} == wanted
    assert abs(row["created_at"].timestamp() - time.time()) < 60


async def test_prints_and_payloads_that_postgresql_dislikes_are_kept(database: Database, tmp_path: Path) -> None:
    """EX6: NUL bytes, lone surrogates and numbers no machine holds cost neither the record nor its batch."""
    async with batching(database, tmp_path) as batcher:
        call, result = finished(
            SNAPSHOT,
            b'{"a":"\\u0000","b":"\\ud800","c":1e400000}',
            stdout="a\x00b\udc80",
            error=boom("Odd\x00", "\udcff"),
        )
        batcher.record(call, SNAPSHOT, result)
        for _ in range(5):
            batcher.record(*_args(finished(SNAPSHOT)))
    stored = await database.fetch("SELECT stdout, error_kind, input::text AS input FROM invocation_logs ORDER BY seq")
    assert len(stored) == 6
    assert stored[0] == {
        "stdout": "a\ufffdb?",
        "error_kind": "Odd\ufffd",
        "input": '{"a":"\\u0000","b":"\\ud800","c":1e400000}',
    }


async def test_one_record_that_cannot_be_encoded_is_counted_and_spares_its_batch(
    database: Database, tmp_path: Path
) -> None:
    async with batching(database, tmp_path) as batcher:
        odd, result = finished(SNAPSHOT)
        odd.request_id = "not a uuid"
        batcher.record(*_args(finished(SNAPSHOT)))
        batcher.record(odd, SNAPSHOT, result)
        batcher.record(*_args(finished(SNAPSHOT)))
    assert await count(database) == 2
    assert batcher.counts.dropped == 1


async def test_one_record_that_the_database_refuses_is_counted_and_spares_its_batch(
    database: Database, tmp_path: Path
) -> None:
    await database.run("ALTER TABLE invocation_logs ADD CHECK (duration_ms < 1000)")
    async with batching(database, tmp_path) as batcher:
        for duration_us in (10, 20, 5_000_000, 30, 40):
            batcher.record(*_args(finished(SNAPSHOT, duration_us=duration_us)))
    assert [row["duration_ms"] for row in await rows(database)] == [0.01, 0.02, 0.03, 0.04]
    assert (batcher.counts.written, batcher.counts.dropped) == (4, 1)


async def test_capture_policy_and_redaction_hold_in_the_table(database: Database, tmp_path: Path) -> None:
    """SE1: a redacted member and the payload of a call that asked for none are nowhere in the record."""
    masked = make_snapshot(function_id=new_id(), capture=Capture(redact=("/card",)))
    silent = make_snapshot(function_id=new_id(), capture=Capture("none"))
    async with batching(database, tmp_path) as batcher:
        for snapshot in (masked, silent):
            call, result = finished(snapshot, b'{"card":"4111-1111","n":1}', output=b'{"card":"4111-1111"}')
            batcher.record(call, snapshot, result)
    first, second = await rows(database)
    assert (first["input"], first["output"]) == ({"card": "***", "n": 1}, {"card": "***"})
    assert (second["input"], second["output"], second["input_size"]) == (None, None, 26)
    everything = await database.fetch("SELECT count(*) AS n FROM invocation_logs t WHERE t::text LIKE '%%4111%%'")
    assert everything == [{"n": 0}]


async def test_settle_makes_a_record_readable_before_its_interval(database: Database, tmp_path: Path) -> None:
    async with batching(database, tmp_path, log_flush_interval=600) as batcher:
        batcher.record(*_args(finished(SNAPSHOT)))
        await batcher.settle(10)
        assert await count(database) == 1


async def test_a_full_batch_does_not_wait_for_the_interval(database: Database, tmp_path: Path) -> None:
    async with batching(database, tmp_path, log_flush_interval=600, log_batch_size=10) as batcher:
        for _ in range(10):
            batcher.record(*_args(finished(SNAPSHOT)))

        async def all_there() -> bool:
            return await count(database) == 10

        await until(all_there)


async def test_closing_writes_what_waits(database: Database, tmp_path: Path) -> None:
    async with batching(database, tmp_path, log_flush_interval=600) as batcher:
        for _ in range(7):
            batcher.record(*_args(finished(SNAPSHOT)))
    assert await count(database) == 7


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    """A server that the test may stop."""
    server = EmbeddedPostgres(tmp_path / "pg")
    await asyncio.to_thread(server.start)
    await migrate(server.dsn)
    yield server
    await asyncio.to_thread(server.stop)


async def test_a_burst_with_the_database_stopped_is_complete_when_it_is_back(
    own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """EX8: 10,000 calls while the database is down: none waits, and each has its one record afterwards."""
    async with Database(own_server.dsn, min_conns=1) as database, batching(database, tmp_path) as batcher:
        batcher.record(*_args(finished(SNAPSHOT)))
        await batcher.settle(10)
        await asyncio.to_thread(own_server.stop)
        ids = await _burst(batcher, 10_000)
        await until(_spilled(batcher, 5000))
        await asyncio.to_thread(own_server.start)

        async def complete() -> bool:
            return batcher.counts.written + batcher.counts.dropped == 10_001

        await until(complete)
        stored = await database.fetch("SELECT id::text AS id FROM invocation_logs")
        assert batcher.counts.dropped == 0
        assert {row["id"] for row in stored} > ids
        assert len(stored) == 10_001


async def test_a_database_that_hangs_is_an_outage_too(own_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """EX8: a server that stops answering without closing its connections holds up no call and loses no record."""
    async with (
        Database(own_server.dsn, min_conns=1) as database,
        batching(database, tmp_path, log_timeout=0.3) as batcher,
    ):
        batcher.record(*_args(finished(SNAPSHOT)))
        await batcher.settle(10)
        frozen = _backends(own_server)
        for pid in frozen:
            os.kill(pid, signal.SIGSTOP)
        ids = await _burst(batcher, 3000)
        await until(_spilled(batcher, 1000))
        for pid in frozen:
            os.kill(pid, signal.SIGCONT)

        async def complete() -> bool:
            return await count(database) == 3001

        await until(complete, 60)
        assert {str(row["id"]) for row in await rows(database)} > ids
        assert batcher.counts.dropped == 0


async def test_what_the_spill_cannot_hold_is_counted_exactly(own_server: EmbeddedPostgres, tmp_path: Path) -> None:
    """EX8: beyond the bounded file a counter names the number lost, and the rest arrives."""
    async with (
        Database(own_server.dsn, min_conns=1) as database,
        batching(database, tmp_path, spill_bytes=200_000, log_timeout=0.5) as batcher,
    ):
        await asyncio.to_thread(own_server.stop)
        await _burst(batcher, 5000)

        async def settled() -> bool:
            return batcher.counts.spilled + batcher.counts.dropped == 5000

        await until(settled)
        assert batcher.counts.dropped > 0
        await asyncio.to_thread(own_server.start)

        async def complete() -> bool:
            return await database.ping() and await count(database) == 5000 - batcher.counts.dropped

        await until(complete)
        spilled = sum(file.stat().st_size for file in (tmp_path / "spill").iterdir())
        assert spilled <= 200_000


async def test_records_wait_in_memory_when_the_disk_is_full_too(
    own_server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EX8: no database and a full disk lose nothing while there is memory; once either takes them they are safe."""

    def refuse(_self: Spill, _rows: Sequence[bytes]) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with Database(own_server.dsn, min_conns=1) as database:
        async with batching(database, tmp_path, log_timeout=0.5) as batcher:
            await asyncio.to_thread(own_server.stop)
            with monkeypatch.context() as full:
                full.setattr(Spill, "put", refuse)
                ids = await _burst(batcher, 2500)

                async def held() -> bool:
                    return len(batcher._held) == 2500

                await until(held)
                assert batcher.in_outage
            assert (batcher.counts.spilled, batcher.counts.dropped) == (0, 0)
            await asyncio.to_thread(own_server.start)

            async def complete() -> bool:
                return await database.ping() and await count(database) == 2500

            await until(complete)
            await asyncio.to_thread(own_server.stop)
            with monkeypatch.context() as full:
                full.setattr(Spill, "put", refuse)
                ids |= await _burst(batcher, 10)

                async def held_again() -> bool:
                    return len(batcher._held) == 10

                await until(held_again)
        assert (batcher.counts.spilled, batcher.counts.dropped) == (10, 0)
        await asyncio.to_thread(own_server.start)
        async with batching(database, tmp_path):

            async def all_there() -> bool:
                return await database.ping() and await count(database) == 2510

            await until(all_there)
        assert {str(row["id"]) for row in await rows(database)} == ids


async def test_records_survive_a_restart_while_the_database_is_down(
    own_server: EmbeddedPostgres, tmp_path: Path
) -> None:
    """EX8: what could not be written before the daemon stopped is written by the next one, once."""
    async with Database(own_server.dsn, min_conns=1) as database:
        async with batching(database, tmp_path) as batcher:
            await asyncio.to_thread(own_server.stop)
            ids = await _burst(batcher, 300)
        await asyncio.to_thread(own_server.start)
        async with batching(database, tmp_path):

            async def complete() -> bool:
                return await database.ping() and await count(database) >= 300

            await until(complete)
        assert {str(row["id"]) for row in await rows(database)} == ids
        assert await count(database) == 300


async def test_replaying_twice_stores_once(database: Database, tmp_path: Path) -> None:
    """EX6: a crash between the write and the removal of a segment does not double a record."""
    async with batching(database, tmp_path) as batcher:
        for _ in range(20):
            batcher.record(*_args(finished(SNAPSHOT)))
    stored = await rows(database)
    spill = tmp_path / "spill"
    encoded = await _encoded(database, tmp_path, stored)
    for number in (1, 2):
        (spill / f"{number:010d}-{_layout()}.rows").write_bytes(encoded)
    async with batching(database, tmp_path) as batcher:

        async def replayed() -> bool:
            return not list(spill.iterdir())

        await until(replayed)
    assert await count(database) == 21


def _layout() -> str:
    from nova.store.callrows import LAYOUT

    return LAYOUT


async def _encoded(database: Database, folder: Path, stored: list[dict[str, Any]]) -> bytes:
    """One spilled record that is not in the table yet, in the form of a segment."""
    from nova.store.callrows import FinishedCall, encode, version_prefix

    call, result = finished(SNAPSHOT)
    row = encode(version_prefix(SNAPSHOT), FinishedCall(time.time_ns() // 1000, call, SNAPSHOT, result), None, None)
    assert call.request_id not in {str(one["id"]) for one in stored}
    return struct.pack("!I", len(row)) + row


def _args(pair: tuple[Any, Any]) -> tuple[Any, Any, Any]:
    return pair[0], SNAPSHOT, pair[1]


async def _burst(batcher: LogBatcher, size: int) -> set[str]:
    """Records in waves, as calls end: the loop turns between them, and no record() takes long."""
    ids = set()
    for number in range(size):
        call, result = finished(SNAPSHOT, stdout="line\n")
        ids.add(call.request_id)
        batcher.record(call, SNAPSHOT, result)
        if number % 50 == 0:
            await asyncio.sleep(0.001)
    return ids


def _spilled(batcher: LogBatcher, at_least: int) -> Callable[[], Awaitable[bool]]:
    async def reached() -> bool:
        return batcher.counts.spilled >= at_least

    return reached


def _backends(server: EmbeddedPostgres) -> list[int]:
    """The processes that serve connections of this server."""
    assert server.pid is not None
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"idle" in Path(f"/proc/{pid}/cmdline").read_bytes()]
