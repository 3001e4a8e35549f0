"""Function URLs: the event a function gets, and the answers it can give."""

import base64
import json
from typing import Any

import pytest

from nova.domain.identity import Scope
from nova.errors import FunctionError, NovaError
from nova.gateway import urls
from tests.gateway.conftest import Gateway
from tests.http.sockets import RawClient

pytestmark = pytest.mark.anyio
ECHO = b'{"statusCode":200,"headers":{"content-type":"text/plain"},"body":"ok"}'


async def event_of(gateway: Gateway, *request: Any) -> dict[str, Any]:
    gateway.invoker.output = ECHO
    async with RawClient(gateway.port) as client:
        reply = await client.request(*request)
    assert (reply.status, reply.body) == (200, b"ok") or request[0] == "HEAD"
    event: dict[str, Any] = json.loads(gateway.invoker.calls[-1].payload)
    return event


async def test_the_event_is_payload_2_0(gateway: Gateway) -> None:
    event = await event_of(
        gateway,
        "POST",
        "/fn/hello@blue/a%20b/c%2Fd?x=1&x=2&y=%C3%A9&z=",
        b'{"a":1}',
        "Content-Type: application/json",
        "X-Twice: 1",
        "X-Twice: 2",
        "Cookie: k=v; l=w",
        "User-Agent: test",
        "X-Nova-Sticky-Key: s",
        "Connection: keep-alive",
        "Authorization: Bearer the.apps.own",
    )
    call = gateway.invoker.calls[-1]
    assert (call.function, call.qualifier, call.trigger, call.sticky_key) == ("hello", "blue", "url", "s")
    context = event.pop("requestContext")
    http = context.pop("http")
    assert event == {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/a%20b/c%2Fd",
        "rawQueryString": "x=1&x=2&y=%C3%A9&z=",
        "cookies": ["k=v", "l=w"],
        "headers": {
            "host": "localhost:9000",
            "content-type": "application/json",
            "content-length": "7",
            "x-twice": "1,2",
            "user-agent": "test",
            "authorization": "Bearer the.apps.own",
            "x-forwarded-for": "127.0.0.1",
            "x-forwarded-proto": "http",
            "x-forwarded-prefix": "/fn/hello@blue",
        },
        "queryStringParameters": {"x": "1,2", "y": "é", "z": ""},
        "body": '{"a":1}',
        "isBase64Encoded": False,
        "method": "POST",
        "path": "/a b/c/d",
        "query_params": {"x": ["1", "2"], "y": ["é"], "z": [""]},
    }
    assert http == {
        "method": "POST",
        "path": "/a%20b/c%2Fd",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "test",
    }
    assert (context["accountId"], context["domainName"], context["stage"]) == ("default", "localhost:9000", "$default")
    assert context["requestId"] == call.request_id
    assert context["authorizer"] == {"nova": {"principal": "operator"}}
    assert isinstance(context["timeEpoch"], int)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"])
async def test_every_method_reaches_the_function(gateway: Gateway, method: str) -> None:
    event = await event_of(gateway, method, "/fn/hello")
    assert (event["method"], event["rawPath"], event["path"]) == (method, "/", "/")
    assert "body" not in event
    assert "cookies" not in event


@pytest.mark.parametrize(
    ("kind", "body", "text"),
    [
        ("text/html; charset=utf-8", "é".encode(), "é"),
        ("application/x-www-form-urlencoded", b"a=1", "a=1"),
        ("application/vnd.api+json", b"{}", "{}"),
        ("text/plain", b"\xff", None),
        ("application/octet-stream", b"abc", None),
        ("image/png", b"\x89PNG", None),
        ("", b"abc", None),
    ],
)
async def test_text_stays_text_and_the_rest_is_base64(
    gateway: Gateway, kind: str, body: bytes, text: str | None
) -> None:
    event = await event_of(gateway, "POST", "/fn/hello", body, *([f"Content-Type: {kind}"] if kind else []))
    assert event["isBase64Encoded"] is (text is None)
    assert event["body"] == (text if text is not None else base64.b64encode(body).decode())


async def test_platform_credentials_do_not_reach_the_function(gateway: Gateway) -> None:
    key = await gateway.api.key("invoker")
    for header in (f"X-API-Key: {key}", f"Authorization: ApiKey {key}", f"Authorization: Bearer {key}"):
        event = await event_of(gateway, "GET", "/fn/hello", b"", header)
        assert key not in json.dumps(event)
        assert event["requestContext"]["authorizer"]["nova"]["principal"].startswith("key:")


async def test_a_forged_forwarded_for_does_not_reach_the_function(gateway: Gateway) -> None:
    """GW9: the address is the socket's."""
    key = await gateway.api.key("invoker")
    forged = ("X-Forwarded-For: 9.9.9.9", "Forwarded: for=9.9.9.9", "X-Nova-Call-Chain: x")
    event = await event_of(gateway, "GET", "/fn/hello", b"", f"X-API-Key: {key}", *forged)
    assert event["headers"]["x-forwarded-for"] == event["requestContext"]["http"]["sourceIp"] == "127.0.0.1"
    assert not {"forwarded", "x-nova-call-chain"} & event["headers"].keys()


