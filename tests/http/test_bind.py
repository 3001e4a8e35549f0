"""Every convention of the API, through a small table of its own."""

from typing import Any

import pytest
from pydantic import Field
from starlette.responses import Response

from nova.api.table import Empty, Kind, Model, Page, PageQuery, Plane, Route
from nova.config import HttpSettings, Settings
from nova.errors import NovaError
from nova.http.handler import Answer, Req, handles
from nova.store.db import Database
from tests.http.harness import Api, management, security

pytestmark = pytest.mark.anyio


class Thing(Model):
    name: str
    size: int = Field(1, ge=1, le=9)
    tags: dict[str, str] = {}


class ThingQuery(PageQuery):
    tag: list[str] = []
    deep: bool = False
    dry_run: bool = False


def route(op: str, method: str, path: str, permission: str | None = "function:read", **more: Any) -> Route:
    return Route(op, method, path, "", Plane.CONTROL, permission, **more)


TABLE = [
    route(
        "things.create",
        "POST",
        "/functions",
        "function:create",
        body=Thing,
        query=ThingQuery,
        answer=Thing,
        status=201,
        audit="thing.create",
    ),
    route("things.list", "GET", "/functions", query=ThingQuery, answer=Page[Thing]),
    route("things.get", "GET", "/functions/{name}", answer=Thing),
    route("things.delete", "DELETE", "/functions/{name}", "function:delete", status=204, audit="thing.delete"),
    route("things.break", "POST", "/functions/{name}/break", "function:update", audit="thing.break"),
    route("things.raw", "GET", "/functions/{name}/raw", kind=Kind.ASGI),
    route("things.public", "GET", "/health", None),
]


class Things:
    def __init__(self) -> None:
        self.seen: list[Req[Any, Any]] = []

    @handles("things.create")
    async def create(self, req: Req[Thing, ThingQuery]) -> Thing:
        self.seen.append(req)
        return req.body

    @handles("things.list")
    async def list(self, req: Req[Empty, ThingQuery]) -> Page[Thing]:
        self.seen.append(req)
        return Page[Thing](items=[])

    @handles("things.get")
    async def get(self, req: Req[Empty, Empty]) -> Answer:
        self.seen.append(req)
        return Answer(Thing(name=req.params["name"]), headers={"ETag": '"v1"'})

    @handles("things.delete")
    async def delete(self, req: Req[Empty, Empty]) -> None:
        self.seen.append(req)

    @handles("things.break")
    async def break_(self, req: Req[Empty, Empty]) -> None:
        if req.params["name"] == "conflict":
            raise NovaError("in_use", "somebody needs it", extra={"references": ["x"]})
        raise ZeroDivisionError("a secret detail")

    @handles("things.raw")
    async def raw(self, req: Req[Empty, Empty]) -> Response:
        return Response(b"\x00raw", media_type="application/octet-stream")

    @handles("things.public")
    async def public(self, req: Req[Empty, Empty]) -> dict[str, str]:
        return {"you": req.identity.subject}


@pytest.fixture
def things() -> Things:
    return Things()


@pytest.fixture
async def api(database: Database, things: Things) -> Any:
    async with management(database, [things], TABLE) as api:
        yield api


async def test_created_answers_201_with_location_and_one_audit_row(api: Api) -> None:
    """SE5: a change leaves one row that names its fields and not their contents."""
    answer = await api.client.post("/v1/functions", json={"name": "a b/c", "tags": {"k": "planted-value"}})
    assert answer.status_code == 201
    assert answer.json() == {"name": "a b/c", "size": 1, "tags": {"k": "planted-value"}}
    assert answer.headers["location"] == "/functions/a%20b%2Fc"
    (row,) = await api.audit()
    assert (row["actor"], row["action"], row["resource"]) == ("operator", "thing.create", "/functions/a%20b%2Fc")
    assert row["request_id"] == answer.headers["x-request-id"]
    assert row["details"] == {"fields": ["name", "tags"]}
    assert "planted-value" not in repr(row)


