"""Subscriptions on the whole platform: real functions get what is published, and what fails is looked after."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

KEEPER = """
def handler(event, context):
    if event["data"].get("bad") and context.state.increment("tries") <= 2:
        raise ValueError("bad")
    return {"n": event["data"]["n"], "attempt": event["novaattempt"]}
"""

PUBLISHER = """
def handler(event, context):
    context.publish("e2e-circle", event)
    return context.call_depth
"""
CALLER = """
def handler(event, context):
    return context.invoke("circle-publisher", event["data"])
"""


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


def test_what_is_published_reaches_functions_and_what_fails_waits_for_help(platform: Platform) -> None:
    http = platform.http

    def post(path: str, body: Any = None, status: int = 200) -> Any:
        answer = http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    post("/topics", {"name": "e2e-sub"}, 201)
    platform.deploy("sub-keeper", KEEPER)
    fields = {"type": "function", "function_name": "sub-keeper", "max_attempts": 2, "backoff_base_ms": 20}
    made = post(
        "/topics/e2e-sub/subscriptions", {"name": "keep", "filters": [{"exact": {"/wanted": "true"}}], **fields}, 201
    )
    path = f"/subscriptions/{made['id']}"
    tried = post(path + "/test", {"payload": {"n": -1}})
    assert (tried["status"], tried["output"], tried["fits"]) == ("succeeded", {"n": -1, "attempt": 1}, False)
    batch = [{"payload": {"n": n, "wanted": n % 2 == 0, "bad": n == 8}, "ordering_key": "k"} for n in range(20)]
    post("/topics/e2e-sub/publish-batch", {"messages": batch}, 201)

    def counts() -> tuple[int, int]:
        items = http.get(path + "/deliveries").json()["items"]
        return sum(item["status"] == "succeeded" for item in items), sum(item["status"] == "dlq" for item in items)

    until(lambda: counts() == (9, 1), "all but one are delivered")
    (dead,) = http.get("/topics/e2e-sub/dlq").json()["items"]
    assert (dead["sequence"], dead["attempts"], dead["error"]) == (9, 2, "ValueError: bad")

    def log_of_the_dead() -> list[str]:
        logs = http.get("/functions/sub-keeper/logs", params={"limit": 50}).json()["items"]
        return [log["trigger"] for log in logs if log["id"] == dead["request_id"]]

    until(lambda: log_of_the_dead() == ["event"], "the call of the dead delivery is logged")

    post(f"/deliveries/{dead['id']}/retry")
    until(lambda: counts() == (10, 0), "the dead one is delivered")
    assert post(path + "/replay", {"from_sequence": 1, "to_sequence": 5}, 202)["deliveries"] == 3
    until(lambda: counts() == (13, 0), "the replay is delivered")
    until(lambda: http.get(path).json()["lag"] == 0, "nothing waits")
    assert http.delete("/topics/e2e-sub").status_code == 409
    assert http.delete(path).status_code == 204
    assert http.delete("/topics/e2e-sub").status_code == 204
    platform.delete("sub-keeper")


def test_a_circle_of_topics_and_functions_ends(platform: Platform) -> None:
    """A function called by a delivery calls another, which publishes to the topic again: the limit is ``events.max_hops``."""
    http = platform.http
    assert http.post("/topics", json={"name": "e2e-circle"}).status_code == 201
    platform.deploy("circle-publisher", PUBLISHER)
    platform.deploy("circle-caller", CALLER)
    fields = {"name": "round", "type": "function", "function_name": "circle-caller", "max_attempts": 1}
    made = http.post("/topics/e2e-circle/subscriptions", json=fields).json()
    assert http.post("/topics/e2e-circle/publish", json={"payload": {"n": 1}}).status_code == 201
    until(lambda: http.get(f"/subscriptions/{made['id']}").json()["dlq"] == 1, "the circle has ended", 60)
    (dead,) = http.get("/topics/e2e-circle/dlq").json()["items"]
    assert dead["sequence"] == 17
    assert "16 times" in dead["error"]
    assert http.get("/topics/e2e-circle").json()["messages"] == 17
    assert http.delete("/topics/e2e-circle?cascade=true").status_code == 204
    platform.delete("circle-caller")
    platform.delete("circle-publisher")
