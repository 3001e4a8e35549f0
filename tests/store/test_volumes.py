"""The right to write to a volume: one instance at a time, until it gives it back or its time is over."""

from typing import Any

import pytest

from nova.domain.identity import Scope
from nova.store.blobs import BlobStore
from nova.store.db import Database
from nova.store.layers import LayerStore
from nova.store.tenants import TenantStore
from nova.store.volumes import VolumeHost, VolumeStore

pytestmark = pytest.mark.anyio


@pytest.fixture
async def volume(database: Database) -> str:
    store = VolumeStore(database)
    await store.insert(Scope(), "data", size_mb=1, shared=False, description="", created_by="test")
    found = await store.get(Scope(), "data")
    assert found is not None
    return found.id


async def test_a_lease_is_held_renewed_and_given_back(database: Database, volume: str) -> None:
    here, there = VolumeHost(database, "a", "a/1"), VolumeHost(database, "b", "b/1")
    assert await here.acquire(volume, "one", 30) == 1
    assert await there.acquire(volume, "two", 30) is None
    assert (await here.holder(volume), await there.holder(volume)) == ("one", None)
    assert await here.renew({(volume, 1)}, 30) == {(volume, 1)}
    await there.release([volume], "two")
    assert await there.acquire(volume, "two", 30) is None, "only who has it gives it back"
    await here.release([volume], "one")
    assert await here.renew({(volume, 1)}, 30) == set()
    assert await there.acquire(volume, "two", 30) == 2


async def test_a_lease_that_is_over_goes_to_the_next_and_its_fence_is_of_no_use(
    database: Database, volume: str
) -> None:
    here, there = VolumeHost(database, "a", "a/1"), VolumeHost(database, "b", "b/1")
    assert await here.acquire(volume, "one", -1) == 1
    assert await there.acquire(volume, "two", 30) == 2
    assert await here.renew({(volume, 1)}, 30) == set()
    await here.release_all()
    assert await there.renew({(volume, 2)}, 30) == {(volume, 2)}


async def test_a_process_that_is_started_again_gives_back_what_it_had(database: Database, volume: str) -> None:
    """BE2: a killed daemon keeps no volume from the next one."""
    before, after = VolumeHost(database, "a", "a/1"), VolumeHost(database, "a", "a/1")
    assert await before.acquire(volume, "one", 30) == 1
    await after.release_all()
    assert await after.acquire(volume, "two", 30) == 2


async def test_a_volume_stays_on_the_node_that_took_it_first(database: Database, volume: str) -> None:
    here, there = VolumeHost(database, "a", "a/1"), VolumeHost(database, "b", "b/1")
    assert await here.look(volume) == (None, 1)
    assert (await here.settle(volume), await there.settle(volume)) == ("a", "a")
    assert await there.look(volume) == ("a", 1)
    assert await here.installation() == await there.installation()
    await here.tell_use(volume, 1 << 19)
    found = await VolumeStore(database).get(Scope(), "data")
    assert found is not None
    assert (found.node, found.used_bytes) == ("a", 1 << 19)
    assert await here.existing([volume, "01a2052c-1ba0-71e5-b147-a7171a26e886"]) == {volume}


async def test_a_tenant_that_is_erased_leaves_neither_layers_nor_volumes(database: Database) -> None:
    tenants, scope = TenantStore(database), Scope("acme", "default")
    async with database.transaction() as conn:
        await tenants.insert(conn, "acme", "Acme", "active", "standard")
    await VolumeStore(database).insert(scope, "data", size_mb=1, shared=False, description="", created_by="test")
    async with database.transaction() as conn:
        artifact = await BlobStore(database).put(b"a tree", conn=conn)
        made: dict[str, Any] = {"size": 6, "files": 1, "runtimes": (), "description": "", "created_by": "test"}
        await LayerStore(database).publish(conn, scope, "deps", artifact=artifact, **made)
        assert await tenants.content(conn, "acme", "default") == ["layer:deps", "volume:data"]
        await tenants.erase(conn, "acme")
    for table in ("layers", "layer_versions", "volumes"):
        assert await database.one(f"SELECT count(*) AS n FROM {table}") == {"n": 0}
