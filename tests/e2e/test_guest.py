"""Functions that call functions and keep state, on the whole platform: in one process, and in six."""

from collections.abc import Iterator

import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

CALLER = """
def handler(event, context):
    seen = context.state.increment("seen")
    later = context.invoke("guest-other", {"n": seen}, event=True, idempotency_key=f"k{seen}")
    return {"now": context.invoke("guest-other", {"n": seen}), "later": later["invocation_id"]}
"""
OTHER = """
def handler(event, context):
    context.state.put(f"call/{context.call_depth}", event["n"])
    return {"n": event["n"], "by": context.caller_function}
"""


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


def test_functions_call_each_other_and_their_state_is_seen_outside(platform: Platform) -> None:
    platform.deploy("guest-caller", CALLER)
    platform.deploy("guest-other", OTHER)
    answer = platform.call("guest-caller", {})
    assert answer["now"] == {"n": 1, "by": "guest-caller"}
    job = f"/async-invocations/{answer['later']}"
    until(lambda: platform.http.get(job).json()["status"] == "succeeded", "the call in the queue ends")
    assert platform.http.get(job).json()["source"] == "function:guest-caller"

    state = "/functions/guest-other/state"
    keys = [item["key"] for item in platform.http.get(state, params={"prefix": "call/"}).json()["items"]]
    assert "call/1" in keys
    assert platform.http.get(state, params={"key": "call/1"}).json()["value"] == 1
    seen = platform.http.put("/functions/guest-caller/state", params={"key": "seen"}, json={"value": 41})
    assert (seen.status_code, seen.json()["version"]) == (200, 2)
    assert platform.call("guest-caller", {})["now"]["n"] == 42
    logged = platform.http.get("/invocations", params={"function": "guest-other"}).json()["items"]
    assert {"function", "async"} <= {record["trigger"] for record in logged}
    for name in ("guest-caller", "guest-other"):
        platform.delete(name)
