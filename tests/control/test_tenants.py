"""Tenants and namespaces over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nova.api.table import Empty, Plane, Route
from nova.api.tenants import ROUTES
from nova.control.tenants import TenantHandlers
from nova.http.handler import Req, handles
from nova.ids import new_id
from nova.store.db import Database
from nova.store.tenants import TenantStore
from tests.http.harness import Api, management, security

pytestmark = pytest.mark.anyio
PROBE = Route("probe", "GET", "/functions/{name}", "", Plane.CONTROL, "function:read")


class Probe:
    @handles("probe")
    async def probe(self, req: Req[Empty, Empty]) -> dict[str, str]:
        return {"tenant": req.scope.tenant}


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    async with security(database) as guards:
        handlers = TenantHandlers(database, TenantStore(database), guards.directory, guards.settings.rate_limit)
        async with management(database, [handlers, Probe()], [*ROUTES, PROBE], guards=guards) as found:
            yield found


async def add_function(api: Api, tenant: str, namespace: str = "default") -> None:
    await api.guards.database.run(
        "INSERT INTO functions (id, tenant_id, namespace, name, data, etag, created_by)"
        " VALUES (%(id)s, %(t)s, %(ns)s, 'f', '{}', 'e', 'test')",
        id=new_id(),
        t=tenant,
        ns=namespace,
    )


async def test_a_tenant_is_made_with_a_namespace_and_usable_at_once(api: Api) -> None:
    answer = await api.client.post("/tenants", json={"id": "acme.eu", "name": "Acme", "tier": "premium"})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/tenants/acme.eu"
    body = answer.json()
    assert (body["id"], body["name"], body["status"], body["tier"]) == ("acme.eu", "Acme", "active", "premium")
    assert (await api.client.get("/functions/a", headers={"X-Nova-Tenant": "acme.eu"})).json() == {"tenant": "acme.eu"}
    spaces = (await api.client.get("/tenants/acme.eu/namespaces")).json()["items"]
    assert [space["name"] for space in spaces] == ["default"]
    again = await api.client.post("/tenants", json={"id": "acme.eu"})
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "a b"},
        {"id": ""},
        {"id": "a", "status": "gone"},
        {"id": "a", "tier": "gold"},
        {"id": "a", "seed_samples": True},
        {"id": "a", "name": ""},
    ],
)
async def test_bad_tenants_are_refused(api: Api, body: dict[str, Any]) -> None:
    """AP3: a bad field is a 400."""
    assert (await api.client.post("/tenants", json=body)).status_code == 400


async def test_lists_are_paged_newest_first(api: Api) -> None:
    for number in range(3):
        await api.client.post("/tenants", json={"id": f"t{number}"})
        await api.client.post("/tenants/t0/namespaces", json={"name": f"n{number}"})
    for path, key, names in (
        ("/tenants", "id", ["t2", "t1", "t0", "default"]),
        ("/tenants/t0/namespaces", "name", ["n2", "n1", "n0", "default"]),
    ):
        first = (await api.client.get(f"{path}?limit=3")).json()
        second = (await api.client.get(f"{path}?limit=3&cursor={first['next_cursor']}")).json()
        assert [item[key] for item in first["items"] + second["items"]] == names
        assert second["next_cursor"] is None
        assert (await api.client.get(f"{path}?cursor=bad")).json()["code"] == "invalid_cursor"


async def test_a_suspended_tenant_is_refused_until_it_is_resumed(api: Api) -> None:
    """ID10: suspending acts on the next request, for keys and for the operator."""
    await api.client.post("/tenants", json={"id": "acme"})
    key = {"X-API-Key": await api.key("admin", tenant="acme")}
    assert (await api.remote.get("/functions/a", headers=key)).status_code == 200
    assert (await api.client.patch("/tenants/acme", json={"status": "suspended"})).json()["status"] == "suspended"
    for client, headers in ((api.remote, key), (api.client, {"X-Nova-Tenant": "acme"})):
        answer = await client.get("/functions/a", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "tenant_suspended")
    assert (await api.remote.get("/tenants/acme/namespaces", headers=key)).status_code == 403
    assert (await api.client.patch("/tenants/acme", json={"status": None})).json()["status"] == "active"
    assert (await api.remote.get("/functions/a", headers=key)).status_code == 200


async def test_even_the_default_tenant_can_be_suspended_and_resumed(api: Api) -> None:
    await api.client.patch("/tenants/default", json={"status": "suspended"})
    assert (await api.client.get("/functions/a")).status_code == 403
    await api.client.patch("/tenants/default", json={"status": "active"})
    assert (await api.client.get("/functions/a")).status_code == 200


async def test_patch_keeps_what_it_does_not_name(api: Api) -> None:
    await api.client.post("/tenants", json={"id": "acme", "name": "Acme", "tier": "premium"})
    body = (await api.client.patch("/tenants/acme", json={"name": "ACME"})).json()
    assert (body["name"], body["tier"]) == ("ACME", "premium")
    body = (await api.client.patch("/tenants/acme", json={"name": None, "tier": None})).json()
    assert (body["name"], body["tier"]) == ("acme", "standard")
    assert (await api.client.patch("/tenants/nobody", json={})).status_code == 404


async def test_the_tenants_tier_sets_the_rate_of_keys_without_one(api: Api) -> None:
    """ID10: the tier has its stated effect."""
    directory = api.guards.directory
    await api.client.post("/tenants", json={"id": "acme", "tier": "premium"})
    assert directory.tier("acme") == "premium"


async def test_a_deleted_tenant_leaves_nothing_for_the_next_of_its_name(api: Api) -> None:
    """DB5: a new tenant of an old id starts empty; the neighbours keep theirs."""
    await api.client.post("/tenants", json={"id": "acme"})
    key = {"X-API-Key": await api.key("admin", tenant="acme")}
    await add_function(api, "acme")
    await add_function(api, "default")
    assert (await api.client.delete("/tenants/acme")).status_code == 204
    assert (await api.client.delete("/tenants/acme")).status_code == 404
    await api.client.post("/tenants", json={"id": "acme"})
    async with asyncio.timeout(20):
        while (await api.remote.get("/functions/a", headers=key)).status_code != 401:
            await asyncio.sleep(0.01)
    left = await api.guards.database.fetch("SELECT tenant_id FROM functions")
    assert [row["tenant_id"] for row in left] == ["default"]
    assert (await api.client.delete("/tenants/default")).status_code == 409


async def test_namespaces_are_renamed_and_deleted_only_while_empty(api: Api) -> None:
    made = await api.client.post("/tenants/default/namespaces", json={"name": "dev", "description": "d"})
    assert (made.status_code, made.headers["location"]) == (201, "/tenants/default/namespaces/dev")
    space = "/tenants/default/namespaces/dev"
    assert (await api.client.get(space)).json()["description"] == "d"
    await add_function(api, "default", "dev")
    for method, body in (("PATCH", {"json": {"name": "prod"}}), ("DELETE", {})):
        answer = await api.client.request(method, space, **body)  # type: ignore[arg-type]
        assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
        assert answer.json()["references"] == ["function:f"]
    assert (await api.client.patch(space, json={"description": None})).json()["description"] == ""
    await api.guards.database.run("DELETE FROM functions")
    assert (await api.client.patch(space, json={"name": "default"})).status_code == 409
    assert (await api.client.patch(space, json={"name": "prod"})).json()["name"] == "prod"
    assert (await api.client.get("/functions/a", headers={"X-Nova-Namespace": "prod"})).status_code == 200
    assert (await api.client.get("/functions/a", headers={"X-Nova-Namespace": "dev"})).status_code == 404
    assert (await api.client.delete("/tenants/default/namespaces/prod")).status_code == 204
    assert (await api.client.delete("/tenants/default/namespaces/prod")).status_code == 404
    assert (await api.client.delete("/tenants/default/namespaces/default")).status_code == 409


async def test_a_tenants_administrator_rules_there_and_nowhere_else(api: Api) -> None:
    """ID9, DB5: platform routes need the platform role, and other tenants do not exist."""
    await api.tenant("acme")
    await api.tenant("other")
    key = {"X-API-Key": await api.key("admin", tenant="acme")}
    remote = api.remote
    listed = (await remote.get("/tenants", headers=key)).json()["items"]
    assert [item["id"] for item in listed] == ["acme"]
    assert (await remote.post("/tenants", json={"id": "x"}, headers=key)).status_code == 403
    assert (await remote.patch("/tenants/acme", json={"tier": "premium"}, headers=key)).status_code == 403
    assert (await remote.delete("/tenants/acme", headers=key)).status_code == 403
    assert (await remote.post("/tenants/acme/namespaces", json={"name": "dev"}, headers=key)).status_code == 201
    for tenant in ("other", "nobody"):
        for method, path, body in (
            ("GET", f"/tenants/{tenant}", None),
            ("GET", f"/tenants/{tenant}/namespaces", None),
            ("GET", f"/tenants/{tenant}/namespaces/default", None),
            ("POST", f"/tenants/{tenant}/namespaces", {"name": "x"}),
            ("PATCH", f"/tenants/{tenant}/namespaces/default", {"description": "x"}),
            ("DELETE", f"/tenants/{tenant}/namespaces/default", None),
        ):
            answer = await remote.request(method, path, json=body, headers=key)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), path
    narrow = {"X-API-Key": await api.key("admin", tenant="acme", namespaces=["dev"])}
    assert [
        item["name"] for item in (await remote.get("/tenants/acme/namespaces", headers=narrow)).json()["items"]
    ] == ["dev"]
    assert (await remote.get("/tenants/acme/namespaces/default", headers=narrow)).status_code == 404
    assert (await remote.post("/tenants/acme/namespaces", json={"name": "y"}, headers=narrow)).status_code == 403
