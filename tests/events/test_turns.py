"""Jobs that are held to something: priorities, places, paces, debouncing; and those that are steered in bulk."""

import asyncio
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.payload import decode
from nova.store import turns
from nova.store.asyncs_admin import AsyncStore, BulkFilter
from nova.store.db import Database
from nova.store.retention import JobRetention
from tests.events.support import Calls, Nebula, function, nebula, result

pytestmark = pytest.mark.anyio


class Crowd:
    """Counts how many calls run at once, for each kind that their payload names. A call lasts at least until as many have run at
    once as ``wanted`` says of its kind, or for 20 s."""

    def __init__(self, takes_s: float = 0.03) -> None:
        self.wanted: Counter[str] = Counter()
        self.now: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.order: list[str] = []
        self._takes_s = takes_s

    async def run(self, call: CallRequest) -> CallResult:
        given = decode(call.payload)
        kinds = {given.get("kind", ""), "all"}
        self.order.append(given.get("name", ""))
        self.now.update(kinds)
        self.most |= self.now
        await asyncio.sleep(self._takes_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(20):
                while any(self.most[kind] < self.wanted[kind] for kind in kinds):
                    await asyncio.sleep(0.005)
        self.now.subtract(kinds)
        return result(call)


async def finish(plane: Nebula, ids: list[str]) -> None:
    for job_id in ids:
        assert (await plane.ended(job_id))["status"] == "succeeded"


async def places(database: Database) -> int:
    return len(await database.fetch("SELECT job_id FROM async_places"))


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


async def test_a_higher_priority_is_taken_first(database: Database, crowd: Crowd) -> None:
    await function(database)
    async with nebula(database, Calls(crowd.run), workers=1, start=False) as plane:
        ids = [
            await plane.accept(b'{"name": "%s"}' % name.encode(), priority=name) for name in ("low", "normal", "high")
        ]
        async with plane.running():
            await finish(plane, ids)
    assert crowd.order == ["high", "normal", "low"]
    assert [(await AsyncStore(database).get(Scope(), job_id) or {})["priority"] for job_id in ids] == [2, 1, 0]


async def test_jobs_that_share_a_key_take_turns_in_their_order(database: Database, crowd: Crowd) -> None:
    await function(database)
    crowd.wanted["three"] = 3
    async with nebula(database, Calls(crowd.run), workers=16) as plane:
        ids = []
        for number in range(8):
            for key, limit in (("one", 1), ("three", 3)):
                text = b'{"kind": "%s", "name": "%s-%d"}' % (key.encode(), key.encode(), number)
                ids.append(await plane.accept(text, concurrency_key=key, concurrency_limit=limit))
        await finish(plane, ids)
        assert (crowd.most["one"], crowd.most["three"]) == (1, 3)
        assert [name for name in crowd.order if name.startswith("one")] == [f"one-{n}" for n in range(8)]
        assert {(await plane.row(job_id))["attempt"] for job_id in ids} == {1}, "waiting is no attempt"
    assert await places(database) == 0


async def test_a_function_runs_as_many_at_once_as_its_policy_says(database: Database, crowd: Crowd) -> None:
    await function(database, async_policy={"max_inflight": 2})
    await function(database, "free")
    crowd.wanted.update(held=2, free=3)
    async with nebula(database, Calls(crowd.run), workers=16) as plane:
        ids = [await plane.accept(b'{"kind": "held"}') for _ in range(8)]
        ids += [await plane.accept(b'{"kind": "free"}', "free") for _ in range(8)]
        await finish(plane, ids)
    assert crowd.most["held"] == 2
    assert crowd.most["free"] > 2


async def test_a_function_starts_as_many_a_second_as_its_policy_says(database: Database) -> None:
    await function(database, async_policy={"rate_limit_per_s": 20})
    began: list[float] = []

    async def run(call: CallRequest) -> CallResult:
        began.append(time.monotonic())
        return result(call)

    async with nebula(database, Calls(run), workers=16) as plane:
        await finish(plane, [await plane.accept() for _ in range(20)])
    took = began[-1] - began[0]
    assert took > 0.8, f"20 jobs at 20 a second began within {took:.2f} s"
    assert max(sum(1 for b in began if a <= b < a + 0.2) for a in began) <= 15, "they are spread, not bunched"


async def test_a_cancelled_or_failed_job_leaves_its_place(database: Database) -> None:
    await function(database)
    gate = asyncio.Event()

    async def run(call: CallRequest) -> CallResult:
        if decode(call.payload).get("stays"):
            await gate.wait()
        return result(call)

    async with nebula(database, Calls(run)) as plane:
        stays = await plane.accept(b'{"stays": true}', concurrency_key="k")
        await plane.until(stays, lambda row: row["status"] == "running")
        second = await plane.accept(b"{}", concurrency_key="k")
        third = await plane.accept(b"{}", concurrency_key="k")
        async with asyncio.timeout(10):
            while await places(database) < 3:
                await asyncio.sleep(0.01)
        async with database.transaction() as conn:
            assert await AsyncStore(database).cancel(conn, Scope(), [second]) == 1
        async with database.transaction() as conn:
            assert await AsyncStore(database).cancel(conn, Scope(), [stays]) == 1
        assert (await plane.ended(third))["status"] == "succeeded"
        gate.set()
    assert await places(database) == 0


async def test_places_of_jobs_that_are_gone_are_found_and_given_on(database: Database) -> None:
    """Whatever took the job away without leaving: the housekeeping of a minute finds it."""
    await function(database)
    async with nebula(database, Calls(), start=False) as plane:
        gone = await plane.accept(b"{}", concurrency_key="k")
        waits = await plane.accept(b"{}", concurrency_key="k")
        await database.run(
            "INSERT INTO async_places SELECT a.id, a.tenant_id, a.namespace, a.function_id, 'k', 1,"
            " CASE WHEN a.id = %(gone)s THEN 'holding' ELSE 'waiting' END, 1, now() FROM async_invocations a",
            gone=gone,
        )
        await database.run("DELETE FROM work WHERE id = %(id)s", id=gone)
        await database.run("UPDATE work SET run_at = 'infinity' WHERE id = %(id)s", id=waits)
        assert await turns.tidy(database)
        async with plane.running():
            assert (await plane.ended(waits))["status"] == "succeeded"


async def test_debounced_jobs_are_one_with_what_came_last(database: Database) -> None:
    await function(database)
    calls = Calls()
    async with nebula(database, calls, start=False) as plane:
        first = await plane.accept(b"1", debounce_key="k", debounce_s=0.2)
        again = [await plane.accept(b"%d" % n, debounce_key="k", debounce_s=0.2) for n in (2, 3)]
        other = await plane.accept(b"9", debounce_key="other", debounce_s=0.2)
        assert again == [first, first]
        assert other != first
        async with plane.running():
            await finish(plane, [first, other])
            assert sorted(call.payload for call in calls.seen) == [b"3", b"9"]
            later = await plane.accept(b"4", debounce_key="k", debounce_s=0.01)
            assert later != first, "what was taken is not changed any more"
            await finish(plane, [later])


async def test_debouncing_puts_off_no_longer_than_it_may(database: Database) -> None:
    await function(database)
    async with nebula(database, Calls(), start=False) as plane:
        for _ in range(3):
            job_id = await plane.accept(b"1", debounce_key="k", debounce_s=60, debounce_max_s=90)
            await database.run("UPDATE async_debounces SET began_at = began_at - interval '40 s'")
        row = await plane.row(job_id)
        assert timedelta(0) < row["next_run_at"] - SYSTEM_CLOCK.now() < timedelta(seconds=20)


async def test_a_hundred_at_once_with_one_debounce_key_are_one_job(database: Database) -> None:
    await function(database)
    async with nebula(database, Calls(), start=False) as plane:
        ids = await asyncio.gather(*(plane.accept(b"%d" % n, debounce_key="k", debounce_s=60) for n in range(100)))
    assert len(set(ids)) == 1


async def test_jobs_are_cancelled_and_queued_again_in_bulk(database: Database) -> None:
    await function(database)
    await function(database, "g")
    store = AsyncStore(database)
    async with nebula(database, Calls(), start=False) as plane:
        mine = [await plane.accept(b"{}", delay_s=60, concurrency_key="k") for _ in range(5)]
        others = [await plane.accept(b"{}", "g", delay_s=60), await plane.accept(b"{}", delay_s=60)]
        wanted = BulkFilter(("f", "g"), ("queued",), concurrency_key="k")
        assert await store.cancel_all(Scope(), wanted) == 5
        assert {(await plane.row(job_id))["status"] for job_id in mine} == {"cancelled"}
        assert {(await plane.row(job_id))["status"] for job_id in others} == {"queued"}
        assert await store.retry_all(Scope(), BulkFilter(("g",), ("dlq", "cancelled")), None) == 0
        assert await store.retry_all(Scope(), BulkFilter(("f",), ("dlq", "cancelled")), None) == 5
        async with plane.running():
            await finish(plane, mine)


async def test_a_result_is_kept_as_long_as_the_job_said(database: Database) -> None:
    await function(database)
    async with nebula(database, Calls()) as plane:
        short, long, plain = [
            await plane.accept(b"{}", **options) for options in ({"keep_s": 60}, {"keep_s": 3600}, {})
        ]
        await finish(plane, [short, long, plain])
        await database.run("UPDATE async_invocations SET keep_until = keep_until - interval '2 min'")
        soon = SYSTEM_CLOCK.now() + timedelta(minutes=1)
        assert await JobRetention(database).delete(soon, soon, 100) == 2
        rows = await database.fetch("SELECT id::text AS id FROM async_invocations")
        assert [row["id"] for row in rows] == [long]
