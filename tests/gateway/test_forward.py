"""Operations of other planes through zenith's door: control over HTTP, execution over gRPC, the real doors on both sides."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from nova.api.table import BY_HANDLER, Empty, Kind, Model, Plane, Route
from nova.config import HttpSettings, LimitSettings, RateLimitSettings, Settings
from nova.errors import NovaError
from nova.gateway.forward import absent, forwarding
from nova.http.bind import bind
from nova.http.guard import Guard
from nova.http.handler import Answer, Req, handles
from nova.http.inner import Inner
from nova.http.proxy import HttpProxy
from nova.http.sse import Event
from nova.rpc.remote import CometConnection
from nova.rpc.server import RpcServer
from nova.security.service_door import ServiceDoor
from nova.store.db import Database
from tests.gateway.fakes import FakeInvoker
from tests.http.harness import Api, client_of, security, serve
from tests.http.sockets import RawClient
from tests.http.upstream import ASSERTIONS, TOKEN

pytestmark = pytest.mark.anyio


class Thing(Model):
    name: str


def _route(op: str, method: str, path: str, plane: Plane, permission: str | None, **more: Any) -> Route:
    return Route(op, method, path, "", plane, permission, **more)


TABLE = [
    _route("health.get", "GET", "/health", Plane.OBSERVABILITY, None),
    _route(
        "things.create",
        "POST",
        "/functions",
        Plane.CONTROL,
        "function:create",
        body=Thing,
        answer=Thing,
        status=201,
        audit="thing.create",
    ),
    _route("things.get", "GET", "/functions/{name}", Plane.CONTROL, "function:read", answer=Thing),
    _route("things.logs", "GET", "/functions/{name}/logs", Plane.EXECUTION, "log:read", kind=Kind.SSE),
    _route("things.upload", "POST", "/functions/{name}/code", Plane.CONTROL, "function:update", kind=Kind.UPLOAD),
    _route("things.mine", "GET", "/stats", Plane.EXECUTION, "metrics:read", resource=BY_HANDLER),
    _route("numbers.get", "GET", "/metrics", Plane.OBSERVABILITY, "metrics:read", resource=None),
    _route("platform.get", "GET", "/config", Plane.CONTROL, "config:read", resource=None, platform=True, scoped=False),
]


class Control:
    def __init__(self) -> None:
        self.seen: list[Req[Any, Any]] = []

    @handles("things.create")
    async def create(self, req: Req[Thing, Empty]) -> Thing:
        self.seen.append(req)
        if req.body.name == "taken":
            raise NovaError("already_exists", "there is one")
        return req.body

    @handles("things.get")
    async def get(self, req: Req[Empty, Empty]) -> Answer:
        self.seen.append(req)
        return Answer(Thing(name=req.params["name"]), headers={"ETag": '"v1"'})

    @handles("things.upload")
    async def upload(self, req: Req[Empty, Empty]) -> dict[str, int]:
        return {"size": len(await req.http.body())}

    @handles("numbers.get")
    async def numbers(self, req: Req[Empty, Empty]) -> dict[str, str]:
        return {"from": "control"}

    @handles("platform.get")
    async def platform(self, req: Req[Empty, Empty]) -> dict[str, str]:
        return {"you": req.identity.subject}


class Execution:
    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gone = asyncio.Event()

    @handles("things.logs")
    async def logs(self, req: Req[Empty, Empty]) -> AsyncIterator[Event]:
        return self._events(req)

    async def _events(self, req: Req[Empty, Empty]) -> AsyncIterator[Event]:
        try:
            yield Event({"first": req.params["name"]})
            await self.gate.wait()
            yield Event({"last": True})
        finally:
            self.gone.set()

    @handles("things.mine")
    async def mine(self, req: Req[Empty, Empty]) -> dict[str, str]:
        return {"you": req.identity.subject, "tenant": req.scope.tenant, "namespace": req.scope.namespace}


class Zenith:
    @handles("health.get")
    async def health(self, req: Req[Empty, Empty]) -> dict[str, str]:
        return {"from": "zenith"}


@dataclass
class Planes:
    api: Api
    control: Control
    execution: Execution
    port: int
    control_port: int


async def _healthy() -> dict[str, bool]:
    return {"": True}


@pytest.fixture
async def planes(database: Database) -> AsyncIterator[Planes]:
    settings = Settings(
        http=HttpSettings(cors_origins=["https://app.example"]),
        limits=LimitSettings(body_mb=1, archive_mb=2),
        rate_limit=RateLimitSettings(enabled=True),
    )
    control, execution = Control(), Execution()
    async with AsyncExitStack() as stack:
        guards = await stack.enter_async_context(security(database, settings))
        door: Guard = ServiceDoor(TOKEN, ASSERTIONS, guards.directory)

        def inner(owner: object, planes: set[Plane]) -> Inner:
            rows = [row for row in TABLE if row.plane in planes and row.op != "health.get"]
            app = bind(rows, [owner], door=door, audit=guards.audit, limits=settings.limits)
            return Inner(app, TOKEN.proven_by)

        control_port = await stack.enter_async_context(serve(inner(control, {Plane.CONTROL, Plane.OBSERVABILITY})))
        to_control = HttpProxy(f"http://127.0.0.1:{control_port}", TOKEN, ASSERTIONS, name="the control plane")
        stack.push_async_callback(to_control.close)
        comet = RpcServer(
            "127.0.0.1:0",
            TOKEN,
            ASSERTIONS,
            invoker=FakeInvoker(),
            application=inner(execution, {Plane.EXECUTION}),
            healthy=_healthy,
            drain_s=1,
        )
        stack.push_async_callback(comet.close)
        await comet.start()
        to_execution = CometConnection(f"127.0.0.1:{comet.port}", TOKEN, ASSERTIONS)
        stack.push_async_callback(to_execution.close)
        await to_execution.start()
        zenith = bind(
            TABLE,
            [Zenith()],
            door=guards.door,
            audit=guards.audit,
            limits=settings.limits,
            endpoints=forwarding(
                TABLE,
                {Plane.CONTROL: to_control, Plane.EXECUTION: to_execution.proxy},
                here=["health.get"],
                door=guards.door,
                audit=guards.audit,
                limits=settings.limits,
            ),
        )
        client = await stack.enter_async_context(client_of(zenith))
        remote = await stack.enter_async_context(client_of(zenith, "203.0.113.7", "nova.example"))
        port = await stack.enter_async_context(serve(zenith))
        yield Planes(Api(zenith, client, remote, guards), control, execution, port, control_port)


async def test_each_operation_reaches_its_plane(planes: Planes) -> None:
    """GW3: with and without /v1, and what zenith answers itself stays there."""
    client = planes.api.client
    for prefix in ("", "/v1"):
        assert (await client.get(f"{prefix}/functions/a%2Fb")).json() == {"name": "a/b"}
        stats = await client.get(f"{prefix}/stats")
        assert stats.json()["you"] == "operator"
        assert len(stats.headers.get_list("x-request-id")) == 1
        assert (await client.get(f"{prefix}/metrics")).json() == {"from": "control"}
        assert (await client.get(f"{prefix}/health")).json() == {"from": "zenith"}


async def test_a_change_is_made_once_audited_once_under_one_request_id(planes: Planes) -> None:
    answer = await planes.api.client.post("/functions", json={"name": "x"}, headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()) == (201, {"name": "x"})
    assert answer.headers["location"] == "/functions/x"
    assert answer.headers.get_list("x-request-id") == [planes.control.seen[0].request_id]
    assert answer.headers.get_list("x-client-request-id") == ["mine"]
    (row,) = await planes.api.audit()
    assert (row["actor"], row["action"], row["request_id"]) == (
        "operator",
        "thing.create",
        answer.headers["x-request-id"],
    )
    assert row["address"] == "127.0.0.1"


async def test_refusals_of_a_plane_arrive_as_they_are(planes: Planes) -> None:
    client = planes.api.client
    taken = await client.post("/functions", json={"name": "taken"})
    assert (taken.status_code, taken.json()["code"]) == (409, "already_exists")
    assert taken.json()["request_id"] == taken.headers["x-request-id"]
    wrong = (await client.post("/functions", json={"name": "x", "size": 1})).json()
    assert (wrong["code"], wrong["errors"][0]["field"]) == ("unknown_field", "size")
    assert (await client.get("/functions/a", headers={"If-None-Match": '"v1"'})).status_code == 304
    head = await client.head("/functions/a")
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", '"v1"')
    put = await client.put("/functions/a", json={})
    assert (put.status_code, put.headers["allow"]) == (405, "GET, HEAD")


async def test_the_door_decides_and_nothing_refused_goes_further(planes: Planes) -> None:
    """SE: no key, no right, another tenant: refused at the door, with the same audit rows as anywhere."""
    api = planes.api
    await api.tenant("other", "default")
    viewer = {"X-API-Key": await api.key("viewer", functions=["a"])}
    assert (await api.remote.get("/functions/a")).status_code == 401
    assert (await api.remote.get("/functions/a", headers={"X-API-Key": "nk_wrong"})).status_code == 401
    assert (await api.remote.get("/functions/b", headers=viewer)).status_code == 403
    assert (await api.remote.post("/functions", json={"name": "x"}, headers=viewer)).status_code == 403
    assert (await api.remote.get("/functions/a", headers={**viewer, "X-Nova-Tenant": "other"})).status_code == 403
    assert (await api.remote.get("/config", headers=viewer)).status_code == 403
    assert planes.control.seen == []
    assert {row["outcome"] for row in await api.audit()} == {"denied"}
    assert (await api.remote.get("/functions/a", headers=viewer)).status_code == 200


async def test_the_plane_acts_for_the_caller_in_the_scope_that_the_door_chose(planes: Planes) -> None:
    """GW9: an identity header of the client changes nothing."""
    await planes.api.tenant("acme", "default", "blue")
    key = await planes.api.key("viewer", tenant="acme")
    answer = await planes.api.remote.get(
        "/stats",
        headers={"X-API-Key": key, "X-Nova-Namespace": "blue", "X-Nova-Identity": "forged", "X-Nova-Tenant": "acme"},
    )
    assert (answer.json()["tenant"], answer.json()["namespace"]) == ("acme", "blue")
    assert answer.json()["you"].startswith("key:")
    assert (await planes.api.client.get("/config")).json() == {"you": "operator"}


async def test_rates_are_charged_once_and_shown_once(planes: Planes) -> None:
    key = {"X-API-Key": await planes.api.key("viewer")}
    answer = await planes.api.remote.get("/functions/a", headers=key)
    burst = planes.api.guards.settings.rate_limit.tiers["standard"].burst_size
    assert answer.headers.get_list("x-ratelimit-remaining") == [str(burst - 1)]


async def test_pages_of_other_origins_get_one_answer_about_it(planes: Planes) -> None:
    origin = {"Origin": "https://app.example"}
    key = {"X-API-Key": await planes.api.key("viewer")}
    answer = await planes.api.remote.get("/functions/a", headers=origin | key)
    assert answer.headers.get_list("access-control-allow-origin") == ["https://app.example"]
    asked = await planes.api.remote.options("/functions/a", headers=origin | {"Access-Control-Request-Method": "GET"})
    assert asked.status_code == 204


async def test_a_plane_takes_nothing_that_did_not_come_through_the_door(planes: Planes) -> None:
    """GW8: the plane's own port refuses keys, and callers from its own host."""
    async with RawClient(planes.control_port) as client:
        key = await planes.api.key("admin")
        for headers in ([], [f"X-API-Key: {key}"], [f"Authorization: Bearer {TOKEN.value.decode()}"]):
            reply = await client.request("GET", "/functions/a", b"", *headers)
            assert (reply.status, json.loads(reply.body)["code"]) == (401, "unauthenticated")


