"""Jobs from acceptance to their end: attempts, retries, dead letters, what waits, what is cancelled."""

import asyncio
import json
from collections.abc import Iterator

import pytest

from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.errors import FunctionError, NovaError
from nova.store import asyncs
from nova.store.asyncs_admin import AsyncStore, JobFilter
from nova.store.db import Database
from nova.store.jobs import Ended, JobStore
from tests.events.support import STARTS, Calls, failing, function, job, nebula, result, tenant

pytestmark = pytest.mark.anyio
BROKEN = FunctionError("ValueError", "no\x00 good", ("main.py:1",))
ALL = JobFilter()
QUICK = {"backoff_base_ms": 1, "backoff_max_ms": 2}


@pytest.fixture(params=[False, True], ids=["tasks", "starts"], autouse=True)
def starts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Jobs come to the same end whether their calls have tasks or not."""
    kept = STARTS.set(request.param)
    yield
    STARTS.reset(kept)


async def test_an_accepted_call_runs_as_its_caller_and_its_result_is_kept(database: Database) -> None:
    await function(database)
    async with nebula(database) as plane:
        job_id = await plane.accept(b'{"n": 1.50}')
        row = await plane.ended(job_id)
    (call,) = plane.calls.seen
    assert (call.function, call.payload, call.trigger, call.caller) == ("f", b'{"n": 1.50}', "async", f"async:{job_id}")
    assert (call.identity.subject, call.identity.tenants) == ("key:test", frozenset({"default"}))
    assert (row["status"], row["output"], row["version"], row["request_id"]) == (
        "succeeded",
        '{"n": 1.50}',
        3,
        call.request_id,
    )
    (attempt,) = row["attempts"]
    assert (attempt["no"], attempt["error"], attempt["request_id"]) == (1, None, call.request_id)
    assert plane.told == [("f", "succeeded")]


async def test_three_attempts_are_three_executions_with_growing_pauses(database: Database) -> None:
    """EV4: max_attempts counts executions; the pauses double and are observed."""
    await function(database)
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def script(call: CallRequest) -> CallResult:
        times.append(loop.time())
        return result(call, error=BROKEN)

    async with nebula(database, Calls(script)) as plane:
        row = await plane.ended(await plane.accept(max_attempts=3, backoff_base_ms=200, backoff_max_ms=10_000))
    assert (row["status"], row["attempt"], len(times)) == ("dlq", 3, 3)
    assert row["error"] == {"type": "ValueError", "message": "no\ufffd good", "stack": ["main.py:1"]}
    assert [entry["no"] for entry in row["attempts"]] == [1, 2, 3]
    assert all(entry["error"]["type"] == "ValueError" for entry in row["attempts"])
    assert times[1] - times[0] >= 0.15
    assert times[2] - times[1] >= 0.30


async def test_a_retry_that_succeeds_ends_the_job(database: Database) -> None:
    await function(database)
    async with nebula(database, Calls(failing(BROKEN, NovaError("instance_lost", "gone")))) as plane:
        row = await plane.ended(await plane.accept(max_attempts=5, **QUICK))
    assert (row["status"], row["attempt"], row["error"]) == ("succeeded", 3, None)
    assert [entry["error"] and entry["error"]["type"] for entry in row["attempts"]] == [
        "ValueError",
        "Nova.InstanceLost",
        None,
    ]
    assert plane.told == [("f", "retried"), ("f", "retried"), ("f", "succeeded")]


@pytest.mark.parametrize("code", ["not_found", "payload_too_large", "build_failed", "recursion"])
async def test_what_cannot_heal_is_dead_at_once(database: Database, code: str) -> None:
    await function(database)
    async with nebula(database, Calls(failing(NovaError(code, "no use")))) as plane:
        row = await plane.ended(await plane.accept(max_attempts=5, **QUICK))
    assert (row["status"], row["attempt"], len(plane.calls.seen)) == ("dlq", 1, 1)


@pytest.mark.parametrize("code", ["queue_full", "rate_limited", "tenant_suspended"])
async def test_what_says_not_yet_spends_no_attempt(database: Database, code: str) -> None:
    await function(database)
    async with nebula(database, Calls(failing(NovaError(code, "busy")))) as plane:
        row = await plane.ended(await plane.accept(max_attempts=1))
    assert (row["status"], row["attempt"], len(plane.calls.seen)) == ("succeeded", 1, 2)
    assert len(row["attempts"]) == 1


async def test_a_refusal_that_may_have_been_delivered_is_an_attempt(database: Database) -> None:
    await function(database)
    lost = NovaError("dependency_unavailable", "the stream broke")
    lost.delivered = "unknown"  # type: ignore[attr-defined]
    async with nebula(database, Calls(failing(lost))) as plane:
        row = await plane.ended(await plane.accept(max_attempts=1))
    assert (row["status"], row["error"]["type"]) == ("dlq", "Nova.DependencyUnavailable")


async def test_a_fault_of_ours_is_an_attempt_and_tells_nothing(database: Database) -> None:
    await function(database)
    async with nebula(database, Calls(failing(ZeroDivisionError("secret")))) as plane:
        row = await plane.ended(await plane.accept(max_attempts=1))
    assert (row["status"], row["error"]["type"]) == ("dlq", "Nova.Internal")
    assert "secret" not in str(row)


async def test_a_job_that_is_too_old_is_not_run(database: Database) -> None:
    await function(database)
    async with nebula(database, start=False) as plane:
        job_id = await plane.accept(max_age_s=5)
        await database.run("UPDATE async_invocations SET queued_at = now() - interval '6 s'")
        await plane.runner.start()
        row = await plane.ended(job_id)
        await plane.runner.close()
    assert (row["status"], row["error"]["type"], plane.calls.seen) == ("dlq", "Nova.Expired", [])


async def test_a_job_that_kills_its_worker_reaches_the_dead_letters(database: Database) -> None:
    """EV3: attempts that nobody lived to tell of are counted by the claim, and are in the job's story."""
    await function(database)
    killed = JobStore(database)
    async with nebula(database, start=False) as plane:
        job_id = await plane.accept(max_attempts=2)
        for _ in range(2):
            (claimed,), _ = await killed.claim("killed", 8, 30)
            await database.run("UPDATE work SET lease_until = now() - interval '1 s'")
        assert claimed.attempt == 2
        await plane.runner.start()
        row = await plane.ended(job_id)
        await plane.runner.close()
    assert (row["status"], row["attempt"], plane.calls.seen) == ("dlq", 2, [])
    assert [entry["error"]["type"] for entry in row["attempts"]] == ["Nova.WorkerLost", "Nova.WorkerLost"]


