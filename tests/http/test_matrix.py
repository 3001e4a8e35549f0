"""Every operation of the route table against every kind of caller. The expectations are made from the table."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.responses import Response

from nova.api.openapi import document
from nova.api.table import BY_HANDLER, Kind, Route, routes
from nova.control.describe import DescriptionHandlers
from nova.gateway.front import Front
from nova.http.bind import bind
from nova.http.handler import Req, handles
from nova.http.sse import Event
from nova.security.access import ALL, ROLES
from nova.store.apikeys import KeyGrant
from nova.store.db import Database
from nova.store.tenants import TenantStore
from tests.gateway.fakes import FakeInvoker
from tests.http.harness import Api, client_of, security

pytestmark = pytest.mark.anyio
TABLE = list(routes())
DESCRIPTIONS = ("openapi.get", "docs.get")


def stub(route: Route) -> object:
    """Something that handles one operation by doing nothing."""

    async def events() -> AsyncIterator[Event]:
        yield Event({})

    async def handle(self: object, req: Req[Any, Any]) -> Any:
        if route.kind is Kind.SSE:
            return events()
        return Response(b"{}") if route.kind is Kind.ASGI else None

    return type("Stub", (), {"handle": handles(route.op)(handle)})()


@pytest.fixture
async def api(database: Database) -> AsyncIterator[Api]:
    async with security(database) as guards:
        owners = [stub(row) for row in TABLE if row.op not in (*Front.OPS, *DESCRIPTIONS)]
        limits = guards.settings.limits
        app = bind(
            TABLE,
            [*owners, DescriptionHandlers(TABLE)],
            door=guards.door,
            audit=guards.audit,
            limits=limits,
            elsewhere=Front.OPS,
        )
        front = Front(FakeInvoker(), guards.door, guards.audit, app, limits=limits)
        client, remote = client_of(front), client_of(front, "203.0.113.7", "nova.example")
        async with client, remote:
            yield Api(front, client, remote, guards)


def path_of(row: Route, function: str = "hello") -> str:
    path = row.path
    for name in row.params:
        path = path.replace(f"{{{name}}}", function if name == row.resource else "1")
    return path


async def status(api: Api, row: Route, key: str | None, *, prefix: str = "", function: str = "hello") -> int:
    headers = {} if key is None else {"X-API-Key": key}
    return (await api.remote.request(row.method, prefix + path_of(row, function), headers=headers)).status_code


def is_open(code: int) -> bool:
    """Did the request pass the door? What is wrong with it otherwise is not the question."""
    assert code < 500
    return code not in (401, 403, 429)


async def test_without_a_credential_only_public_routes_answer(api: Api) -> None:
    """ID1: a remote caller without a credential is refused by everything but the probes."""
    for row in TABLE:
        expected = row.permission is None
        for prefix in ("", "/v1"):
            assert is_open(await status(api, row, None, prefix=prefix)) is expected, row.op
    assert {row.tag for row in TABLE if row.permission is None} == {"health"}


@pytest.mark.parametrize("role", sorted(ROLES))
async def test_every_role_may_do_what_it_holds_and_nothing_else(api: Api, role: str) -> None:
    """ID4, ID9: each route × role of the permission matrix."""
    key = await api.key(role)
    held = ROLES[role]
    for row in TABLE:
        expected = row.permission is None or (
            (ALL in held or row.permission in held) and (role == "platform-admin" or not row.platform)
        )
        assert is_open(await status(api, row, key)) is expected, row.op


async def test_a_key_for_one_function_opens_that_function_only(api: Api) -> None:
    """ID2, ID5: by no spelling of a path."""
    key = await api.key("admin", ["hello"])
    for row in TABLE:
        if row.permission is None or row.platform:
            continue
        about_function = row.path.startswith("/functions/{")
        expected = about_function or row.resource == BY_HANDLER
        assert is_open(await status(api, row, key)) is expected, row.op
        if about_function:
            for other in ("other", "hello2", "Hello", "hello%20", "hello%2F", "logs-x", "invoke"):
                assert not is_open(await status(api, row, key, function=other)), (row.op, other)
            assert is_open(await status(api, row, key, function="%68ello")), row.op


async def test_a_denial_beats_the_role(api: Api) -> None:
    """ID2: an explicit deny beats every allow."""
    key = await api.key(grants=[KeyGrant("platform-admin"), KeyGrant("admin", ("hello",), "deny")])
    for row in TABLE:
        if row.path.startswith("/functions/{"):
            assert not is_open(await status(api, row, key)), row.op
            assert is_open(await status(api, row, key, function="other")), row.op


async def test_a_suspended_tenant_is_refused_everywhere(api: Api) -> None:
    """ID10: suspended means every route."""
    key = await api.key("admin")
    async with api.guards.database.transaction() as conn:
        await TenantStore(api.guards.database).update(conn, "default", "Default", "suspended", "standard")
    await api.guards.directory.changed("default")
    for row in TABLE:
        assert is_open(await status(api, row, key)) is (row.permission is None), row.op


async def test_a_draining_server_answers_its_probes(api: Api) -> None:
    api.guards.door.draining = True
    for row in TABLE:
        answer = await api.client.request(row.method, path_of(row))
        assert (answer.status_code == 503) is (row.permission is not None), row.op


async def test_every_change_is_audited(api: Api) -> None:
    """SE5: every operation that is no read, no call and no message has an audit action; so has a read that shows a secret."""
    calls = {"function.invoke", "function.invoke_stream", "function.invoke_async", "function.invoke_durable"}
    calls |= {"topic.publish", "topic.publish_batch", "outbox.add"}
    calls |= {"workflow.validate"}  # writes nothing
    for row in TABLE:
        quiet = (row.method == "GET" and "secret" not in row.op) or row.op in calls
        assert (row.audit is None) is quiet, row.op


async def test_openapi_describes_every_operation(api: Api) -> None:
    """AP5: the description is the table."""
    described = (await api.client.get("/openapi.json")).json()
    assert described["openapi"] == "3.1.0"
    operations = {
        (method.upper(), path): spec for path, methods in described["paths"].items() for method, spec in methods.items()
    }
    assert operations.keys() == {(row.method, row.path) for row in TABLE}
    for row in TABLE:
        spec = operations[row.method, row.path]
        assert spec["operationId"] == row.op
        assert {p["name"] for p in spec["parameters"] if p.get("in") == "path"} == set(row.params)
        assert ("requestBody" in spec) is (
            row.body is not None or row.op in ("function.invoke", "function.invoke_stream")
        )
    text = json.dumps(document(TABLE, "1"))
    for reference in {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        place: Any = described
        for step in reference.split("/"):
            place = place[step]


async def test_the_docs_page_needs_nothing_from_elsewhere(api: Api) -> None:
    page = await api.client.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "http://" not in page.text
    assert "https://" not in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
