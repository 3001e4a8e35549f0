"""What code inside an instance may ask for, from inside real instances: other functions, and its own state."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.config import MetricsSettings
from nova.domain.call import MAX_DEPTH, Accepted, AsyncOptions, CallRequest, CallResult, chain_of
from nova.domain.function import NetworkPolicy
from nova.domain.identity import Scope
from nova.domain.state import Owner
from nova.errors import NovaError
from nova.execution.metrics import Metrics
from nova.execution.sealing import Sealer
from nova.payload import decode, encode
from tests.conftest import _database
from tests.execution.stack import RealStack, real_stack

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ECHO = """
def handler(event, context):
    if event and event.get("fail"):
        raise LookupError("not in here")
    return {"got": event, "caller": context.caller_function, "depth": context.call_depth, "chain": context.call_chain,
            "traceparent": context.traceparent, "version": context.function_version,
            "left": context.get_remaining_time_in_millis()}
"""
CALLING = """
def handler(event, context):
    try:
        return context.invoke(event["name"], event.get("payload", {}), qualifier=event.get("qualifier"),
                              event=event.get("event", False), idempotency_key=event.get("key"))
    except context.CallError as error:
        return {"code": error.code, "status": error.status, "type": error.type, "message": str(error)}
"""
STATE = """
def handler(event, context):
    try:
        return getattr(context.state, event["do"])(*event.get("args", []), **event.get("more", {}))
    except context.CallError as error:
        return {"code": error.code, **{k: v for k, v in error.problem.items() if k == "current_version"}}
"""
RAW = """
import json, os, socket, urllib.error, urllib.request

def handler(event, context):
    headers = {"Authorization": "Bearer " + event.get("token", os.environ["NOVA_API_TOKEN"]),
               "X-Nova-Request-Id": event.get("request_id", context.request_id), **event.get("headers", {})}
    if event.get("bytes"):
        with socket.create_connection(("127.0.0.1", 8399)) as sock:
            sock.sendall(event["bytes"].encode("latin-1"))
            sock.settimeout(5)
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
        return answer.decode("latin-1")
    request = urllib.request.Request(os.environ["NOVA_API_URL"] + event["path"], method=event.get("method", "GET"),
                                     headers=headers, data=event["body"].encode() if "body" in event else None)
    try:
        with urllib.request.urlopen(request) as answer:
            return {"status": answer.status, "body": answer.read().decode(), "headers": dict(answer.headers)}
    except urllib.error.HTTPError as error:
        return {"status": error.code, "code": json.loads(error.read())["code"]}
"""


@pytest.fixture(scope="module")
def module_dsn(pg_server: str, pg_template: str) -> Iterator[str]:
    yield from _database(pg_server, pg_template)


@pytest.fixture(scope="module")
async def stack(module_dsn: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RealStack]:
    async with real_stack(module_dsn, tmp_path_factory.mktemp("guest")) as stack:
        await stack.deploy(ECHO, "echo")
        await stack.deploy(CALLING, "calling")
        await stack.deploy(CALLING, "between")
        await stack.deploy(STATE, "state")
        await stack.deploy(RAW, "raw", network=NetworkPolicy(isolation_mode="strict"))
        yield stack
    assert stack.executor.active == 0


def output(result: CallResult) -> Any:
    assert result.error is None, result.error
    assert result.output is not None
    return decode(result.output)


async def ask(stack: RealStack, name: str, event: Any, **call: Any) -> Any:
    return output(await stack.invoke(encode(event), name, **call))


async def until(condition: Any, limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


@contextmanager
def accepting(stack: RealStack) -> Iterator[list[tuple[CallRequest, AsyncOptions]]]:
    taken: list[tuple[CallRequest, AsyncOptions]] = []

    class Acceptor:
        async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
            taken.append((call, options))
            return Accepted("0199aaaa-0000-7000-8000-000000000001", "queued")

    stack.guests.acceptor = Acceptor()
    yield taken
    stack.guests.acceptor = None


async def test_a_function_calls_another(stack: RealStack) -> None:
    """AG24: with its chain and trace, in the time that is left, as itself."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    answer = await ask(
        stack, "calling", {"name": "echo", "payload": {"a": [1, "ü"]}}, traceparent=trace, timeout_ms=9000
    )
    assert 0 < answer.pop("left") <= 9000
    assert answer == {
        "got": {"a": [1, "ü"]},
        "caller": "calling",
        "depth": 1,
        "chain": ["calling"],
        "traceparent": trace,
        "version": "1",
    }
    call, _, result = next(done for done in stack.records if done[0].function == "echo")
    assert (call.trigger, call.caller, call.identity.subject) == ("function", "function:calling", "function:calling")
    assert (call.identity.tenants, call.identity.platform) == (frozenset({"default"}), False)
    assert result.error is None