async def test_a_worker_that_lost_its_lease_changes_nothing(database: Database) -> None:
    """EV2: the outcome of an older fence is left alone, and so is its batch's company."""
    await function(database)
    store = JobStore(database)
    async with database.transaction() as conn:
        await asyncs.add(conn, [job(), job()])
    (first, second), _ = await store.claim("a", 2, 30)
    await database.run("UPDATE work SET lease_until = now() - interval '1 s' WHERE id = %(id)s", id=first.id)
    (again,), _ = await store.claim("b", 2, 30)
    assert again.id == first.id
    late = [Ended(j.id, j.fence, "dlq", 1, b"[]", None, error=b'{"type": "X", "message": ""}') for j in (first, second)]
    assert (await store.write("a", late, [])).ids == {second.id}
    ended = Ended(again.id, again.fence, "succeeded", 2, b"[]", None, output=b"1")
    assert (await store.write("b", [ended], [])).ids == {again.id}
    assert (await store.write("b", [ended], [])).ids == frozenset()
    rows = {row["id"]: row["status"] for row in await AsyncStore(database).page(Scope(), ALL, before=None, limit=9)}
    assert rows == {first.id: "succeeded", second.id: "dlq"}


async def test_a_cancelled_job_stops_where_it_runs(database: Database) -> None:
    await function(database)
    running, stopped = asyncio.Event(), asyncio.Event()

    async def script(call: CallRequest) -> CallResult:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        raise AssertionError

    async with nebula(database, Calls(script)) as plane:
        job_id = await plane.accept()
        async with asyncio.timeout(10):
            await running.wait()
            assert (await plane.row(job_id))["status"] == "running"
            async with database.transaction() as conn:
                assert await AsyncStore(database).cancel(conn, Scope(), [job_id]) == 1
            await stopped.wait()
        row = await plane.row(job_id)
    assert (row["status"], row["attempt"]) == ("cancelled", 1)


async def test_a_delayed_job_starts_in_its_time_and_not_at_the_next_poll(database: Database) -> None:
    await function(database)
    loop = asyncio.get_running_loop()
    async with nebula(database, poll_s=3600) as plane:
        await plane.ended(await plane.accept())
        began = loop.time()
        await plane.ended(await plane.accept(delay_s=0.3))
    assert 0.3 <= loop.time() - began < 5