async def test_dry_run_reaches_the_handler_and_leaves_no_audit_row(api: Api, things: Things) -> None:
    await api.client.post("/functions?dry_run=true", json={"name": "a"})
    assert things.seen[-1].dry_run
    assert await api.audit() == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "invalid_json"),
        (b"", "validation_failed"),
        (b"hello", "invalid_json"),
        (b'{"name":"a"} {}', "invalid_json"),
        (b'{"name":"a","name":"b"}', "invalid_json"),
        (b'{"name":"a","tags":{"x":"1","x":"2"}}', "invalid_json"),
        (b'{"name":"a","size":NaN}', "invalid_json"),
        (b'{"name":"a","size":1e999}', "invalid_json"),
        (b'{"name":"\xff"}', "invalid_json"),
        (b'{"name":"\\ud800"}', "invalid_json"),
        (b'{"name":"\\u0000"}', "invalid_json"),
        (b'{"name":' + b"[" * 65 + b"]" * 65 + b"}", "invalid_json"),
        (b'{"name":' + b"[" * 100_000, "invalid_json"),
        (b"[]", "validation_failed"),
        (b"null", "validation_failed"),
        (b'{"name":"a","size":"3"}', "validation_failed"),
        (b'{"name":"a","size":10}', "validation_failed"),
        (b'{"name":"a","colour":"red"}', "unknown_field"),
    ],
)
async def test_a_bad_body_is_a_400_that_says_what_is_wrong(api: Api, things: Things, body: bytes, code: str) -> None:
    """AP3: a bad field is a 400 with its name, never a 500."""
    answer = await api.client.post("/functions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    problem = answer.json()
    assert problem["code"] == code
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["request_id"] == answer.headers["x-request-id"]
    assert not things.seen


async def test_field_errors_name_the_field_and_do_not_repeat_the_value(api: Api) -> None:
    answer = await api.client.post("/functions", json={"name": "a", "size": "planted", "tags": {"k": 1}})
    problem = answer.json()
    assert {error["field"] for error in problem["errors"]} == {"size", "tags.k"}
    assert "planted" not in answer.text


async def test_other_media_types_are_415(api: Api) -> None:
    answer = await api.client.post("/functions", content=b"<a/>", headers={"content-type": "text/xml"})
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")


async def test_a_body_where_none_is_taken_is_refused(api: Api) -> None:
    answer = await api.client.request("DELETE", "/functions/a", json={"force": True})
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=0", "validation_failed"),
        ("limit=501", "validation_failed"),
        ("limit=x", "validation_failed"),
        ("limit=1&limit=2", "validation_failed"),
        ("deep=maybe", "validation_failed"),
        ("colour=red", "unknown_field"),
        ("cursor=%00", "validation_failed"),
        ("cursor=%ff", "validation_failed"),
    ],
)
async def test_a_bad_query_is_a_400(api: Api, query: str, code: str) -> None:
    answer = await api.client.get(f"/functions?{query}")
    assert (answer.status_code, answer.json()["code"]) == (400, code)


async def test_query_values_are_typed_and_lists_repeat(api: Api, things: Things) -> None:
    await api.client.get("/functions?limit=7&tag=a&tag=b&deep=true")
    query = things.seen[-1].query
    assert (query.limit, query.tag, query.deep) == (7, ["a", "b"], True)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/functions/a%20b", "a b"),
        ("/functions/a%2Fb", "a/b"),
        ("/functions/%E2%82%AC", "€"),
        ("/functions/a%2520", "a%20"),
        ("/v1/functions/a%3Fb", "a?b"),
        ("/%66unctions/a", "a"),
    ],
)
async def test_path_segments_are_decoded_once(api: Api, things: Things, path: str, name: str) -> None:
    """GW1: every spelling is the name it spells, and an encoded slash does not make a new segment."""
    assert (await api.client.get(path)).status_code == 200
    assert things.seen[-1].params == {"name": name}


@pytest.mark.parametrize(
    "path", ["/functions/a%0d%0aSet-Cookie:x", "/functions/%00", "/functions/%ff", "/functions/a%zz"]
)
async def test_paths_that_are_not_text_are_refused(api: Api, things: Things, path: str) -> None:
    """GW1: nothing is injected into headers or handed to a handler."""
    answer = await api.client.get(path)
    assert answer.status_code == 400
    assert "set-cookie" not in answer.headers
    assert not things.seen


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/nothing",
        "/functions/",
        "/functions/a/",
        "//functions",
        "/v1",
        "/v1/v1/functions",
        "/FUNCTIONS",
    ],
)
async def test_unknown_paths_are_404_problems(api: Api, path: str) -> None:
    """AP4: errors are problem documents everywhere."""
    answer = await api.client.get(path)
    assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")


