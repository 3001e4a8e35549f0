"""Accepting jobs: what is committed, what is refused, and what an idempotency key does."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from nova.domain.call import Accepted, AsyncOptions
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.store import asyncs
from nova.store.asyncs import NewJob
from nova.store.db import Database
from nova.store.retention import JobRetention
from tests.events.support import function, id_at, job, tenant

pytestmark = pytest.mark.anyio


async def add(db: Database, *jobs: NewJob) -> list[Accepted | NovaError]:
    async with db.transaction() as conn:
        return await asyncs.add(conn, jobs)


def accepted(outcome: Accepted | NovaError) -> Accepted:
    assert isinstance(outcome, Accepted), outcome
    return outcome


def refused(outcome: Accepted | NovaError) -> str:
    assert isinstance(outcome, NovaError), outcome
    return outcome.code


async def test_a_job_and_its_work_are_one_transaction(database: Database) -> None:
    function_id = await function(database)
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with database.transaction() as conn:
            await asyncs.enqueue(
                conn,
                scope=Scope(),
                function_id=function_id,
                function_name="f",
                qualifier=None,
                payload=b"{}",
                options=AsyncOptions(),
                caller="schedule:nightly",
                traceparent=None,
                source="schedule:nightly",
            )
            raise RuntimeError("killed half-way")
    assert await database.fetch("SELECT id FROM async_invocations UNION ALL SELECT id FROM work") == []


async def test_a_job_takes_its_rules_from_options_then_policy_then_defaults(database: Database) -> None:
    policy = {"max_attempts": 7, "backoff_base_ms": 11, "backoff_max_ms": 13, "max_age_s": 60}
    await function(database, "f", async_policy=policy)
    await function(database, "plain")
    outcomes = await add(database, job(max_attempts=2, backoff_max_ms=5), job(), job(function="plain"))
    rows = {
        str(row["id"]): (row["max_attempts"], row["backoff_base_ms"], row["backoff_max_ms"], row["max_age_s"])
        for row in await database.fetch("SELECT * FROM async_invocations")
    }
    assert [rows[accepted(outcome).invocation_id] for outcome in outcomes] == [
        (2, 11, 5, 60),
        (7, 11, 13, 60),
        (3, 1000, 60000, 86400),
    ]


async def test_an_unknown_function_is_refused_and_the_rest_of_the_batch_is_not(database: Database) -> None:
    await function(database)
    first, second = await add(database, job(function="ghost", idempotency_key="k"), job())
    assert refused(first) == "not_found"
    assert accepted(second).status == "queued"
    assert await database.fetch("SELECT key FROM idempotency_keys") == []


async def test_any_payload_arrives_as_it_was_sent(database: Database) -> None:
    await function(database)
    payloads = [
        b'{"a": "\\u0000"}',
        b"1e400",
        '"ü\\ud800 \'"'.encode(),
        b"[" * 512 + b"]" * 512,
        b'{"b": {"b": 12345678901234567890.123}}',
    ]
    outcomes = await add(database, *(job(payload) for payload in payloads))
    for payload, outcome in zip(payloads, outcomes, strict=True):
        row = await database.one(
            "SELECT payload::text AS payload FROM async_invocations WHERE id = %(id)s",
            id=accepted(outcome).invocation_id,
        )
        assert row == {"payload": payload.decode()}


async def test_one_key_is_one_job_under_a_hundred_duplicates(database: Database) -> None:
    """EV5: a duplicate with the same key returns the first job."""
    await function(database)
    batches = await asyncio.gather(
        *(add(database, *(job(b"1", idempotency_key="k") for _ in range(10)), job(b"2")) for _ in range(10))
    )
    keyed = [accepted(outcome) for batch in batches for outcome in batch[:10]]
    assert len({outcome.invocation_id for outcome in keyed}) == 1
    assert sum(not outcome.replayed for outcome in keyed) == 1
    row = await database.one("SELECT count(*) AS n FROM async_invocations")
    assert row == {"n": 11}


async def test_a_key_is_bound_to_payload_qualifier_function_and_scope(database: Database) -> None:
    other = await tenant(database, "other")
    await function(database)
    await function(database, "g")
    await function(database, scope=other)
    (first,) = await add(database, job(b"1", idempotency_key="k"))
    (again, conflict, elsewhere, foreign) = await add(
        database,
        job(b"1", idempotency_key="k"),
        job(b"2", idempotency_key="k"),
        job(b"2", function="g", idempotency_key="k"),
        job(b"2", scope=other, idempotency_key="k"),
    )
    assert accepted(again) == Accepted(accepted(first).invocation_id, "queued", replayed=True)
    assert refused(conflict) == "idempotency_conflict"
    assert not accepted(elsewhere).replayed
    assert not accepted(foreign).replayed


async def test_a_key_is_free_again_when_it_has_expired_or_its_job_is_deleted(database: Database) -> None:
    await function(database)
    first, second = await add(database, job(b"1", idempotency_key="a"), job(b"1", idempotency_key="b"))
    await database.run("UPDATE idempotency_keys SET expires_at = now() WHERE key = 'a'")
    await database.run("UPDATE async_invocations SET status = 'succeeded' WHERE idempotency_key = 'b'")
    async with database.transaction() as conn:
        assert await asyncs.delete(conn, Scope(), [accepted(second).invocation_id]) == 1
    for outcome in await add(database, job(b"2", idempotency_key="a"), job(b"2", idempotency_key="b")):
        assert not accepted(outcome).replayed
    assert accepted(first).status == "queued"


async def test_finished_jobs_are_kept_as_long_as_they_should_be(database: Database) -> None:
    """DB6: what succeeded and what is dead have times of their own; what is queued is never too old."""
    await function(database)
    ages = {"a": ("succeeded", 8), "b": ("cancelled", 6), "c": ("dlq", 8), "d": ("dlq", 31), "e": ("cancelled", 40)}
    now = datetime.now(UTC)
    jobs = [job(idempotency_key=key, id=id_at(now - timedelta(days=days))) for key, (_, days) in ages.items()]
    await add(database, *jobs, job(idempotency_key="f", id=id_at(now - timedelta(days=50))))
    for made, (status, days) in zip(jobs, ages.values(), strict=True):
        await database.run(
            "UPDATE async_invocations SET status = %(status)s, error = '{}',"
            " finished_at = now() - make_interval(days => %(days)s) WHERE id = %(id)s",
            status=status,
            days=days,
            id=made.id,
        )
    before = (now - timedelta(days=7), now - timedelta(days=30))
    kept = JobRetention(database)
    assert [await kept.delete(*before, limit=2), await kept.delete(*before, limit=2)] == [2, 1]
    assert await kept.delete(*before, limit=9) == 0
    left = await database.fetch("SELECT idempotency_key AS key FROM async_invocations ORDER BY key")
    assert [row["key"] for row in left] == ["b", "c", "f"]
    assert left == await database.fetch("SELECT key FROM idempotency_keys ORDER BY key")


async def test_the_jobs_of_a_deleted_function_go_with_it(database: Database) -> None:
    function_id = await function(database)
    await function(database, "g")
    await add(database, job(idempotency_key="k"), job(), job(function="g"))
    await database.run("UPDATE async_invocations SET status = 'dlq', error = '{}' WHERE idempotency_key = 'k'")
    async with database.transaction() as conn:
        await asyncs.delete_of_function(conn, Scope(), "f", function_id)
    assert [row["function_name"] for row in await database.fetch("SELECT * FROM async_invocations")] == ["g"]
    assert len(await database.fetch("SELECT id FROM work")) == 1
    assert await database.fetch("SELECT key FROM idempotency_keys") == []


async def test_a_job_that_was_held_by_mistake_goes_on(database: Database) -> None:
    await function(database)
    stray, meant = [accepted(outcome) for outcome in await add(database, job(), job())]
    await database.run("UPDATE work SET run_at = 'infinity'")
    await database.run("UPDATE async_invocations SET paused = true WHERE id = %(id)s", id=meant.invocation_id)
    await asyncs.tidy(database)
    due = await database.fetch("SELECT id::text AS id FROM work WHERE run_at <= now()")
    assert due == [{"id": stray.invocation_id}]


async def test_counts_follow_every_change(database: Database) -> None:
    """The numbers per status are kept by the table itself, whoever changes it."""
    await function(database)
    outcomes = [accepted(outcome) for outcome in await add(database, job(), job(), job())]
    await database.run(
        "UPDATE async_invocations SET status = 'dlq', error = '{}' WHERE id = %(id)s", id=outcomes[0].invocation_id
    )
    await database.run("DELETE FROM async_invocations WHERE id = %(id)s", id=outcomes[1].invocation_id)
    rows = await database.fetch("SELECT status, sum(jobs)::int AS n FROM async_counts GROUP BY 1")
    assert {row["status"]: row["n"] for row in rows} == {"queued": 1, "dlq": 1}
