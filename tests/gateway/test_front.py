"""Calls over HTTP: what goes into a call, what comes out, and who is refused."""

import asyncio
import json

import pytest

from nova.domain.identity import Scope
from nova.errors import CODES, FunctionError, NovaError
from tests.gateway.conftest import Gateway
from tests.http.sockets import RawClient

pytestmark = pytest.mark.anyio
MB = 1 << 20
INVOKE = "/functions/hello/invoke"


async def test_a_call_answers_the_invoke_response_and_its_headers(gateway: Gateway) -> None:
    async with RawClient(gateway.port) as client:
        reply = await client.request("POST", "/v1" + INVOKE, b'{"big": 12345678901234567890,\n"f": 1.0}')
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    request_id = reply.headers["x-request-id"]
    assert reply.body == (
        b'{"request_id":"%s","output":{"big": 12345678901234567890, "f": 1.0},"error":null,'
        b'"duration_ms":0.412,"cold_start":false,"version":7}' % request_id.encode()
    )
    assert reply.headers["x-nova-executed-version"] == "7"
    assert reply.headers["x-nova-cold-start"] == "false"
    assert reply.headers["x-nova-duration-ms"] == "0.412"
    assert reply.headers["server-timing"] == (
        "queue;dur=0.005, instance;dur=0.000, runtime;dur=0.000, import;dur=0.000, init;dur=0.000, handler;dur=0.400"
    )
    (call,) = gateway.invoker.calls
    assert call.request_id == request_id
    assert (call.function, call.scope, call.identity.subject) == ("hello", Scope(), "operator")
    assert (call.trigger, call.qualifier, call.timeout_ms, call.source_address) == ("http", None, None, "127.0.0.1")


async def test_headers_become_the_calls_wishes(gateway: Gateway) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    await gateway.api.client.post(
        INVOKE,
        headers={
            "X-Nova-Qualifier": "blue",
            "X-Nova-Timeout-S": "1.5",
            "X-Nova-Sticky-Key": "user-1",
            "X-Request-ID": "mine",
            "traceparent": trace,
            "tracestate": "a=b",
        },
    )
    call = gateway.invoker.calls[-1]
    assert (call.qualifier, call.timeout_ms, call.sticky_key) == ("blue", 1500, "user-1")
    assert (call.client_request_id, call.traceparent, call.tracestate) == ("mine", trace, "a=b")
    assert call.payload == b"{}"
    await gateway.api.client.post(f"{INVOKE}?qualifier=3", headers={"traceparent": "nonsense", "tracestate": "a=b"})
    call = gateway.invoker.calls[-1]
    assert (call.qualifier, call.traceparent, call.tracestate) == ("3", None, None)


@pytest.mark.parametrize("body", [b"null", b"0", b'"text"', b"[1]", b'{"a":{"b":[]}}', '{"é": "€"}'.encode(), b" {} "])
async def test_any_json_value_is_a_payload_whatever_its_media_type(gateway: Gateway, body: bytes) -> None:
    answer = await gateway.api.client.post(INVOKE, content=body, headers={"content-type": "text/plain"})
    assert answer.json()["output"] == json.loads(body)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "bad_payload"),
        (b"hello", 400, "bad_payload"),
        (b"{} {}", 400, "bad_payload"),
        (b'{"a":NaN}', 400, "bad_payload"),
        (b'"\xff"', 400, "bad_payload"),
        (b"[" * 513 + b"]" * 513, 400, "bad_payload"),
        (b"[" * 200_000, 400, "bad_payload"),
        (b'"' + b"x" * (6 * MB) + b'"', 413, "payload_too_large"),
        (b'"' + b"x" * (7 * MB) + b'"', 413, "payload_too_large"),
    ],
)
async def test_bad_payloads_are_refused_before_a_call(gateway: Gateway, body: bytes, status: int, code: str) -> None:
    async with RawClient(gateway.port) as client:
        try:
            reply = await client.request("POST", INVOKE, body)
        except ConnectionError:
            reply = await client.reply()
    problem = json.loads(reply.body)
    assert (reply.status, problem["code"]) == (status, code)
    if status == 413:
        assert problem["limit_bytes"] == 6 * MB
    assert not gateway.invoker.calls


