"""Jobs that run where they were accepted: leased in the statement that accepts them, and rows of the queue like any others."""

import asyncio
from collections import Counter

import pytest

from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.store import asyncs
from nova.store.asyncs_admin import AsyncStore
from nova.store.db import Database
from nova.store.jobs import JobStore
from nova.store.work import Taker
from tests.events.support import Calls, Nebula, function, job, nebula, result, tenant

pytestmark = pytest.mark.anyio
ME = Taker("me", 30, 100)


class Gate:
    """Calls that end when the test says so."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.begun: Counter[bytes] = Counter()
        self.calls = Calls(self._run)

    async def _run(self, call: CallRequest) -> CallResult:
        self.begun[call.payload] += 1
        await self.opened.wait()
        return result(call)


async def idle(plane: Nebula) -> None:
    """Until a claim has found nothing."""
    async with asyncio.timeout(20):
        while not plane.runner.lane("async").open:
            await asyncio.sleep(0.005)


async def until_begun(gate: Gate, calls: int) -> None:
    async with asyncio.timeout(20):
        while sum(gate.begun.values()) < calls:
            await asyncio.sleep(0.005)


async def leases(database: Database) -> list[tuple[str | None, int, int]]:
    """owner, fence and attempt of each row of the queue, in the order of acceptance"""
    rows = await database.fetch("SELECT owner, fence, attempt FROM work WHERE kind = 'async' ORDER BY id")
    return [(row["owner"], row["fence"], row["attempt"]) for row in rows]


async def test_a_job_runs_where_it_was_accepted_without_a_claim(database: Database) -> None:
    await function(database)
    gate = Gate()
    async with nebula(database, gate.calls) as plane:
        await idle(plane)
        ids = [await plane.accept(b"%d" % number) for number in range(3)]
        assert await leases(database) == [(plane.runner.queue.owner, 1, 1)] * 3
        await until_begun(gate, 3)
        assert (await plane.row(ids[0]))["status"] == "running"
        gate.opened.set()
        rows = [await plane.ended(job_id) for job_id in ids]
    assert [(row["status"], row["attempt"], len(row["attempts"])) for row in rows] == [("succeeded", 1, 1)] * 3
    assert set(gate.begun.values()) == {1}


async def test_what_is_held_back_is_not_taken(database: Database) -> None:
    """Pauses, places, paces, delays and suspended tenants: the claim decides about those."""
    for name, policy in {"f": {}, "few": {"max_inflight": 1}, "slow": {"rate_limit_per_s": 1}, "held": {}}.items():
        await function(database, name, async_policy=policy)
    await AsyncStore(database).pause_function(Scope(), "held", "test")
    other = await tenant(database, "t2")
    await function(database, scope=other)
    await database.run("UPDATE tenants SET status = 'suspended' WHERE id = 't2'")
    free = [job(), job(priority="low"), job(max_attempts=7)]
    bound = [job(function=name) for name in ("few", "slow", "held")]
    bound += [
        job(delay_s=5),
        job(concurrency_key="k"),
        job(idempotency_key="k"),
        job(debounce_key="k"),
        job(scope=other),
    ]
    async with database.transaction() as conn:
        outcomes, rows = await asyncs.add_and_take(conn, [*bound, *free, job(function="none")], ME)
    assert [type(outcome).__name__ for outcome in outcomes] == ["Accepted"] * 11 + ["NovaError"]
    assert {row["id"]: row["max_attempts"] for row in rows} == {free[0].id: 3, free[1].id: 3, free[2].id: 7}
    assert Counter(await leases(database)) == {("me", 1, 1): 3, (None, 0, 0): 8}
    await database.run("UPDATE async_gate SET paused = true")
    async with database.connection() as alone:
        assert (await asyncs.add_and_take(alone, [job()], ME))[1] == []


async def test_only_as_many_are_taken_as_there_are_places(database: Database) -> None:
    await function(database, async_destinations={"on_success": {"type": "function", "target": "next"}})
    jobs = [job(b"%d" % number, delay_s=number % 2) for number in range(8)]
    async with database.connection() as conn:
        _, rows = await asyncs.add_and_take(conn, jobs, Taker("me", 30, 3))
    assert {row["id"] for row in rows} == {jobs[0].id, jobs[2].id, jobs[4].id}
    assert all(row["destinations"]["on_success"]["target"] == "next" for row in rows)


async def test_a_taken_job_whose_taker_died_is_taken_over(database: Database) -> None:
    await function(database)
    async with database.connection() as conn:
        await asyncs.add_and_take(conn, [job()], Taker("dead", 30, 1))
    store = JobStore(database)
    assert await store.claim("next", 8, 30) == ([], False)
    await database.run("UPDATE work SET lease_until = now() - interval '1 s'")
    (found,), _ = await store.claim("next", 8, 30)
    assert (found.attempt, found.fence, found.recorded) == (2, 2, 1)


async def test_what_finds_no_room_here_is_done_elsewhere(database: Database) -> None:
    """Two processes; the one that accepts is busy. What waits there too long goes back, and it was no attempt."""
    await function(database)
    gate = Gate()
    async with nebula(database, gate.calls, workers=1) as busy, nebula(database) as other:
        await idle(busy)
        first = await busy.accept(b"0")
        await until_begun(gate, 1)
        ids = [await busy.accept(b"%d" % number) for number in range(1, 4)]
        rows = [await other.ended(job_id) for job_id in ids]
        assert gate.begun == {b"0": 1}
        gate.opened.set()
        rows.append(await busy.ended(first))
    assert {(row["status"], row["attempt"], len(row["attempts"])) for row in rows} == {("succeeded", 1, 1)}


async def test_what_waits_here_is_given_back_at_the_end_and_forgotten_when_it_is_cancelled(database: Database) -> None:
    await function(database)
    gate = Gate()
    async with nebula(database, gate.calls, workers=1) as plane:
        await idle(plane)
        ids = [await plane.accept(b"%d" % number) for number in range(3)]
        await until_begun(gate, 1)
        async with database.transaction() as conn:
            assert await AsyncStore(database).cancel(conn, Scope(), [ids[1]])
        gate.opened.set()
        assert [(await plane.ended(job_id))["status"] for job_id in ids] == ["succeeded", "cancelled", "succeeded"]
        assert gate.begun == {b"0": 1, b"2": 1}
        gate.opened.clear()
        await idle(plane)
        late = [await plane.accept(b"%d" % number) for number in (3, 4)]
        await until_begun(gate, 3)
        await plane.runner.close()
        assert {(row[0], row[2]) for row in await leases(database)} == {(None, 0)}
        assert [(await plane.row(job_id))["status"] for job_id in late] == ["queued"] * 2
