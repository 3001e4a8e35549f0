"""State as SQL: versions, ends, prefixes, counters and what a function may keep."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from nova.domain.identity import Scope
from nova.domain.state import Owner
from nova.domain.version import FunctionSettings, Recorded
from nova.errors import NovaError
from nova.store.db import Database
from nova.store.functions import FunctionStore
from nova.store.state import StateStore

pytestmark = pytest.mark.anyio
SCOPE = Scope()
MB = 1 << 20


async def owner_in(db: Database, name: str = "hello", scope: Scope = SCOPE) -> Owner:
    async with db.transaction() as conn:
        function_id = await FunctionStore(db).insert(conn, scope, name, FunctionSettings(Recorded()), "test")
    assert function_id is not None
    return Owner(scope, function_id)


async def refused(work: object) -> NovaError:
    with pytest.raises(NovaError) as caught:
        await work  # type: ignore[misc]
    return caught.value


async def test_of_two_writers_with_one_version_one_succeeds(database: Database) -> None:
    """ST2."""
    store, owner = StateStore(database, lambda: 64 * MB), await owner_in(database)
    assert (await store.put(owner, "k", b'{"a": 1}', expected=0)).version == 1
    outcomes = await asyncio.gather(
        *(store.put(owner, "k", b"%d" % n, expected=1) for n in range(8)), return_exceptions=True
    )
    conflicts = [one for one in outcomes if isinstance(one, NovaError)]
    assert len(conflicts) == 7
    assert {(c.code, c.extra["current_version"]) for c in conflicts} == {("version_conflict", 2)}
    assert (await refused(store.put(owner, "k", b"1", expected=0))).code == "version_conflict"
    assert (await refused(store.put(owner, "new", b"1", expected=3))).extra == {"current_version": 0}
    assert (await refused(store.delete(owner, "k", expected=1))).code == "version_conflict"
    await store.delete(owner, "k", expected=2)
    assert (await refused(store.get(owner, "k"))).code == "not_found"


async def test_an_expired_key_is_gone_at_once_and_its_row_later(database: Database) -> None:
    """ST2: also for writers and counters, and its successor has a later version."""
    store, owner = StateStore(database, lambda: 64 * MB), await owner_in(database)
    await store.put(owner, "k", b"1", ttl_s=60)
    await store.put(owner, "n", b"5", ttl_s=60)
    await store.put(owner, "stays", b"1")
    await database.run("UPDATE function_state SET expires_at = now() - interval '1 s' WHERE key IN ('k', 'n')")
    assert (await refused(store.get(owner, "k"))).code == "not_found"
    assert (await refused(store.put(owner, "k", b"2", expected=1))).extra == {"current_version": 0}
    assert (await refused(store.delete(owner, "k"))).code == "not_found"
    assert [item.key for item in await store.page(owner, "", after=None, limit=10)] == ["stays"]
    counted = await store.increment(owner, "n", 2)
    assert (counted.value, counted.version, counted.expires_at) == (b"2", 2, None)
    assert await store.sweep(datetime.now(UTC) + timedelta(seconds=5), 100) == 1
    assert (await store.put(owner, "k", b"2", expected=0)).version == 1


async def test_a_prefix_is_literal_and_lists_are_paged(database: Database) -> None:
    """ST3: % and _ are characters like others, as are those at the end of the alphabet."""
    store, owner = StateStore(database, lambda: 64 * MB), await owner_in(database)
    keys = ["a%b/1", "a%b/2", "aXb/1", "a_b/1", "b", "ü/1", "\U0010ffff/1"]
    for key in keys:
        await store.put(owner, key, b"true")

    async def found(prefix: str, after: str | None = None, limit: int = 10) -> list[str]:
        return [item.key for item in await store.page(owner, prefix, after=after, limit=limit)]

    assert await found("a%b/") == ["a%b/1", "a%b/2"]
    assert await found("a_") == ["a_b/1"]
    assert await found("ü") == ["ü/1"]
    assert await found("\U0010ffff") == ["\U0010ffff/1"]
    assert await found("", limit=3) == sorted(keys)[:3]
    assert await found("", after=sorted(keys)[2]) == sorted(keys)[3:]
    assert await store.delete_prefix(owner, "a%") == 2
    assert await found("a") == ["aXb/1", "a_b/1"]


async def test_counters_add_up_and_refuse_what_is_no_number(database: Database) -> None:
    store, owner = StateStore(database, lambda: 64 * MB), await owner_in(database)
    await asyncio.gather(*(store.increment(owner, "hits", 1) for _ in range(40)))
    assert (await store.increment(owner, "hits", -1, ttl_s=60)).value == b"39"
    kept = await store.increment(owner, "hits", 1)
    assert kept.expires_at is not None, "an increment without ttl_s leaves the end of the key alone"
    for value in (b'"text"', b"1.5", b"9007199254740991", b"99999999999999999999999"):
        await store.put(owner, "odd", value)
        assert (await refused(store.increment(owner, "odd", 1))).code == "invalid_state"


async def test_a_function_keeps_no_more_than_it_may_and_nothing_after_its_end(database: Database) -> None:
    """Rewriting does not use a quota up; another function's state has a limit of its own; both go with their function."""
    store, owner, other = StateStore(database, lambda: MB), await owner_in(database), await owner_in(database, "other")
    value = b'"%b"' % (b"x" * 200_000)
    for _ in range(8):
        await store.put(owner, "same", value)
    for n in range(4):
        await store.put(owner, f"k{n}", value)
    full = await refused(store.put(owner, "one more", value))
    assert (full.code, full.status, full.extra) == ("quota_exceeded", 429, {"limit_bytes": MB})
    await store.put(other, "k", value)
    await store.delete(owner, "k0")
    await store.put(owner, "one more", value)
    async with database.transaction() as conn:
        await conn.run("DELETE FROM functions WHERE id = %(id)s", id=owner.function_id)
    row = await database.one("SELECT count(*) AS n FROM function_state")
    assert row == {"n": 1}
    assert (await refused(store.put(owner, "k", b"1"))).code == "not_found"