async def test_the_scope_may_be_in_the_path(gateway: Gateway) -> None:
    await gateway.api.tenant("acme", "dev")
    event = await event_of(gateway, "GET", "/v1/t/acme/dev/fn/hello/x")
    assert gateway.invoker.calls[-1].scope == Scope("acme", "dev")
    assert (event["rawPath"], event["headers"]["x-forwarded-prefix"]) == ("/x", "/t/acme/dev/fn/hello")


async def test_urls_inherit_the_platforms_authentication(gateway: Gateway) -> None:
    """EX9: the guards of a call hold on function URLs too."""
    assert (await gateway.api.remote.get("/fn/hello")).status_code == 401
    assert (await gateway.api.remote.get("/t/nobody/x/fn/hello")).status_code == 401
    key = {"X-API-Key": await gateway.api.key("invoker", ["other"])}
    assert (await gateway.api.remote.get("/fn/hello", headers=key)).status_code == 403
    assert (await gateway.api.remote.get("/fn/a%20b", headers=key)).status_code == 403
    assert not gateway.invoker.calls


async def test_a_binary_body_counts_as_base64(gateway: Gateway) -> None:
    """AG9: the limit is the event's, in which bytes are base64."""
    async with RawClient(gateway.port) as client:
        assert (await client.request("POST", "/fn/hello", b"\xff" * (4 << 20))).status == 200
        assert (await client.request("POST", "/fn/hello", b"\xff" * (5 << 20))).status == 413


async def test_a_failed_function_is_a_502_and_its_text_is_for_those_who_may_read_logs(gateway: Gateway) -> None:
    gateway.invoker.error = FunctionError("ValueError", "inner detail")
    answer = await gateway.api.client.get("/fn/hello")
    assert (answer.status_code, answer.json()["code"]) == (502, "function_error")
    assert answer.headers["x-nova-function-error"] == "ValueError"
    assert answer.headers["x-nova-executed-version"] == "7"
    assert answer.headers["x-request-id"] == answer.json()["request_id"]
    assert answer.json()["error"]["message"] == "inner detail"
    invoker = {"X-API-Key": await gateway.api.key("invoker")}
    assert "inner detail" not in (await gateway.api.client.get("/fn/hello", headers=invoker)).text


@pytest.mark.parametrize(
    ("output", "status", "headers", "body"),
    [
        ({"a": 1}, 200, {"content-type": "application/json"}, b'{"a":1}'),
        ([1], 200, {"content-type": "application/json"}, b"[1]"),
        (None, 200, {"content-type": "application/json"}, b"null"),
        ({"statusCode": 204}, 204, {}, b""),
        ({"statusCode": 404, "body": "x"}, 404, {"content-type": "application/json"}, b"x"),
        ({"statusCode": 200, "body": "/wA=", "isBase64Encoded": True}, 200, {}, b"\xff\x00"),
        ({"statusCode": 200, "headers": {"X-N": 1, "X-B": True}, "body": ""}, 200, {"x-n": "1", "x-b": "true"}, b""),
        ({"statusCode": 302, "headers": {"Location": "/x", "Content-Length": "9"}}, 302, {"location": "/x"}, b""),
    ],
)
def test_outputs_become_answers(output: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    answer = urls.answer(json.dumps(output, separators=(",", ":")).encode())
    assert (answer.status, answer.body) == (status, body)
    found = {name.decode(): value.decode() for name, value in answer.headers}
    assert headers.items() <= found.items()
    assert "content-length" not in found


def test_repeated_headers_and_cookies() -> None:
    answer = urls.answer(
        json.dumps(
            {
                "statusCode": 200,
                "headers": {"X-A": ["1", "2"]},
                "multiValueHeaders": {"X-C": ["3", "4"]},
                "cookies": ["a=1", "b=2"],
            }
        ).encode()
    )
    assert answer.headers == [
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"x-c", b"3"),
        (b"x-c", b"4"),
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
    ]


@pytest.mark.parametrize(
    "output",
    [
        {"statusCode": "200"},
        {"statusCode": 99},
        {"statusCode": 101},
        {"statusCode": 600},
        {"statusCode": True},
        {"statusCode": None},
        {"statusCode": 200, "headers": {"X": "a\r\nSet-Cookie: b"}},
        {"statusCode": 200, "headers": {"X\r\nY": "a"}},
        {"statusCode": 200, "headers": {"": "a"}},
        {"statusCode": 200, "headers": {"X": None}},
        {"statusCode": 200, "headers": [1]},
        {"statusCode": 200, "cookies": "a=1"},
        {"statusCode": 200, "cookies": ["a\nb"]},
        {"statusCode": 200, "body": {"a": 1}},
        {"statusCode": 200, "body": "???", "isBase64Encoded": True},
    ],
)
def test_what_http_cannot_carry_is_invalid_response(output: Any) -> None:
    with pytest.raises(NovaError) as refused:
        urls.answer(json.dumps(output).encode())
    assert (refused.value.code, refused.value.status) == ("invalid_response", 502)
