"""Workflows and their versions over the API, on a real database. What runs do is in tests/events/workflows and tests/e2e."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from nova.api import workflows as api
from nova.config import LimitSettings
from nova.control.workflow_versions import WorkflowVersionHandlers
from nova.control.workflows import WorkflowHandlers
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.ids import new_id
from nova.store.apikeys import KeyGrant
from nova.store.db import Database
from nova.store.workflows import WorkflowStore
from tests.control.support import problem
from tests.events.bus.topics import topic
from tests.http.harness import Api, management
from tests.scheduling.support import function

pytestmark = pytest.mark.anyio


def call(key: str, name: str = "f", **more: Any) -> dict[str, Any]:
    return {"node_key": key, "node_type": "function", "function_name": name, **more}


CHAIN = {"nodes": [call("a"), call("b", "g")], "edges": [{"from": "a", "to": "b"}]}


@dataclass
class Cancelled:
    """Stands for the engine: a cancelled run has ended."""

    db: Database
    runs: list[str] = field(default_factory=list)

    async def cancel(self, scope: Scope, run_id: str, reason: str, compensate: bool, *, by: str) -> None:
        self.runs.append(run_id)
        changed = await self.db.run(
            "UPDATE dag_runs SET status = 'cancelled', finished_at = now() WHERE id = %(id)s AND finished_at IS NULL",
            id=run_id,
        )
        if not changed:
            raise NovaError("invalid_state", "the run has ended")


@dataclass
class Plane:
    api: Api
    db: Database
    cancelled: Cancelled
    limits: LimitSettings

    @property
    def client(self) -> httpx.AsyncClient:
        return self.api.client

    async def create(self, name: str = "orders", **members: Any) -> dict[str, Any]:
        answer = await self.client.post("/workflows", json={"name": name, **members})
        assert answer.status_code == 201, answer.text
        assert answer.headers["location"] == f"/workflows/{name}"
        made: dict[str, Any] = answer.json()
        return made

    async def publish(self, definition: Any = None, query: str = "", name: str = "orders") -> httpx.Response:
        return await self.client.post(f"/workflows/{name}/versions{query}", json=definition or CHAIN)

    async def get(self, path: str) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def run(self, workflow: dict[str, Any], status: str = "running") -> str:
        """A run's row."""
        run_id = new_id()
        await self.db.run(
            "INSERT INTO dag_runs (id, tenant_id, namespace, workflow_id, workflow_name, version, status, input, caller,"
            " source, deadline_at) VALUES (%(id)s, 'default', 'default', %(workflow)s, %(name)s, 1, %(status)s, '{}',"
            " 'operator', 'api', now() + interval '1 day')",
            id=run_id,
            workflow=workflow["id"],
            name=workflow["name"],
            status=status,
        )
        return run_id


@asynccontextmanager
async def planed(database: Database) -> AsyncIterator[Plane]:
    store, cancelled, limits = WorkflowStore(database), Cancelled(database), LimitSettings()
    for name in ("f", "g"):
        await function(database, name)
    handlers = [WorkflowHandlers(database, store, cancelled), WorkflowVersionHandlers(database, store, limits)]
    async with management(database, handlers, api.ROUTES) as running:
        yield Plane(running, database, cancelled, limits)


@pytest.fixture
async def plane(database: Database) -> AsyncIterator[Plane]:
    async with planed(database) as running:
        yield running


