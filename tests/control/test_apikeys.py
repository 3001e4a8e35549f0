"""API keys over HTTP: made, used, narrowed, rotated, deleted."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from nova.api.apikeys import ROUTES
from nova.api.table import Empty, Plane, Route
from nova.clock import SYSTEM_CLOCK
from nova.control.apikeys import KeyHandlers
from nova.http.handler import Req, handles
from nova.store.apikeys import KeyGrant, KeyStore
from nova.store.db import Database
from tests.http.harness import Api, management, security

pytestmark = pytest.mark.anyio
PROBE = Route("probe", "GET", "/functions/{name}", "", Plane.CONTROL, "function:read")


class Probe:
    """Something that keys may be allowed to read."""

    @handles("probe")
    async def probe(self, req: Req[Empty, Empty]) -> dict[str, str]:
        return {"who": req.identity.subject, "namespace": req.scope.namespace}


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    async with security(database) as guards:
        rates = guards.settings.rate_limit
        handlers = KeyHandlers(database, KeyStore(database), guards.keys, guards.directory, rates, SYSTEM_CLOCK)
        async with management(database, [handlers, Probe()], [*ROUTES, PROBE], guards=guards) as found:
            yield found


async def create(api: Api, name: str = "ci", **fields: Any) -> str:
    answer = await api.client.post("/apikeys", json={"name": name, **fields})
    assert answer.status_code == 201, answer.text
    key: str = answer.json()["key"]
    return key


async def status(api: Api, key: str, path: str = "/functions/a", **headers: str) -> int:
    return (await api.remote.get(path, headers={"X-API-Key": key, **headers})).status_code


VIEWER = [{"role": "viewer"}]


async def test_a_key_is_shown_once_and_works_at_once(api: Api) -> None:
    """SE2: keys are stored hashed and shown masked."""
    answer = await api.client.post("/apikeys", json={"name": "ci", "permissions": VIEWER, "description": "for CI"})
    assert answer.status_code == 201
    assert answer.headers["location"] == "/apikeys/ci"
    key = answer.json()["key"]
    assert key.startswith(answer.json()["prefix"] + "_")
    probe = await api.remote.get("/functions/a", headers={"Authorization": f"ApiKey {key}"})
    assert probe.json() == {"who": "key:ci", "namespace": "default"}
    shown = await api.client.get("/apikeys/ci")
    listed = await api.client.get("/apikeys")
    assert shown.json() == listed.json()["items"][0]
    assert shown.json()["description"] == "for CI"
    secret = key.removeprefix(answer.json()["prefix"] + "_")
    for text in (shown.text, listed.text, repr(await api.audit()), repr(await _dump(api))):
        assert secret not in text


async def _dump(api: Api) -> object:
    return await api.guards.database.fetch("SELECT * FROM api_keys")


async def test_names_are_unique_and_lists_are_paged(api: Api) -> None:
    for number in range(5):
        await create(api, f"k{number}")
    again = await api.client.post("/apikeys", json={"name": "k3"})
    assert (again.status_code, again.json()["code"]) == (409, "already_exists")
    names: list[str] = []
    cursor: str | None = None
    while True:
        query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
        page = (await api.client.get("/apikeys", params=query)).json()
        names += [item["name"] for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert names == ["k4", "k3", "k2", "k1", "k0"]
    for bad in ("x", "WzFd", "WyJhIiwiYiJd", "%00"):
        answer = await api.client.get(f"/apikeys?cursor={bad}")
        assert answer.status_code == 400


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "a b"}, "name"),
        ({"name": ""}, "name"),
        ({"permissions": [{"role": "king"}]}, "permissions.0.role"),
        ({"permissions": [{"role": "viewer", "functions": ["a/b"]}]}, "permissions.0.functions.0"),
        ({"permissions": [{"role": "viewer", "effect": "maybe"}]}, "permissions.0.effect"),
        ({"permissions": [{"role": "platform-admin", "functions": ["a"]}]}, "permissions.0"),
        ({"permissions": [{"role": "viewer", "workflows": ["a"]}]}, "permissions.0.workflows"),
        ({"tier": "gold"}, "tier"),
        ({"ip_allow": ["1.2.3.400"]}, "ip_allow.0"),
        ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"expires_at": "2999-01-01T00:00:00"}, "expires_at"),
        ({"namespaces": ["../x"]}, "namespaces.0"),
        ({"enabled": "yes"}, "enabled"),
    ],
)
async def test_bad_fields_are_named(api: Api, fields: dict[str, Any], field: str) -> None:
    """AP3, ID3: unknown roles and bad values are refused by name, on create and on update."""
    answer = await api.client.post("/apikeys", json={"name": "ci", **fields})
    assert answer.status_code == 400
    assert field in [error["field"] for error in answer.json()["errors"]]
    if "name" not in fields:
        await create(api)
        answer = await api.client.patch("/apikeys/ci", json=fields)
        assert answer.status_code == 400
        assert field in [error["field"] for error in answer.json()["errors"]]


async def test_permissions_hold_for_functions_and_denials(api: Api) -> None:
    """ID2: roles, function names and denials decide."""
    rows = [{"role": "viewer", "functions": ["a*"]}, {"role": "viewer", "functions": ["ab"], "effect": "deny"}]
    key = await create(api, permissions=rows)
    assert [await status(api, key, f"/functions/{name}") for name in ("a", "ac", "ab", "b")] == [200, 200, 403, 403]
    assert await status(api, await create(api, "nothing")) == 403
    assert await status(api, await create(api, "caller", permissions=[{"role": "invoker"}])) == 403


async def test_namespaces_and_addresses_hold(api: Api) -> None:
    await api.tenant("acme")
    async with api.guards.database.transaction() as conn:
        await api.guards.directory._store.insert_namespace(conn, "default", "dev", "")
    await api.guards.directory.changed("default")
    key = await create(api, namespaces=["dev"], permissions=VIEWER)
    assert await status(api, key) == 200
    assert await status(api, key, **{"X-Nova-Namespace": "default"}) == 403
    assert await status(api, key, **{"X-Nova-Tenant": "acme"}) == 403
    near = await create(api, "near", ip_allow=["203.0.113.0/24"], permissions=VIEWER)
    far = await create(api, "far", ip_allow=["198.51.100.1"], permissions=VIEWER)
    assert (await status(api, near), await status(api, far)) == (200, 403)


async def test_a_patch_acts_at_once_and_null_is_the_default(api: Api) -> None:
    key = await create(api, permissions=VIEWER, description="x")
    assert (await api.client.patch("/apikeys/ci", json={"enabled": False})).json()["description"] == "x"
    assert await status(api, key) == 401
    await api.client.patch("/apikeys/ci", json={"enabled": None, "description": None})
    assert await status(api, key) == 200
    assert (await api.client.get("/apikeys/ci")).json()["description"] == ""
    await api.client.patch("/apikeys/ci", json={"permissions": []})
    assert await status(api, key) == 403


async def test_the_tier_sets_the_rate(api: Api) -> None:
    rates = api.guards.settings.rate_limit
    rates.enabled = True
    rates.tiers["standard"].burst_size = 3
    rates.tiers["standard"].requests_per_second = 0.001
    slow = await create(api, "slow", permissions=VIEWER)
    fast = await create(api, "fast", tier="premium", permissions=VIEWER)
    assert [await status(api, slow) for _ in range(4)] == [200, 200, 200, 429]
    assert [await status(api, fast) for _ in range(5)] == [200] * 5


async def test_rotation_replaces_the_secret_with_or_without_grace(api: Api) -> None:
    """SE3: during the grace both are good, without it only the new one."""
    first = await create(api, permissions=VIEWER)
    answer = await api.client.post("/apikeys/ci/rotate", json={"grace_s": 60})
    second = answer.json()["key"]
    assert answer.json()["previous_valid_until"] is not None
    assert (await status(api, first), await status(api, second)) == (200, 200)
    third = (await api.client.post("/apikeys/ci/rotate")).json()["key"]
    assert [await status(api, key) for key in (first, second, third)] == [401, 401, 200]
    assert (await api.client.post("/apikeys/ci/rotate", json={"grace_s": 7 * 24 * 3600 + 1})).status_code == 400


async def test_a_deleted_key_is_gone(api: Api) -> None:
    """AP4: deleted is 204, then 404, and the key proves nothing."""
    key = await create(api, permissions=VIEWER)
    assert (await api.client.delete("/apikeys/ci")).status_code == 204
    assert await status(api, key) == 401
    for method in ("GET", "DELETE"):
        assert (await api.client.request(method, "/apikeys/ci")).status_code == 404
    assert (await api.client.patch("/apikeys/ci", json={})).status_code == 404
    assert (await api.client.post("/apikeys/ci/rotate")).status_code == 404


async def test_nobody_gives_or_takes_more_than_they_hold(api: Api) -> None:
    """ID3: neither by creating, changing nor rotating."""
    admin = {"X-API-Key": await api.key("admin", grants=[KeyGrant("admin"), KeyGrant("invoker", ("pay",), "deny")])}
    boss = await create(api, "boss", permissions=[{"role": "platform-admin"}])

    async def post(body: dict[str, Any]) -> int:
        return (await api.remote.post("/apikeys", json=body, headers=admin)).status_code

    assert await post({"name": "a", "permissions": VIEWER}) == 201
    assert await post({"name": "b", "permissions": [{"role": "platform-admin"}]}) == 403
    assert await post({"name": "c", "permissions": [{"role": "invoker"}]}) == 403
    assert await post({"name": "d", "permissions": [{"role": "invoker", "functions": ["other"]}]}) == 201
    assert await post({"name": "e", "tier": "premium"}) == 403
    escalate = {"permissions": [{"role": "platform-admin"}]}
    assert (await api.remote.patch("/apikeys/a", json=escalate, headers=admin)).status_code == 403
    for method, path in (("POST", "/apikeys/boss/rotate"), ("PATCH", "/apikeys/boss"), ("DELETE", "/apikeys/boss")):
        sent: dict[str, Any] | None = None if method == "DELETE" else {}
        assert (await api.remote.request(method, path, json=sent, headers=admin)).status_code == 403
    assert await status(api, boss) == 200
    narrow = {"X-API-Key": await api.key("admin", namespaces=["default"])}
    choices: list[tuple[list[str], int]] = [([], 403), (["dev"], 403), (["default"], 201)]
    for namespaces, expected in choices:
        body: dict[str, Any] = {"name": f"n{expected}-{len(namespaces)}", "namespaces": namespaces}
        assert (await api.remote.post("/apikeys", json=body, headers=narrow)).status_code == expected


async def test_two_tenants_have_keys_of_one_name(api: Api) -> None:
    """DB5: neither sees, changes or detects the other's."""
    await api.tenant("acme")
    there = {"X-Nova-Tenant": "acme"}
    await create(api, "same", description="ours")
    answer = await api.client.post("/apikeys", json={"name": "same", "description": "theirs"}, headers=there)
    assert answer.status_code == 201
    assert (await api.client.get("/apikeys/same")).json()["description"] == "ours"
    assert (await api.client.get("/apikeys", headers=there)).json()["items"][0]["description"] == "theirs"
    assert (await api.client.delete("/apikeys/same", headers=there)).status_code == 204
    assert (await api.client.get("/apikeys/same")).status_code == 200


async def test_every_change_leaves_one_row(api: Api) -> None:
    """SE5: create, change, rotate and delete, each once."""
    await create(api)
    await api.client.patch("/apikeys/ci", json={"enabled": False})
    await api.client.post("/apikeys/ci/rotate")
    await api.client.delete("/apikeys/ci")
    rows = [(row["action"], row["resource"]) for row in await api.audit()]
    assert rows == [
        ("apikey.create", "/apikeys/ci"),
        ("apikey.update", "/apikeys/ci"),
        ("apikey.rotate", "/apikeys/ci/rotate"),
        ("apikey.delete", "/apikeys/ci"),
    ]
