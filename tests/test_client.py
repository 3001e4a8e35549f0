"""The client against a transport that answers as the server does."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest

from nova.api.table import routes
from nova.client import ApiError, Client, TimedOut, Unreachable, UsageError, server_timing

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def asked() -> list[httpx.Request]:
    return []


@pytest.fixture
def client(asked: list[httpx.Request]) -> Iterator[Client]:
    def answer(request: httpx.Request) -> httpx.Response:
        request.read()
        asked.append(request)
        return httpx.Response(200, json={"items": [], "next_cursor": None})

    with answering(answer) as made:
        yield made


def answering(handler: Handler) -> Client:
    return Client("http://nova.test", "nk_1_secret", "acme", "shop", transport=httpx.MockTransport(handler))


def test_every_operation_of_the_route_table_can_be_called(client: Client, asked: list[httpx.Request]) -> None:
    for route in routes():
        client.call(route.op, dict.fromkeys(route.params, "x"))
        assert asked[-1].method == route.method
        assert asked[-1].url.path == "/".join("x" if part.startswith("{") else part for part in route.path.split("/"))


def test_scope_and_key_travel_with_every_request(client: Client, asked: list[httpx.Request]) -> None:
    client.call("function.list")
    headers = asked[0].headers
    assert headers["X-API-Key"] == "nk_1_secret"
    assert (headers["X-Nova-Tenant"], headers["X-Nova-Namespace"]) == ("acme", "shop")


@pytest.mark.parametrize(
    ("name", "raw"),
    [("a b", b"a%20b"), ("a/b", b"a%2Fb"), ("..", b"%2E%2E"), ("ü?x#y", b"%C3%BC%3Fx%23y"), ("%2e", b"%252e")],
)
def test_a_name_stays_one_segment(client: Client, asked: list[httpx.Request], name: str, raw: bytes) -> None:
    client.call("function.get", {"name": name})
    assert asked[0].url.raw_path == b"/functions/" + raw


@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("function.frob", {}, "no operation"),
        ("function.get", {}, "path parameters: name"),
        ("function.get", {"path": {"name": "a", "more": "b"}}, "path parameters: name"),
        ("function.get", {"path": {"name": ""}}, "must not be empty"),
        ("function.list", {"query": {"colour": "red"}}, "no query parameter 'colour'"),
        ("function.create", {"body": {"name": "a", "memory": 5}}, "no field 'memory'"),
        ("function.get", {"path": {"name": "a"}, "body": {"x": 1}}, "no field 'x'"),
    ],
)
def test_what_the_table_does_not_know_is_not_sent(
    client: Client, asked: list[httpx.Request], op: str, arguments: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        client.call(op, **arguments)  # type: ignore[arg-type]
    assert asked == []


def test_absent_query_values_are_left_out(client: Client, asked: list[httpx.Request]) -> None:
    client.call("invocation.list", query={"q": None, "cold_start": True, "limit": 3})
    assert dict(asked[0].url.params) == {"cold_start": "true", "limit": "3"}


def test_a_refusal_keeps_everything_the_problem_says() -> None:
    problem = {
        "type": "urn:nova:problem:validation_failed",
        "title": "The request is not valid",
        "status": 400,
        "code": "validation_failed",
        "detail": "memory_mb: too small",
        "request_id": "r1",
        "errors": [{"field": "memory_mb", "message": "too small"}],
        "limit_bytes": 7,
    }
    headers = {"X-Request-ID": "r1", "Retry-After": "3"}
    with (
        answering(lambda _: httpx.Response(400, json=problem, headers=headers)) as client,
        pytest.raises(ApiError) as caught,
    ):
        client.call("function.list")
    error = caught.value
    assert (error.code, error.status, error.detail) == ("validation_failed", 400, "memory_mb: too small")
    assert [(e.field, e.message) for e in error.errors] == [("memory_mb", "too small")]
    assert (error.request_id, error.retry_after_s, error.extra) == ("r1", 3, {"limit_bytes": 7})


@pytest.mark.parametrize("body", ["<h1>Bad gateway</h1>", "[]", '{"code": 5}', ""])
def test_a_refusal_that_is_not_ours_is_still_an_answer(body: str) -> None:
    with answering(lambda _: httpx.Response(502, text=body)) as client, pytest.raises(ApiError) as caught:
        client.call("function.list")
    assert caught.value.code == "http_502"
    assert caught.value.detail


def test_an_answer_that_is_not_ours_is_said_to_be() -> None:
    with (
        answering(lambda _: httpx.Response(200, text="<html>hello</html>")) as client,
        pytest.raises(Unreachable, match="address"),
    ):
        client.call("function.list")


def test_no_answer_in_time_is_told_from_no_server() -> None:
    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    def nobody(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with answering(slow) as client, pytest.raises(TimedOut):
        client.call("function.list")
    with answering(nobody) as client, pytest.raises(Unreachable, match="no server answers"):
        client.call("function.list")


def test_pages_follow_the_cursor_to_the_end() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        cursor = request.url.params.get("cursor")
        following = {None: "a", "a": "b", "b": None}[cursor]
        return httpx.Response(200, json={"items": [{"at": cursor}], "next_cursor": following})

    with answering(answer) as client:
        found = [page["items"][0]["at"] for page in client.pages("function.list", query={"limit": 1})]
    assert found == [None, "a", "b"]


def test_events_survive_any_cut_of_the_bytes() -> None:
    text = "id: 7\nevent: line\ndata: " + json.dumps({"text": "a\u2028ü"}, ensure_ascii=False) + "\n\n: comment\n\n"
    text += 'data: {"n":\ndata: 2}\r\n\r\n'
    for size in (1, 2, 7, 1000):
        body = text.encode()
        chunks = [body[i : i + size] for i in range(0, len(body), size)]
        answer = httpx.Response(200, content=iter(chunks), headers={"Content-Type": "text/event-stream"})
        with answering(lambda _, answer=answer: answer) as client:  # type: ignore[misc]
            events = list(client.events("build.logs", {"id": "b"}, last_event_id="6"))
        assert [(e.id, e.event, e.data) for e in events] == [
            ("7", "line", {"text": "a\u2028ü"}),
            ("7", "message", {"n": 2}),
        ]


def test_a_refused_stream_is_an_error() -> None:
    problem = {"code": "not_found", "detail": "build 'b' does not exist"}
    with answering(lambda _: httpx.Response(404, json=problem)) as client, pytest.raises(ApiError, match="not_found"):
        next(client.events("build.logs", {"id": "b"}))


def test_invoke_sends_the_payload_untouched() -> None:
    seen: list[httpx.Request] = []
    answer = {"request_id": "r", "output": [1], "error": None, "duration_ms": 1.5, "cold_start": True, "version": 3}

    def handler(request: httpx.Request) -> httpx.Response:
        request.read()
        seen.append(request)
        return httpx.Response(200, json=answer, headers={"Server-Timing": "queue;dur=0.1, handler;dur=2"})

    with answering(handler) as client:
        call = client.invoke("f", b'{"a":  1.0}', qualifier="canary", timeout_s=2.5, sticky_key="u1", tail=True)
    assert seen[0].content == b'{"a":  1.0}'
    headers = seen[0].headers
    assert (headers["X-Nova-Qualifier"], headers["X-Nova-Timeout-S"]) == ("canary", "2.5")
    assert (headers["X-Nova-Sticky-Key"], headers["X-Nova-Log-Type"]) == ("u1", "Tail")
    assert (call.output, call.version, call.cold_start) == ([1], 3, True)
    assert call.timing == {"queue": 0.1, "handler": 2.0}


def test_server_timing_of_nothing_is_nothing() -> None:
    assert server_timing("") == {}