async def test_six_megabytes_pass_and_one_byte_more_does_not(gateway: Gateway) -> None:
    """AG9, EX12: to the byte, with and without a Content-Length."""
    exact = b'"' + b"x" * (6 * MB - 2) + b'"'
    assert (await gateway.api.client.post(INVOKE, content=exact)).status_code == 200
    assert gateway.invoker.calls[-1].payload == exact
    async with RawClient(gateway.port) as client:
        for body, status in ((exact, 200), (exact[:-1] + b'x"', 413)):
            await client.send(
                f"POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
            )
            for start in range(0, len(body), MB):
                piece = body[start : start + MB]
                await client.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await client.send(b"0\r\n\r\n")
            assert (await client.reply()).status == status


@pytest.mark.parametrize(
    ("target", "headers", "status", "code"),
    [
        (f"{INVOKE}?qualifier=1&colour=red", [], 400, "unknown_field"),
        (f"{INVOKE}?qualifier=0", [], 400, "validation_failed"),
        (f"{INVOKE}?qualifier=a%20b", [], 400, "validation_failed"),
        (INVOKE, ["X-Nova-Timeout-S: 0"], 400, "validation_failed"),
        (INVOKE, ["X-Nova-Timeout-S: 901"], 400, "validation_failed"),
        (INVOKE, ["X-Nova-Timeout-S: soon"], 400, "validation_failed"),
        (INVOKE, ["X-Nova-Invocation-Type: DryRun"], 400, "validation_failed"),
        (INVOKE, ["X-Nova-Invocation-Type: Event"], 422, "unsupported"),
        (INVOKE, ["X-Nova-Tenant: nobody"], 404, "not_found"),
        (INVOKE, ["X-Nova-Tenant: a b"], 400, "scope_invalid"),
        ("/functions/a%20b/invoke", [], 404, "not_found"),
        ("/functions/a%2Fb/invoke", [], 404, "not_found"),
        ("/functions/%E2%82%AC/invoke", [], 404, "not_found"),
        ("/functions/a%0d%0aX-Injected:1/invoke", [], 400, "validation_failed"),
        ("/functions/%/invoke", [], 400, "validation_failed"),
        ("/functions/%ff/invoke", [], 400, "validation_failed"),
    ],
)
async def test_odd_calls_are_4xx_and_inject_nothing(
    gateway: Gateway, target: str, headers: list[str], status: int, code: str
) -> None:
    """GW1: every spelling gets a clear answer."""
    async with RawClient(gateway.port) as client:
        reply = await client.request("POST", target, b"", *headers)
        assert (reply.status, json.loads(reply.body)["code"]) == (status, code)
        assert "x-injected" not in reply.headers
        assert not gateway.invoker.calls
        assert (await client.request("POST", INVOKE)).status == 200


async def test_other_methods_are_405_and_other_paths_are_managed(gateway: Gateway) -> None:
    async with RawClient(gateway.port) as client:
        reply = await client.request("GET", INVOKE)
        assert (reply.status, reply.headers["allow"]) == (405, "POST")
        for path in (
            "/functions",
            "/functions/hello",
            "/functions//invoke",
            "/functions/a/b/invoke",
            "/fnord",
            "/t/a/b",
        ):
            assert (await client.request("GET", path)).body == b"management"
        assert (await client.request("POST", "/functions/invoke/invoke")).status == 200
    assert gateway.invoker.calls[-1].function == "invoke"


async def test_a_functions_error_is_a_200_that_names_its_type(gateway: Gateway) -> None:
    gateway.invoker.error = FunctionError("Välue\r\nError", 'bad "date"', ("main.py:1 in handler",))
    async with RawClient(gateway.port) as client:
        reply = await client.request("POST", INVOKE)
    assert reply.status == 200
    assert reply.headers["x-nova-function-error"] == "V?lue??Error"
    body = json.loads(reply.body)
    assert body["output"] is None
    assert body["error"] == {"type": "Välue\r\nError", "message": 'bad "date"', "stack": ["main.py:1 in handler"]}