async def test_a_wrong_method_is_405_with_allow(api: Api) -> None:
    answer = await api.client.put("/functions/a", json={})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET, HEAD"


async def test_etags_answer_304(api: Api) -> None:
    answer = await api.client.get("/functions/a", headers={"If-None-Match": '"v0", "v1"'})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", '"v1"')
    assert (await api.client.get("/functions/a", headers={"If-None-Match": '"v0"'})).status_code == 200


async def test_head_is_get_without_a_body(api: Api) -> None:
    answer = await api.client.head("/functions/a")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_if_match_reaches_the_handler_bare(api: Api, things: Things) -> None:
    await api.client.delete("/functions/a", headers={"If-Match": '"v1"'})
    assert things.seen[-1].if_match == "v1"


async def test_a_refusal_of_a_handler_keeps_its_members(api: Api) -> None:
    answer = await api.client.post("/functions/conflict/break")
    assert answer.status_code == 409
    assert answer.json()["references"] == ["x"]
    assert await api.audit() == []


async def test_an_exception_is_a_500_that_says_only_its_request_id(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """GW2: an exception in a handler is a 500 with a request id, and the process goes on."""
    answer = await api.client.post("/functions/a/break")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    assert answer.json()["request_id"]
    assert (await api.client.get("/functions/a")).status_code == 200


async def test_the_request_id_is_ours_and_the_callers_is_a_label(api: Api) -> None:
    answer = await api.client.get("/functions/a", headers={"X-Request-ID": "mine"})
    assert answer.headers["x-client-request-id"] == "mine"
    assert answer.headers["x-request-id"] != "mine"
    assert answer.headers["x-request-id"][14] == "7"


async def test_a_handler_may_answer_for_itself(api: Api) -> None:
    answer = await api.client.get("/functions/a/raw")
    assert answer.content == b"\x00raw"
    assert answer.headers["x-request-id"]


async def test_public_routes_tell_who_the_caller_is_if_they_can(api: Api) -> None:
    assert (await api.remote.get("/health")).json() == {"you": "anonymous"}
    assert (await api.client.get("/health")).json() == {"you": "operator"}


async def test_idempotency_keys_are_not_accepted_silently(api: Api, things: Things) -> None:
    answer = await api.client.post("/functions", json={"name": "a"}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, answer.json()["code"]) == (422, "unsupported")
    assert not things.seen


async def test_table_and_handlers_must_fit(database: Database, things: Things) -> None:
    async with security(database) as guards:
        from nova.http.bind import bind

        def make(table: list[Route], *owners: object) -> None:
            bind(table, owners, door=guards.door, audit=guards.audit, limits=guards.settings.limits)

        with pytest.raises(RuntimeError, match=r"without a handler: things\.more"):
            make([*TABLE, route("things.more", "GET", "/more")], things)
        with pytest.raises(RuntimeError, match=r"handlers without an operation: things\.raw"):
            make([row for row in TABLE if row.op != "things.raw"], things)
        with pytest.raises(RuntimeError, match="two handlers"):
            make(TABLE, things, Things())
        with pytest.raises(RuntimeError, match=r"no role can hold: thing:fly"):
            make([*TABLE[:-1], route("things.public", "GET", "/health", "thing:fly")], things)
        with pytest.raises(RuntimeError, match="two operations for GET"):
            make([*TABLE, route("things.other", "GET", "/functions")], things, _Other())


class _Other:
    @handles("things.other")
    async def other(self, req: Req[Empty, Empty]) -> None:
        return None


async def test_pages_of_listed_origins_may_read_answers(database: Database, things: Things) -> None:
    settings = Settings(http=HttpSettings(cors_origins=["https://app.example"]))
    async with management(database, [things], TABLE, settings=settings) as api:
        origin = {"Origin": "https://app.example"}
        answer = await api.client.get("/functions/a", headers=origin)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        ask = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "x-api-key"}
        answer = await api.remote.options("/functions/a", headers=origin | ask)
        assert answer.status_code == 204
        assert answer.headers["access-control-allow-methods"] == "DELETE, GET, HEAD"
        assert answer.headers["access-control-allow-headers"] == "x-api-key"
        answer = await api.remote.options("/functions/a", headers={"Origin": "https://other.example"} | ask)
        assert answer.status_code == 405
        assert "access-control-allow-origin" not in answer.headers