async def test_a_workflow_from_its_creation_to_its_end(plane: Plane) -> None:
    """EV17: a deleted workflow's name can be used again."""
    made = await plane.create(description="the shop's", tags={"team": "shop"}, max_concurrent_runs=3)
    assert (made["active_version"], made["latest_version"], made["on_limit"], made["halted"]) == (
        None,
        None,
        "queue",
        False,
    )
    problem(await plane.client.post("/workflows", json={"name": "orders"}), 409, "already_exists")
    answer = await plane.client.patch(
        "/workflows/orders",
        json={
            "description": "every order",
            "tags": {"team": None, "tier": "1"},
            "max_concurrent_runs": None,
            "on_limit": "reject",
            "on_failure": "finish",
            "default_timeout_s": 60,
            "halted": True,
        },
    )
    assert answer.status_code == 200, answer.text
    changed = await plane.get("/workflows/orders")
    assert {name: changed[name] for name in api.WorkflowFields.model_fields} == {
        "description": "every order",
        "tags": {"tier": "1"},
        "max_concurrent_runs": 0,
        "on_limit": "reject",
        "on_failure": "finish",
        "default_timeout_s": 60,
        "halted": True,
    }
    again = await plane.client.patch("/workflows/orders", json={"default_timeout_s": None})
    assert again.json()["default_timeout_s"] is None
    assert (await plane.client.delete("/workflows/orders")).status_code == 204
    problem(await plane.client.delete("/workflows/orders"), 404, "not_found")
    await plane.create()
    trail = [row["action"] for row in await plane.api.audit()]
    assert trail == ["workflow.create", "workflow.update", "workflow.update", "workflow.delete", "workflow.create"]


async def test_bad_workflows_are_refused_by_field(plane: Plane) -> None:
    """EV17: names that cannot be addressed in a URL are refused."""
    for members, wrong in (
        ({"name": "a/b"}, "name"),
        ({"name": "x", "description": "x" * 1025}, "description"),
        ({"name": "x", "tags": {"": "x"}}, "tags"),
        ({"name": "x", "max_concurrent_runs": -1}, "max_concurrent_runs"),
        ({"name": "x", "on_limit": "drop"}, "on_limit"),
        ({"name": "x", "on_failure": "ignore"}, "on_failure"),
        ({"name": "x", "default_timeout_s": 0}, "default_timeout_s"),
        ({"name": "x", "halted": "yes"}, "halted"),
    ):
        answer = problem(await plane.client.post("/workflows", json=members), 400, "validation_failed")
        assert answer["errors"][0]["field"].startswith(wrong), answer
    problem(await plane.client.post("/workflows", json={"name": "x", "on_error": "x"}), 400, "unknown_field")


async def test_changes_are_for_the_state_that_was_read(plane: Plane) -> None:
    await plane.create()
    answer = await plane.client.get("/workflows/orders")
    tag = answer.headers["etag"]
    assert (await plane.client.get("/workflows/orders", headers={"If-None-Match": tag})).status_code == 304
    fresh = {"If-Match": tag}
    assert (await plane.client.patch("/workflows/orders", json={"halted": True}, headers=fresh)).status_code == 200
    for method, path, body in (
        ("PATCH", "/workflows/orders", {"halted": False}),
        ("POST", "/workflows/orders/versions", CHAIN),
        ("DELETE", "/workflows/orders", None),
        ("DELETE", "/workflows/orders?cancel_runs=true", None),
    ):
        answer = await plane.client.request(method, path, json=body, headers=fresh)
        problem(answer, 412, "etag_mismatch")
    assert (await plane.get("/workflows/orders"))["halted"] is True


async def test_dry_run_checks_and_writes_nothing(plane: Plane) -> None:
    answer = await plane.client.post("/workflows?dry_run=true", json={"name": "orders", "halted": True})
    assert (answer.status_code, answer.json()["halted"]) == (200, True)
    assert (await plane.get("/workflows"))["items"] == []
    await plane.create()
    problem(await plane.client.post("/workflows?dry_run=true", json={"name": "orders"}), 409, "already_exists")
    answer = await plane.client.patch("/workflows/orders?dry_run=true", json={"halted": True})
    assert (answer.status_code, answer.json()["halted"]) == (200, True)
    assert (await plane.get("/workflows/orders"))["halted"] is False
    answer = await plane.publish(query="?dry_run=true")
    assert (answer.status_code, answer.json()["version"]) == (200, 1)
    assert (await plane.get("/workflows/orders/versions"))["items"] == []
    problem(await plane.publish({"nodes": [call("a", "nobody")]}, "?dry_run=true"), 400, "validation_failed")