async def test_events_pass_one_by_one_and_end_with_their_reader(planes: Planes) -> None:
    """GW4: a tail through the door is live."""
    async with RawClient(planes.port) as client:
        await client.send(b"GET /functions/a/logs HTTP/1.1\r\nHost: localhost\r\n\r\n")
        async with asyncio.timeout(20):
            await client.reader.readuntil(b'{"first":"a"}')
    async with asyncio.timeout(20):
        await planes.execution.gone.wait()


async def test_bodies_over_their_limit_are_refused_while_they_come(planes: Planes) -> None:
    """EX12: declared or not, at the door; uploads have the limit of archives."""
    mb = 1 << 20
    async with RawClient(planes.port) as client:
        assert json.loads((await client.request("POST", "/functions/a/code", b"x" * 2 * mb)).body)["size"] == 2 * mb
        await client.send(b"POST /functions/a/code HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000\r\n\r\n")
        reply = await client.reply()
        assert (reply.status, json.loads(reply.body)["code"]) == (413, "payload_too_large")
    async with RawClient(planes.port) as client:
        await client.send(b"POST /functions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(34):
            await client.send(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        reply = await client.reply()
        assert (reply.status, json.loads(reply.body)["limit_bytes"]) == (413, mb)


async def test_every_operation_needs_a_plane(planes: Planes) -> None:
    """What is handed on, whatever carries it, has none of the client's credentials and claims."""
    guards = planes.api.guards
    key = await planes.api.key("admin")

    def make(targets: dict[Plane, Any]) -> dict[str, Any]:
        return dict(
            forwarding(
                TABLE, targets, here=["health.get"], door=guards.door, audit=guards.audit, limits=guards.settings.limits
            )
        )

    with pytest.raises(RuntimeError, match=r"no plane to forward things\.logs"):
        make({Plane.CONTROL: Response()})
    endpoints = make({Plane.CONTROL: absent, Plane.EXECUTION: absent, Plane.OBSERVABILITY: _headers})
    assert set(endpoints) == {row.op for row in TABLE} - {"health.get"}
    app = bind(
        TABLE, [Zenith()], door=guards.door, audit=guards.audit, limits=guards.settings.limits, endpoints=endpoints
    )
    async with client_of(app) as client:
        answer = await client.get("/functions/a")
        assert (answer.status_code, answer.json()["code"]) == (503, "dependency_unavailable")
        assert answer.headers["retry-after"] == "1"
        forged = {
            "X-Nova-Identity": "x",
            "X-Nova-Tenant": "default",
            "X-Forwarded-For": "::1",
            "Authorization": "Basic x",
        }
        shown = (await client.get("/metrics", headers={**forged, "X-API-Key": key, "X-Nova-Log-Type": "Tail"})).json()
        assert "x-nova-log-type" in shown
        assert not {"authorization", "x-api-key", *(name.lower() for name in forged)} & set(shown)


async def _headers(scope: Any, receive: Any, send: Any) -> None:
    """A target that shows which headers came."""
    await JSONResponse([name.decode() for name, _ in scope["headers"]])(scope, receive, send)
