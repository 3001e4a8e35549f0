"""The cluster over HTTP: who is there, who leads, and what an operator may say of a node."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from nova.api import cluster
from nova.scheduling.nodes import ClusterHandlers
from nova.store.db import Database
from nova.store.leases import LeaseSession
from nova.store.nodes import NodeStore
from tests.control.support import fields, problem
from tests.http.harness import Api, management

pytestmark = pytest.mark.anyio
INFO = {"cpu_cores": 2, "memory_mb": 3900, "version": "1.0", "arch": "amd64", "backends": {"sandbox": {}}}
WARM = {"tenant": "t", "namespace": "n", "function": "f", "version": 1, "instances": 2, "free": 1}
LOAD = {"cpu_usage": 0.5, "io_pressure": None, "active_vms": 3, "max_vms": 64, "queue_depth": 1, "warm": [WARM]}


@dataclass
class Cluster:
    api: Api
    store: NodeStore

    async def add(self, node_id: str, plane: str = "comet", *, gone: bool = False, **labels: str) -> None:
        comet = plane == "comet"
        await self.store.register(
            node_id,
            plane,
            f"host-{node_id}",
            "10.0.0.1:9090",
            info=INFO if comet else {},
            load=LOAD if comet else {},
            labels=labels,
        )
        if gone:
            await self.store.db.run("UPDATE cluster_nodes SET lease_until = now() WHERE id = %(id)s", id=node_id)

    async def ids(self, **query: Any) -> list[str]:
        answer = await self.api.client.get("/cluster/nodes", params=query)
        assert answer.status_code == 200, answer.text
        return [item["id"] for item in answer.json()["items"]]

    async def patch(self, node_id: str, **body: Any) -> Any:
        answer = await self.api.client.patch(f"/cluster/nodes/{node_id}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
async def running(database: Database) -> AsyncIterator[Cluster]:
    store = NodeStore(database)
    async with management(database, [ClusterHandlers(database, store)], cluster.ROUTES) as api:
        yield Cluster(api, store)


async def test_nodes_are_listed_filtered_and_paged(running: Cluster) -> None:
    await running.add("a")
    await running.add("b", "corona")
    await running.add("c", gone=True)
    await running.add("d")
    await running.patch("d", state="cordoned")
    assert await running.ids() == ["d", "c", "b", "a"]
    assert await running.ids(plane="comet") == ["d", "c", "a"]
    assert await running.ids(state="gone") == ["c"]
    assert await running.ids(state="active", plane="comet") == ["a"]
    assert await running.ids(state="cordoned") == ["d"]
    page = (await running.api.client.get("/cluster/nodes?limit=3")).json()
    assert [item["id"] for item in page["items"]] == ["d", "c", "b"]
    assert await running.ids(limit=3, cursor=page["next_cursor"]) == ["a"]
    for bad, field in (("state=well", "state"), ("plane=moon", "plane"), ("limit=0", "limit")):
        answer = await running.api.client.get(f"/cluster/nodes?{bad}")
        assert fields(problem(answer, 400, "validation_failed")) == [field]
    problem(await running.api.client.get("/cluster/nodes?cursor=x"), 400, "invalid_cursor")


async def test_a_node_shows_what_it_has_and_what_it_does(running: Cluster) -> None:
    await running.add("a", zone="east")
    await running.add("w", "nebula")
    node = (await running.api.client.get("/cluster/nodes/a")).json()
    shown = {"cpu_cores": 2, "memory_mb": 3900, "max_vms": 64, "active_vms": 3, "queue_depth": 1, "arch": "amd64"}
    assert {name: node[name] for name in shown} == shown
    assert (node["name"], node["plane"], node["state"], node["backends"]) == ("host-a", "comet", "active", ["sandbox"])
    assert (node["labels"], node["address"], node["version"]) == ({"zone": "east"}, "10.0.0.1:9090", "1.0")
    assert (node["load"]["cpu_usage"], node["load"]["io_pressure"], node["load"]["warm"]) == (0.5, None, [WARM])
    assert node["lease_until"] > node["last_heartbeat"]
    worker = (await running.api.client.get("/cluster/nodes/w")).json()
    assert (worker["active_vms"], worker["load"]["inflight"], worker["backends"]) == (None, None, [])
    problem(await running.api.client.get("/cluster/nodes/x"), 404, "not_found")


async def test_an_operator_changes_state_and_labels(running: Cluster) -> None:
    """A merge patch; the change is in the row that the process reads back, and in the trail."""
    await running.add("a", zone="east", rack="7")
    assert (await running.patch("a", state="draining"))["state"] == "draining"
    patched = await running.patch("a", labels={"rack": None, "disk": "ssd"})
    assert (patched["labels"], patched["state"]) == ({"zone": "east", "disk": "ssd"}, "draining")
    assert (await running.patch("a", state=None))["state"] == "active"
    assert (await running.patch("a", labels=None))["labels"] == {}
    record = await running.store.get("a")
    assert record is not None
    assert (record.state, record.labels) == ("active", {})
    assert {row["action"] for row in await running.api.audit()} == {"node.update"}


async def test_what_cannot_be_changed_is_refused(running: Cluster) -> None:
    await running.add("a")
    await running.add("dead", gone=True)
    patch = running.api.client.patch
    refused = problem(await patch("/cluster/nodes/a", json={"state": "gone"}), 400, "validation_failed")
    assert fields(refused) == ["state"]
    problem(await patch("/cluster/nodes/a", json={"name": "b"}), 400, "unknown_field")
    problem(await patch("/cluster/nodes/a", json={"labels": {"no spaces": "x"}}), 400, "validation_failed")
    problem(await patch("/cluster/nodes/a", json={"labels": {"x": "y" * 257}}), 400, "validation_failed")
    many = {f"l{number}": "x" for number in range(cluster.MAX_LABELS + 1)}
    assert fields(problem(await patch("/cluster/nodes/a", json={"labels": many}), 400, "validation_failed")) == [
        "labels"
    ]
    problem(await patch("/cluster/nodes/dead", json={"state": "active"}), 409, "invalid_state")
    problem(await patch("/cluster/nodes/x", json={"state": "active"}), 404, "not_found")


async def test_only_what_is_gone_can_be_deleted(running: Cluster) -> None:
    await running.add("a")
    await running.add("dead", gone=True)
    problem(await running.api.client.delete("/cluster/nodes/a"), 409, "invalid_state")
    assert (await running.api.client.delete("/cluster/nodes/dead")).status_code == 204
    problem(await running.api.client.delete("/cluster/nodes/dead"), 404, "not_found")
    assert await running.ids() == ["a"]


async def test_leaders_are_named_while_they_lead(running: Cluster) -> None:
    session = LeaseSession(running.store.db.dsn, "process-1", "host-1")
    try:
        await session.claim(["schedules", "rollup"], 60)
        await session.claim(["past"], 0)
    finally:
        await session.close()
    items = (await running.api.client.get("/cluster/leaders")).json()["items"]
    assert [item["duty"] for item in items] == ["rollup", "schedules"]
    assert (items[0]["owner"], items[0]["node"], items[0]["fence"]) == ("process-1", "host-1", 1)
    assert items[0]["until"] > items[0]["acquired_at"]


async def test_the_cluster_is_for_platform_administrators(running: Cluster) -> None:
    """SC10: no tenant's key sees or changes it, whatever its role."""
    await running.add("a")
    headers = {"X-API-Key": await running.api.key("admin")}
    platform = {"X-API-Key": await running.api.key("platform-admin")}
    for method, path in (
        ("GET", "/cluster/nodes"),
        ("GET", "/cluster/nodes/a"),
        ("PATCH", "/cluster/nodes/a"),
        ("DELETE", "/cluster/nodes/a"),
        ("GET", "/cluster/leaders"),
    ):
        body = {"state": "draining"} if method == "PATCH" else None
        answer = await running.api.remote.request(method, path, json=body, headers=headers)
        problem(answer, 403, "forbidden")
        answer = await running.api.remote.request(method, path, json=body, headers=platform)
        assert answer.status_code == (409 if method == "DELETE" else 200)