async def test_every_tenant_gets_its_share(database: Database) -> None:
    """A tenant with a long queue does not keep the others waiting; one that is suspended waits itself."""
    other, shut = await tenant(database, "other"), await tenant(database, "shut")
    for scope in (Scope(), other, shut):
        await function(database, scope=scope)
    async with database.transaction() as conn:
        await asyncs.add(conn, [job() for _ in range(50)] + [job(scope=other) for _ in range(3)] + [job(scope=shut)])
    await database.run("UPDATE tenants SET status = 'suspended' WHERE id = 'shut'")
    store = JobStore(database)
    claimed, more = await store.claim("a", 10, 30)
    assert more
    assert sorted(j.scope.tenant for j in claimed) == ["default"] * 5 + ["other"] * 3
    rest: list[str] = []
    while more:
        jobs, more = await store.claim("a", 10, 30)
        rest += [j.scope.tenant for j in jobs]
    assert rest == ["default"] * 45


async def test_two_workers_never_claim_one_job(database: Database) -> None:
    await function(database)
    async with database.transaction() as conn:
        await asyncs.add(conn, [job() for _ in range(60)])
    store = JobStore(database)
    batches = await asyncio.gather(*(store.claim(owner, 8, 30) for owner in "abcdefghij"))
    ids = [j.id for jobs, _ in batches for j in jobs]
    assert len(ids) == len(set(ids)) == 60


async def test_a_stopping_worker_hands_its_jobs_back_without_counting(database: Database) -> None:
    await function(database)
    running = asyncio.Event()

    async def script(call: CallRequest) -> CallResult:
        running.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with nebula(database, Calls(script)) as plane:
        job_id = await plane.accept(max_attempts=1)
        async with asyncio.timeout(10):
            await running.wait()
    async with nebula(database) as plane:
        row = await plane.ended(job_id)
    assert (row["status"], row["attempt"]) == ("succeeded", 1)


async def test_outcomes_are_written_after_an_outage(database: Database) -> None:
    """The database goes away under the call: the call is not repeated, its outcome is written when it is back."""
    await function(database)

    async def script(call: CallRequest) -> CallResult:
        await database.run(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'nova'"
            " AND pid <> pg_backend_pid()"
        )
        return result(call, json.dumps({"n": len(plane.calls.seen)}).encode())

    async with nebula(database, Calls(script)) as plane:
        row = await plane.ended(await plane.accept())
    assert (row["status"], row["output"]) == ("succeeded", '{"n": 1}')


async def test_an_outcome_that_cannot_be_stored_spoils_no_other(database: Database) -> None:
    """Jobs whose outcomes share a transaction with one that PostgreSQL refuses are written all the same."""
    await function(database)

    async def script(call: CallRequest) -> CallResult:
        return result(call, b"no JSON" if call.payload == b"13" else call.payload)

    async with nebula(database, Calls(script), start=False) as plane:
        ids = [await plane.accept(str(n).encode(), max_attempts=2) for n in (12, 13, 14)]
        await plane.runner.start()
        for job_id in (ids[0], ids[2]):
            row = await plane.ended(job_id)
            assert (row["status"], row["attempt"]) == ("succeeded", 1)
        await database.run("UPDATE work SET run_at = now()")
        async with asyncio.timeout(20):
            while not (row := await plane.row(ids[1]))["finished_at"]:
                await database.run("UPDATE work SET run_at = now() WHERE lease_until IS NULL")
                await asyncio.sleep(0.05)
        await plane.runner.close()
    assert row["status"] == "dlq"
    assert len(plane.calls.seen) == 4


async def test_a_busy_queue_is_swept_and_never_read_whole(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand jobs later a claim costs what it cost at first: no rubbish lies before it, and indexes find the rows."""
    monkeypatch.setattr("nova.events.jobs._SWEEP_AFTER", 40)
    await function(database)
    async with nebula(database) as plane:
        ids = await asyncio.gather(*(plane.accept() for _ in range(120)))
        for job_id in ids:
            assert (await plane.ended(job_id))["status"] == "succeeded"
        async with asyncio.timeout(20):
            while True:
                (seen,) = await database.fetch(
                    "SELECT vacuum_count, seq_tup_read FROM pg_stat_user_tables WHERE relname = 'work'"
                )
                if seen["vacuum_count"]:
                    break
                await asyncio.sleep(0.1)
    assert seen["seq_tup_read"] == 0
