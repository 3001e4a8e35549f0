import asyncio

import psycopg
import pytest

from nova.domain.identity import Scope
from nova.store.db import Database
from nova.work.queue import LeaseLost, WorkQueue, enqueue, finish, hold, withdraw
from tests.work.conftest import add

pytestmark = pytest.mark.anyio


async def expire(db: Database) -> None:
    await db.run("UPDATE work SET lease_until = now() - interval '1 second' WHERE lease_until IS NOT NULL")


async def test_enqueued_work_exists_only_if_the_transaction_commits(database: Database) -> None:
    """DB10: a noun and its work are one transaction."""
    with pytest.raises(RuntimeError):  # noqa: PT012
        async with database.transaction() as conn:
            await enqueue(conn, "thing", Scope(), "00000000-0000-7000-8000-000000000001", {})
            raise RuntimeError("killed half-way")
    assert await WorkQueue(database, "a").claim("thing", 10) == []


async def test_two_owners_never_hold_one_item(database: Database) -> None:
    subjects = {await add(database) for _ in range(30)}
    a, b = WorkQueue(database, "a"), WorkQueue(database, "b")
    batches = await asyncio.gather(*(queue.claim("thing", 4) for queue in (a, b) * 5))
    claimed = [item.subject for batch in batches for item in batch]
    assert len(claimed) == len(set(claimed)) == 30
    assert set(claimed) == subjects


async def test_a_lost_lease_cannot_finish_release_or_prolong(database: Database) -> None:
    """EV2: the fence of a later claim shuts the earlier owner out, even under the same name."""
    await add(database)
    queue = WorkQueue(database, "a")
    (first,) = await queue.claim("thing", 1)
    await expire(database)
    (second,) = await queue.claim("thing", 1)
    assert (second.attempt, second.fence) == (2, first.fence + 1)
    for act in (finish, hold):
        with pytest.raises(LeaseLost):
            async with database.transaction() as conn:
                await act(conn, first)
    await queue.release(first)
    assert await queue.heartbeat([first]) == set()
    assert await queue.heartbeat([second]) == {second.claim}
    assert await queue.claim("thing", 1) == []
    async with database.transaction() as conn:
        await finish(conn, second)
    assert await database.fetch("SELECT 1 AS x FROM work") == []


async def test_a_prolonged_lease_is_not_claimed(database: Database) -> None:
    """EV1: a lease is renewed while the job runs."""
    await add(database)
    queue = WorkQueue(database, "a", lease_s=3600)
    (item,) = await queue.claim("thing", 1)
    await expire(database)
    assert await queue.heartbeat([item]) == {item.claim}
    assert await WorkQueue(database, "b").claim("thing", 1) == []


async def test_released_without_counting_is_the_same_attempt(database: Database) -> None:
    await add(database)
    queue = WorkQueue(database, "a")
    (item,) = await queue.claim("thing", 1)
    await queue.release(item, counts=False)
    (again,) = await queue.claim("thing", 1)
    assert again.attempt == 1
    await queue.release(again)
    (third,) = await queue.claim("thing", 1)
    assert third.attempt == 2


async def test_work_waits_for_its_time(database: Database) -> None:
    await add(database, delay_s=3600)
    queue = WorkQueue(database, "a")
    assert await queue.claim("thing", 1) == []
    await database.run("UPDATE work SET run_at = now()")
    assert len(await queue.claim("thing", 1)) == 1


async def test_one_tenant_takes_no_more_than_its_share(database: Database) -> None:
    for tenant in ("default", "default", "default", "default", "other"):
        await add(database, tenant=tenant)
    a, b = WorkQueue(database, "a"), WorkQueue(database, "b")
    batches = await asyncio.gather(*(queue.claim("thing", 3, per_tenant=2) for queue in (a, b)))
    tenants = sorted(item.scope.tenant for batch in batches for item in batch)
    assert tenants == ["default", "default", "other"]
    (mine,) = [item for item in batches[0] + batches[1] if item.scope.tenant == "other"]
    assert mine.attempt == 1


async def test_equal_subjects_of_two_tenants_do_not_meet(database: Database) -> None:
    """DB5: the unique key begins with the tenant."""
    subject = "00000000-0000-7000-8000-000000000001"
    for tenant in ("one", "two"):
        async with database.transaction() as conn:
            await enqueue(conn, "thing", Scope(tenant), subject, {})
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with database.transaction() as conn:
            await enqueue(conn, "thing", Scope("one"), subject, {})
    async with database.transaction() as conn:
        assert await withdraw(conn, "thing", Scope("one"), subject)
    (left,) = await WorkQueue(database, "a").claim("thing", 10)
    assert left.scope.tenant == "two"