async def test_what_goes_wrong_with_the_other_is_told(stack: RealStack) -> None:
    failed = await ask(stack, "calling", {"name": "echo", "payload": {"fail": True}})
    assert (failed["code"], failed["type"], failed["message"]) == ("function_error", "LookupError", "not in here")
    for event, code in (
        ({"name": "nobody"}, "not_found"),
        ({"name": "no/such"}, "not_found"),
        ({"name": "echo", "qualifier": "9"}, "not_found"),
        ({"name": "echo", "qualifier": "?"}, "validation_failed"),
    ):
        assert (await ask(stack, "calling", event))["code"] == code, event


async def test_circles_and_chains_that_are_too_long_are_refused(stack: RealStack) -> None:
    """EX9: through the guest API as at any other entry; at once, not after the slots have run out."""
    assert (await ask(stack, "calling", {"name": "calling"}))["code"] == "recursion"
    through = {"name": "between", "payload": {"name": "calling"}}
    assert (await ask(stack, "calling", through))["status"] == 508
    deep = tuple(f"f{n}" for n in range(MAX_DEPTH))
    assert (await ask(stack, "calling", {"name": "echo"}, chain=deep))["code"] == "recursion"
    assert (await ask(stack, "calling", {"name": "echo"}, chain=deep[1:]))["depth"] == MAX_DEPTH
    with pytest.raises(NovaError, match="recursion"):
        await stack.invoke(b"{}", "echo", chain=(*deep, "one more"))


async def test_a_call_for_later_goes_into_the_queue(stack: RealStack) -> None:
    with accepting(stack) as taken:
        answer = await ask(stack, "calling", {"name": "echo", "payload": 7, "event": True, "key": "k1"})
        assert (await ask(stack, "calling", {"name": "calling", "event": True}))["code"] == "recursion"
        through = {"name": "between", "payload": {"name": "echo", "event": True}}
        assert (await ask(stack, "calling", through))["status"] == "queued"
    assert answer["invocation_id"] == "0199aaaa-0000-7000-8000-000000000001"
    (call, options), (second, _) = taken
    assert (second.caller, chain_of(second.caller)) == ("function:calling>between", ("calling", "between"))
    assert (call.function, call.payload, call.caller) == ("echo", b"7", "function:calling")
    assert options.idempotency_key == "k1"


async def test_the_others_end_with_their_caller(stack: RealStack) -> None:
    """A caller that is cancelled, or out of time, leaves nobody at work for it."""
    await stack.deploy("import time\ndef handler(event, context):\n    time.sleep(30)\n", "slow")
    for timeout_ms in (400, None):
        call = stack.invoking(encode({"name": "slow"}), "calling", timeout_ms=timeout_ms)
        await until(lambda: stack.fleet.stats()["inflight"] == 2)
        if timeout_ms is None:
            call.cancel()
        with pytest.raises((NovaError, asyncio.CancelledError)):
            await call
        await until(lambda: stack.executor.active == 0)
    ended = [done for done in stack.records if done[0].function == "slow"]
    assert {result.error.type for _, _, result in ended if result.error} <= {"Nova.Timeout", "Nova.Cancelled"}
    assert len(ended) == 2


async def test_a_call_in_flight_still_calls_others_while_the_server_shuts_down(stack: RealStack) -> None:
    code = """
import time
def handler(event, context):
    while not context.state.get("go"):
        time.sleep(0.01)
    return context.invoke("echo", {})["depth"]
"""
    await stack.deploy(code, "late")
    call = stack.invoking(b"{}", "late")
    await until(lambda: stack.fleet.stats()["inflight"] == 1)
    stack.executor.set_aside(True)
    with pytest.raises(NovaError, match="draining"):
        await stack.invoke(b"{}", "echo")
    late = await stack.functions.lookup(Scope(), "late")
    assert late is not None
    await stack.guests.states.put(Owner(Scope(), late.id), "go", b"true")
    assert output(await call) == 1
    stack.executor.set_aside(False)


async def test_many_at_once_from_one_handler(stack: RealStack) -> None:
    """Awaitable where an event loop runs, also with many calls in one worker."""
    code = """
import asyncio
async def handler(event, context):
    await context.state.increment("calls")
    answers = await asyncio.gather(*(context.invoke("echo", {"n": n}) for n in range(event["n"])))
    return [answer["got"]["n"] for answer in answers]
"""
    await stack.deploy(code, "fan", concurrency=4)
    results = await asyncio.gather(*(ask(stack, "fan", {"n": 5}) for _ in range(4)))
    assert results == [list(range(5))] * 4


