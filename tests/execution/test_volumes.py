"""Functions that mount volumes, in real instances, and who may write to them."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova.domain.identity import Scope
from nova.domain.volume import Mount
from nova.errors import NovaError
from nova.execution.volume_files import obstacle
from nova.store.volumes import VolumeStore
from tests.execution.stack import RealStack, real_stack

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(bool(obstacle()), reason=obstacle() or "it works"),
]
WORK = """
import os, time
def handler(event, context):
    path = event.get("path", "/mnt/data/file")
    try:
        if "write" in event:
            with open(path, "a") as file:
                file.write(event["write"])
        if "fill" in event:
            with open(path, "wb") as file:
                for _ in range(event["fill"]):
                    file.write(bytes(1 << 20))
            return {"size": os.stat(path).st_size}
        time.sleep(event.get("sleep", 0))
        return {"text": open(path).read(), "names": sorted(os.listdir("/mnt")), "owner": os.stat(path).st_uid}
    except OSError as error:
        return {"errno": error.errno}
"""


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    async with real_stack(pg_dsn, tmp_path) as running:
        yield running


async def volume(stack: RealStack, name: str, size_mb: int = 8, *, shared: bool = False) -> str:
    store = VolumeStore(stack.db)
    await store.insert(Scope(), name, size_mb=size_mb, shared=shared, description="", created_by="test")
    found = await store.get(Scope(), name)
    assert found is not None
    return found.id


async def call(stack: RealStack, function: str = "hello", version: int | None = None, **event: Any) -> Any:
    """``version``: right after a deploy, calls may still go to the version before."""
    qualifier = None if version is None else str(version)
    result = await stack.invoke(json.dumps(event).encode(), function, qualifier=qualifier)
    assert result.output is not None, result.error or result
    return json.loads(result.output)


async def eventually(true: Any) -> None:
    async with asyncio.timeout(20):
        while not await true():
            await asyncio.sleep(0.02)


async def test_data_outlives_instances_and_versions_within_its_size(stack: RealStack) -> None:
    """BE14: what one instance writes the next one reads, and no more of it than the volume holds."""
    data = Mount("data", await volume(stack, "data"), "/mnt/data")
    await stack.deploy(WORK, mounts=(data,))
    assert await call(stack, write="one") == {"text": "one", "names": ["data"], "owner": 65534}
    first = [info.instance_id for info in stack.fleet.instances(Scope(), "hello")]
    second = await stack.deploy(WORK, mounts=(data,), timeout_s=20)
    assert (await call(stack, version=second, write=" two"))["text"] == "one two", "the version before made way"
    assert [info.instance_id for info in stack.fleet.instances(Scope(), "hello")] != first
    assert await call(stack, fill=9, path="/mnt/data/big") == {"errno": 28}
    assert await call(stack, write="x", path="/mnt/beside") == {"errno": 30}
    reader = await stack.deploy(WORK, mounts=(Mount("data", data.volume_id, "/mnt/other", read_only=True),))
    assert await call(stack, version=reader, write="x", path="/mnt/other/file") == {"errno": 30}
    assert (await call(stack, version=reader, path="/mnt/other/file"))["text"] == "one two"
    await stack.db.run("UPDATE volumes SET size_mb = 24")
    stack.fleet.evict(Scope(), "hello", ())
    await eventually(lambda: _none(stack, "hello"))
    await stack.deploy(WORK, mounts=(data,), timeout_s=21)
    assert await call(stack, fill=12, path="/mnt/data/big") == {"size": 12 << 20}, "it has grown"
    used = await VolumeStore(stack.db).get(Scope(), "data")
    assert used is not None
    assert used.node == "here"


async def test_one_instance_writes_and_the_others_wait_their_turn(stack: RealStack) -> None:
    """BE14: never two at once; whoever writes makes way, and who cannot wait any longer is told why."""
    data = Mount("data", await volume(stack, "data"), "/mnt/data")
    for name in ("one", "two"):
        await stack.deploy(WORK, name, mounts=(data,))
    slow = asyncio.create_task(call(stack, "one", write="1", sleep=0.3))
    await eventually(lambda: _holder(stack))
    second = asyncio.create_task(call(stack, "two", write="2"))
    assert (await slow)["text"] == "1"
    assert (await second)["text"] == "12", "the idle writer gave it up"
    together = await asyncio.gather(*(call(stack, "two", write=".") for _ in range(4)))
    assert max(len(answer["text"]) for answer in together) == 6
    assert len(stack.fleet.instances(Scope(), "two")) == 1
    fences = await stack.db.fetch("SELECT fence, owner FROM volume_leases")
    assert [row["fence"] for row in fences] == [2]
    stack.volumes._wait_s = 0.1
    await stack.db.run("UPDATE volume_leases SET owner = 'elsewhere', instance_id = 'other', fence = 9")
    await stack.volumes.renew()
    await eventually(lambda: _none(stack, "two"))
    with pytest.raises(NovaError, match="another instance writes to volume 'data'"):
        await stack.invoke(b"{}", "one")
    await stack.db.run("UPDATE volume_leases SET until = now() - interval '1 s'")
    stack.fleet._pools.clear()
    assert (await call(stack, "one"))["text"].startswith("12"), "a lease that was not renewed is over"


async def _holder(stack: RealStack) -> bool:
    return await stack.db.one("SELECT 1 AS one FROM volume_leases WHERE instance_id IS NOT NULL") is not None


async def _none(stack: RealStack, function: str) -> bool:
    return not stack.fleet.instances(Scope(), function)


async def test_a_shared_volume_has_several_writers(stack: RealStack) -> None:
    shared = Mount("all", await volume(stack, "all", shared=True), "/mnt/data", shared=True)
    await stack.deploy(WORK, mounts=(shared,))
    await asyncio.gather(*(call(stack, write="x", sleep=0.2) for _ in range(2)))
    assert len(stack.fleet.instances(Scope(), "hello")) == 2
    assert (await call(stack))["text"] == "xx"


async def test_a_volume_of_another_node_is_refused_and_a_deleted_one_leaves_no_files(
    stack: RealStack, tmp_path: Path
) -> None:
    data = Mount("data", await volume(stack, "data"), "/mnt/data")
    await stack.deploy(WORK, mounts=(data,))
    await call(stack, write="x")
    (home,) = (tmp_path / "volumes").glob(f"*/{data.volume_id}")
    others = home.parent.parent / "another" / data.volume_id
    others.mkdir(parents=True)
    (others / "lock").touch()
    await stack.db.run("UPDATE volumes SET node = 'an old name of this node'")
    renamed = await stack.deploy(WORK, mounts=(data,), timeout_s=20)
    assert (await call(stack, version=renamed))["text"] == "x"
    assert await stack.volumes._host.look(data.volume_id) == ("here", 8)
    away = Mount("away", await volume(stack, "away"), "/mnt/data")
    await stack.db.run("UPDATE volumes SET node = 'far' WHERE name = 'away'")
    refused = await stack.deploy(WORK, mounts=(away,))
    with pytest.raises(NovaError, match="is on node 'far'"):
        await call(stack, version=refused)
    await stack.db.run("DELETE FROM volumes")
    await stack.volumes.sweep()
    assert not home.exists()
    assert others.exists(), "what another installation keeps there is not ours"