async def test_lists_filter_and_page(plane: Plane) -> None:
    for name in ("one", "two", "three"):
        await plane.create(name, description=f"number {name}")
    page = await plane.get("/workflows?limit=2")
    assert [item["name"] for item in page["items"]] == ["three", "two"]
    rest = await plane.get(f"/workflows?limit=2&cursor={page['next_cursor']}")
    assert ([item["name"] for item in rest["items"]], rest["next_cursor"]) == (["one"], None)
    assert [item["name"] for item in (await plane.get("/workflows?q=BER%20two"))["items"]] == ["two"]
    problem(await plane.client.get("/workflows?cursor=x"), 400, "invalid_cursor")
    for _ in range(3):
        definition = {"nodes": [call("a", timeout_s=_ + 1)]}
        assert (await plane.publish(definition, name="one")).status_code == 201
    page = await plane.get("/workflows/one/versions?limit=2")
    assert [item["version"] for item in page["items"]] == [3, 2]
    rest = await plane.get(f"/workflows/one/versions?cursor={page['next_cursor']}")
    assert [item["version"] for item in rest["items"]] == [1]


async def test_versions_never_change_and_one_is_active(plane: Plane) -> None:
    await plane.create()
    first = await plane.publish()
    assert (first.status_code, first.headers["location"]) == (201, "/workflows/orders/versions/1")
    assert (first.json()["active"], first.json()["nodes"], first.json()["definition"]) == (True, 2, CHAIN)
    other = {"nodes": [call("a"), call("c")], "edges": [{"from": "a", "to": "c"}], "output": {"x": "$.input"}}
    second = await plane.publish(other, "?activate=false")
    assert (second.status_code, second.json()["version"], second.json()["active"]) == (201, 2, False)
    assert (await plane.get("/workflows/orders"))["active_version"] == 1
    again = await plane.publish({"edges": CHAIN["edges"], "nodes": CHAIN["nodes"]})
    assert (again.status_code, again.json()["version"]) == (200, 1), "the same definition is the same version"
    activated = await plane.client.post("/workflows/orders/versions/2/activate")
    assert (activated.status_code, activated.json()["active_version"]) == (200, 2)
    assert (await plane.get("/workflows/orders/versions/2"))["definition"] == other
    found = await plane.get("/workflows/orders/versions/1/diff/2")
    assert [(node["node_key"], node["change"]) for node in found["nodes"]] == [("c", "added"), ("b", "removed")]
    assert (found["edges_added"], found["edges_removed"]) == ([{"from": "a", "to": "c"}], CHAIN["edges"])
    assert found["output_changed"] is True
    for path in ("/versions/3", "/versions/1/diff/3"):
        problem(await plane.client.get("/workflows/orders" + path), 404, "not_found")
    problem(await plane.client.get("/workflows/orders/versions/x"), 400, "validation_failed")
    problem(await plane.client.post("/workflows/orders/versions/9/activate"), 404, "not_found")
    problem(await plane.publish(name="nobody"), 404, "not_found")