async def test_node_has_the_same(stack: RealStack) -> None:
    code = """
exports.handler = async (event, context) => {
  const { state } = context;
  const failed = await context.invoke("echo", { fail: true }).catch((error) => [error.code, error.type, error.message]);
  const conflict = async () => {
    try { await state.put("k?", 1, { expectedVersion: 0 }); } catch (error) {
      return [error instanceof context.CallError, error.code, error.problem.current_version];
    }
  };
  return {
    got: (await context.invoke("echo", { a: ["ü"] })).got, failed,
    put: await state.put("k?", { b: null }, { ttlS: 60, expectedVersion: 0 }), conflict: await conflict(),
    read: await state.read("k?"), missing: [await state.get("x", 7), await state.read("x"), await state.delete("x")],
    count: await state.increment("n", -2), keys: (await state.list("k")).map((item) => item.key),
    gone: [await state.delete("k?", { expectedVersion: 1 }), await state.get("k?")],
  };
};
"""
    await stack.deploy(code, "node", runtime="node", entry="index.js", handler="index.handler")
    assert await ask(stack, "node", {}) == {
        "got": {"a": ["ü"]},
        "failed": ["function_error", "LookupError", "not in here"],
        "put": 1,
        "conflict": [True, "version_conflict", 1],
        "read": {"value": {"b": None}, "version": 1},
        "missing": [7, None, False],
        "count": -2,
        "keys": ["k?"],
        "gone": [True, None],
    }


async def test_a_shell_asks_with_curl(stack: RealStack) -> None:
    code = """#!/bin/sh
ask() { curl -sS -H "Authorization: Bearer $NOVA_API_TOKEN" -H "X-Nova-Request-Id: $NOVA_REQUEST_ID" "$@"; }
ask -X PUT -d '[1, 2]' "$NOVA_API_URL/v1/state/list" >&2
echo "$NOVA_CALL_DEPTH $NOVA_CALL_CHAIN $NOVA_CALLER_FUNCTION" >&2
echo "{\\"state\\": $(ask "$NOVA_API_URL/v1/state/list"), \\"echo\\": $(ask -d @"$1" "$NOVA_API_URL/v1/invoke/echo")}"
"""
    config: dict[str, Any] = {
        "runtime": "custom",
        "entry": "bootstrap",
        "entry_mode": 0o755,
        "handler": "bootstrap",
        "mode": "process",
    }
    await stack.deploy(code, "shell", entry_kind="script", **config)
    result = await stack.invoke(b'{"x": 1}', "shell", chain=("a", "b"))
    answer = output(result)
    assert (answer["state"], answer["echo"]["got"], answer["echo"]["depth"]) == ([1, 2], {"x": 1}, 3)
    assert result.stderr.endswith("2 a,b b\n")


async def test_state_stays_and_belongs_to_the_function(stack: RealStack) -> None:
    """ST1, ST2: across versions and instances; nobody else's."""

    async def state(do: str, *args: Any, name: str = "state", **more: Any) -> Any:
        return await ask(stack, name, {"do": do, "args": args, "more": more})

    assert await state("get", "k", "nothing") == "nothing"
    assert await state("put", "k", {"a": [1.5, None, "ü"]}, expected_version=0) == 1
    assert await state("put", "k", [1], expected_version=0) == {"code": "version_conflict", "current_version": 1}
    assert await state("read", "k") == [{"a": [1.5, None, "ü"]}, 1]
    assert await state("put", "k", 2, expected_version=1) == 2
    assert await state("increment", "n", 5) == 5
    assert await state("increment", "n", -7) == -2
    assert await state("put", "a/b c%?", 1, ttl_s=60) == 1
    items = await state("list", "a/")
    assert [(item["key"], item["size"], item["expires_at"] is None) for item in items] == [("a/b c%?", 1, False)]
    assert [item["key"] for item in await state("list", limit=1, after="a/b c%?")] == ["k"]
    await stack.deploy(STATE + "# another version\n", "state")
    assert await state("get", "k") == 2
    await stack.deploy(STATE, "neighbour")
    assert await state("list", name="neighbour") == []
    assert await state("delete", "k", expected_version=7) == {"code": "version_conflict", "current_version": 2}
    assert (await state("delete", "k"), await state("delete", "k")) == (True, False)
    assert (await state("put", "x" * 513, 1))["code"] == "validation_failed"
    assert (await state("put", "big", "x" * (256 << 10)))["code"] == "payload_too_large"
    assert (await state("put", "k", 1, ttl_s=0))["code"] == "validation_failed"