@pytest.mark.parametrize("code", ["timeout", "instance_lost", "queue_full", "build_failed", "not_found", "draining"])
async def test_refusals_of_the_executor_keep_their_status(gateway: Gateway, code: str) -> None:
    """EX13: the same statuses at the client as behind the door."""
    gateway.invoker.refusal = NovaError(code, "because", extra={"build_id": "b"})
    answer = await gateway.api.client.post(INVOKE)
    assert answer.status_code == CODES[code].status
    assert (answer.json()["code"], answer.json()["build_id"]) == (code, "b")
    assert ("retry-after" in answer.headers) == (answer.status_code == 503)


async def test_a_fault_of_ours_is_a_500_with_the_request_id(gateway: Gateway) -> None:
    """GW2: an exception is a 500, and the process goes on."""
    gateway.invoker.refusal = ZeroDivisionError("secret")  # type: ignore[assignment]
    answer = await gateway.api.client.post(INVOKE)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text


async def test_the_log_tail_comes_on_request(gateway: Gateway) -> None:
    answer = await gateway.api.client.post(INVOKE, headers={"X-Nova-Log-Type": "Tail"})
    assert answer.json()["logs"] == "printed\n"
    assert "logs" not in (await gateway.api.client.post(INVOKE)).json()


async def test_a_client_that_leaves_cancels_its_call(gateway: Gateway) -> None:
    """EX7: the call of a client that is gone is cancelled."""
    gateway.invoker.hold = asyncio.Event()
    async with RawClient(gateway.port) as client:
        await client.send(f"POST {INVOKE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}".encode())
        await gateway.invoker.began.wait()
    async with asyncio.timeout(20):
        await gateway.invoker.cancelled.wait()


async def test_who_may_call_what(gateway: Gateway) -> None:
    """ID1, ID2, SE5: no credential, a wrong one and a narrow one are refused, and the last two leave a row."""
    api = gateway.api
    assert (await api.remote.post(INVOKE)).status_code == 401
    assert await api.audit() == []
    answer = await api.remote.post(INVOKE, headers={"X-API-Key": "nk_wrong"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, 'ApiKey realm="nova"')
    (row,) = await api.audit()
    assert (row["action"], row["outcome"], row["address"]) == ("auth.login", "denied", "203.0.113.7")
    assert "nk_wrong" not in repr(row)

    key = {"X-API-Key": await api.key("invoker", ["hello"])}
    assert (await api.remote.post(INVOKE, headers=key)).status_code == 200
    for other in ("/functions/other/invoke", "/functions/%6Fther/invoke", "/v1/functions/hello2/invoke", "/fn/other/x"):
        assert (await api.remote.post(other, headers=key)).status_code == 403
    assert (await api.remote.post("/functions/hell%6F/invoke", headers=key)).status_code == 200
    denied = [row for row in await api.audit() if row["action"] == "function.invoke"]
    assert [row["outcome"] for row in denied] == ["denied"] * 3
    viewer = {"X-API-Key": await api.key("viewer")}
    assert (await api.remote.post(INVOKE, headers=viewer)).status_code == 403


async def test_rates_are_limited_and_shown(gateway: Gateway) -> None:
    """DB7: above the rate a caller gets 429 with the time to wait."""
    rates = gateway.guards.settings.rate_limit
    rates.tiers["standard"].burst_size = 2
    rates.tiers["standard"].requests_per_second = 0.1  # no token comes back while the test runs
    rates.enabled = True
    first = await gateway.api.client.post(INVOKE)
    assert (first.headers["x-ratelimit-limit"], first.headers["x-ratelimit-remaining"]) == ("2", "1")
    await gateway.api.client.post(INVOKE)
    third = await gateway.api.client.post(INVOKE)
    assert (third.status_code, third.json()["code"]) == (429, "rate_limited")
    assert int(third.headers["retry-after"]) >= 1
    assert len(gateway.invoker.calls) == 2


async def test_a_draining_server_refuses_calls(gateway: Gateway) -> None:
    gateway.guards.door.draining = True
    answer = await gateway.api.client.post(INVOKE)
    assert (answer.status_code, answer.json()["code"]) == (503, "draining")
    assert answer.headers["retry-after"]