async def test_every_problem_of_a_definition_is_named_at_once(plane: Plane) -> None:
    definition = {
        "nodes": [
            call("a", "nobody"),
            call("a"),
            {"node_key": "m", "node_type": "map", "items": "$.input[", "do": {"node_type": "function"}},
            {
                "node_key": "s",
                "node_type": "sub_workflow",
                "workflow_name": "nowhere",
                "compensate": {"function_name": "gone"},
            },
        ],
        "edges": [{"from": "a", "to": "z"}],
    }
    found = problem(await plane.client.post("/workflows/validate", json=definition), 400, "validation_failed")
    fields = {error["field"] for error in found["errors"]}
    assert {"nodes[0].function_name", "nodes[3].workflow_name", "nodes[3].compensate.function_name"} <= fields
    assert any(field.startswith("nodes[2]") for field in fields)
    definition["nodes"][2] = {
        "node_key": "p",
        "node_type": "parallel",
        "branches": [{"nodes": [call("x", "missing"), {"node_key": "t", "node_type": "wait_event", "topic": "none"}]}],
    }
    found = problem(await plane.client.post("/workflows/validate", json=definition), 400, "validation_failed")
    fields = {error["field"] for error in found["errors"]}
    assert "nodes[2].branches[0].nodes[0].function_name" in fields
    assert "nodes[2].branches[0].nodes[1].topic" in fields
    assert any(field.startswith("nodes[1]") for field in fields), "a key that is there twice"
    assert any(field.startswith("edges[0]") for field in fields), "an edge to nowhere"
    plane.limits.workflow_nodes = 1
    found = problem(await plane.client.post("/workflows/validate", json=CHAIN), 400, "validation_failed")
    assert "limits.workflow_nodes" in found["detail"]
    plane.limits.workflow_nodes = 2
    await plane.create()
    valid = await plane.client.post(
        "/workflows/validate",
        json={"nodes": [call("a"), {"node_key": "s", "node_type": "sub_workflow", "workflow_name": "orders"}]},
    )
    assert valid.json() == {"valid": True, "nodes": 2, "functions": ["f"], "workflows": ["orders"], "topics": []}


async def test_a_workflow_with_runs_under_way_is_deleted_with_them_only(plane: Plane) -> None:
    made = await plane.create()
    await plane.publish()
    ended, active = await plane.run(made, "succeeded"), await plane.run(made)
    await plane.db.run("UPDATE dag_runs SET finished_at = now() WHERE id = %(id)s", id=ended)
    refused = problem(await plane.client.delete("/workflows/orders"), 409, "in_use")
    assert refused["references"] == [f"/workflows/orders/runs/{active}"]
    assert (await plane.client.delete("/workflows/orders?cancel_runs=true")).status_code == 204
    assert plane.cancelled.runs == [active]
    assert (await plane.get("/workflows"))["items"] == []
    assert (await plane.create())["id"] != made["id"], "its name is free"


async def test_who_publishes_must_be_allowed_to_call_what_it_calls(plane: Plane) -> None:
    await plane.create()
    developer = {
        "X-API-Key": await plane.api.key(grants=[KeyGrant("developer", ()), KeyGrant("developer", ("g",), "deny")])
    }
    refused = await plane.api.remote.post("/workflows/orders/versions", json=CHAIN, headers=developer)
    problem(refused, 403, "forbidden")
    await topic(plane.db, "news")
    listens = {"nodes": [{"node_key": "n", "node_type": "wait_event", "topic": "news"}]}
    deaf = {"X-API-Key": await plane.api.key(grants=[KeyGrant("developer", ()), KeyGrant("viewer", (), "deny")])}
    assert (await plane.client.post("/workflows/validate", json=listens)).json()["topics"] == ["news"]
    hidden = await plane.api.remote.post("/workflows/orders/versions", json=listens, headers=deaf)
    assert "event:read" in problem(hidden, 403, "forbidden")["detail"]
    allowed = {"nodes": [call("a")]}
    assert (
        await plane.api.remote.post("/workflows/orders/versions", json=allowed, headers=developer)
    ).status_code == 201
    viewer = {"X-API-Key": await plane.api.key("viewer")}
    assert (await plane.api.remote.get("/workflows/orders", headers=viewer)).status_code == 200
    problem(await plane.api.remote.patch("/workflows/orders", json={}, headers=viewer), 403, "forbidden")


async def test_workflows_of_another_scope_do_not_exist(plane: Plane) -> None:
    await plane.create()
    await plane.api.tenant("other")
    stranger = {"X-API-Key": await plane.api.key(tenant="other"), "X-Nova-Tenant": "other"}
    for method, path in (
        ("GET", "/workflows/orders"),
        ("PATCH", "/workflows/orders"),
        ("DELETE", "/workflows/orders"),
        ("GET", "/workflows/orders/versions"),
    ):
        problem(await plane.api.remote.request(method, path, headers=stranger), 404, "not_found")
    answer = await plane.api.remote.post("/workflows", json={"name": "orders"}, headers=stranger)
    assert answer.status_code == 201, "names are each scope's own"