async def test_only_who_shows_the_token_in_a_call_of_its_own_is_heard(stack: RealStack) -> None:
    """ST1: offline instances have it too; another instance's token, or a call that is not in flight here, opens nothing."""
    good = await ask(stack, "raw", {"path": "/v1/context"})
    assert (good["status"], decode(good["body"])["function_name"]) == (200, "raw")
    assert (await ask(stack, "raw", {"path": "/v1/context", "token": "0" * 48}))["code"] == "unauthenticated"
    await stack.deploy("import os\ndef handler(e, c):\n    return os.environ['NOVA_API_TOKEN']\n", "token")
    other = await ask(stack, "token", {})
    assert (await ask(stack, "raw", {"path": "/v1/context", "token": other}))["code"] == "unauthenticated"
    slow = stack.invoking(encode({"name": "slow"}), "calling", request_id="0199aaaa-0000-7000-8000-00000000abcd")
    await until(lambda: stack.executor.active == 2)
    for request_id in ("", "0199aaaa-0000-7000-8000-00000000abcd"):
        refused = await ask(stack, "raw", {"path": "/v1/state/k", "request_id": request_id})
        assert refused == {"status": 403, "code": "forbidden"}
    slow.cancel()
    await until(lambda: stack.executor.active == 0)


async def test_instances_of_a_snapshot_ask_with_tokens_of_their_own(stack: RealStack) -> None:
    """Also in calls at once, which only several workers can serve."""
    code = """
import os, time
time.sleep(0.02)
def handler(event, context):
    time.sleep(event["s"])
    return [os.environ["NOVA_API_TOKEN"], context.state.increment("n"), context.invoke("echo", {})["caller"]]
"""
    sealer = Sealer(SYSTEM_CLOCK, Metrics(MetricsSettings()), slow_import_us=15_000)
    stack.booter._kept = sealer
    await stack.deploy(code, "sealed", concurrency=2)
    first = await ask(stack, "sealed", {"s": 0})
    await until(lambda: [kept.state for kept in sealer.of(Scope(), "sealed")] == ["ready"])
    stack.fleet.evict(Scope(), "sealed", ())
    results = await asyncio.gather(*(stack.invoke(b'{"s": 0.2}', "sealed") for _ in range(2)))
    assert {result.source for result in results} <= {"snapshot", "warm"}
    answers = [output(result) for result in results]
    assert len({first[0], answers[0][0]}) == 2
    assert sorted(answer[1] for answer in answers) == [2, 3]
    assert {answer[2] for answer in answers} == {"sealed"}
    stack.booter._kept = None
    await sealer.close()


async def test_nothing_listens_for_other_instances(stack: RealStack) -> None:
    """ST1: the API is on the loopback of each instance, so another one's address does not answer."""
    code = """
import socket
def handler(event, context):
    if event.get("address"):
        try:
            socket.create_connection((event["address"], 8399), timeout=0.5).close()
            return "open"
        except OSError as error:
            return "closed"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.1", 9))
        return sock.getsockname()[0]
"""
    await stack.deploy(code, "one")
    await stack.deploy(code, "two")
    address = await ask(stack, "one", {})
    assert address != "127.0.0.1"
    assert await ask(stack, "two", {"address": address}) == "closed"
    assert await ask(stack, "one", {"address": address}) == "closed"


async def test_bad_requests_are_answered_and_cost_nothing(stack: RealStack) -> None:
    for event, status in (
        ({"path": "/v1/topic/t", "method": "POST", "body": "{}"}, 404),
        ({"path": "/v1/context", "method": "POST", "body": "{}"}, 405),
        ({"path": "/v1/invoke/echo?no=1", "method": "POST", "body": "{}"}, 400),
        ({"path": "/v1/invoke/echo", "method": "POST", "body": "{"}, 400),
        ({"path": "/v1/invoke/echo?type=later", "method": "POST", "body": "{}"}, 400),
        ({"path": "/v1/state?limit=1001"}, 400),
        ({"path": "/v1/state/k", "method": "PUT", "body": "NaN"}, 400),
        ({"path": "/v1/state/k", "method": "PUT", "body": "1", "headers": {"If-Match": "x"}}, 400),
        ({"path": "/v1/state/%ff"}, 400),
        ({"path": "/v1/state/a%00b"}, 400),
        ({"path": "/2018-06-01/runtime/invocation/next"}, 404),
    ):
        answer = await ask(stack, "raw", event)
        assert answer["status"] == status, (event, answer)
    for text, start in (
        ("hello\r\n\r\n", "HTTP/1.1 400"),
        ("GET /v1/context HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", "HTTP/1.1 413"),
        ("GET / HTTP/1.1\r\nX: " + "y" * 20_000, "HTTP/1.1 431"),
        ("GET /a HTTP/1.1\r\n\r\nGET /b HTTP/1.1\r\nConnection: close\r\n\r\n", "HTTP/1.1 401"),
    ):
        assert (await ask(stack, "raw", {"bytes": text})).startswith(start), text[:40]
