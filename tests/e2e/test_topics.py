"""Topics on the whole platform: what functions publish when they succeed, delays, the live view, and orbit."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import NovaServer

SHOP = """
def handler(event, context):
    told = [context.publish("e2e-orders", {"n": n}, ordering_key="k", headers={"n": str(n)}) for n in range(event["n"])]
    if event.get("fail"):
        raise ValueError("not today")
    try:
        context.publish("e2e-nothing", 1)
    except context.CallError as error:
        return {"told": told, "code": error.code}
"""
NODE_SHOP = """
exports.handler = async (event, context) => context.publish("e2e-orders", "from node", { dedupId: "once", delayS: 0.05 });
"""


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


def test_what_functions_publish_is_there_when_they_succeed(platform: Platform) -> None:
    """A failed call publishes nothing; one that succeeds has published when it is answered."""
    http = platform.http
    assert http.post("/topics", json={"name": "e2e-orders"}).status_code == 201
    platform.deploy("topics-shop", SHOP)
    assert platform.error("topics-shop", {"n": 3, "fail": True})["type"] == "ValueError"
    answer = platform.call("topics-shop", {"n": 2})
    assert answer["code"] == "not_found"
    items = http.get("/topics/e2e-orders/messages").json()["items"]
    assert [item["payload"] for item in items] == [{"n": 0}, {"n": 1}]
    assert [item["id"] for item in items] == answer["told"]
    assert {(item["published_by"], item["ordering_key"]) for item in items} == {("function:topics-shop", "k")}
    assert [item["headers"] for item in items] == [{"n": "0"}, {"n": "1"}]

    platform.deploy("topics-node", NODE_SHOP, runtime="node")
    told = platform.call("topics-node", {})
    platform.call("topics-node", {})
    until(lambda: http.get("/topics/e2e-orders").json()["last_sequence"] == 3, "the delayed message is there")
    rows = http.get("/topics/e2e-orders/outbox").json()["items"]
    until(
        lambda: {row["duplicate"] for row in http.get("/topics/e2e-orders/outbox").json()["items"]} == {True, False},
        "the second is a duplicate",
        20,
    )
    assert told in [row["id"] for row in rows]
    for name in ("topics-shop", "topics-node"):
        platform.delete(name)


def test_the_live_view_reaches_through_every_plane(platform: Platform) -> None:
    assert platform.http.post("/topics", json={"name": "e2e-live"}).status_code == 201
    batch = [{"specversion": "1.0", "id": str(n), "source": "/t", "type": "t", "data": n} for n in range(3)]
    kind = {"Content-Type": "application/cloudevents-batch+json"}
    with (
        httpx.Client(base_url=platform.url, trust_env=False, timeout=30) as watcher,
        watcher.stream("GET", "/topics/e2e-live/stream") as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == ": stream"
        sent = platform.http.post("/topics/e2e-live/publish-batch", content=json.dumps(batch), headers=kind)
        assert sent.status_code == 201
        data = (line.removeprefix("data: ") for line in lines if line.startswith("data: "))
        assert [json.loads(next(data))["payload"] for _ in range(3)] == [0, 1, 2]
    assert platform.http.delete("/topics/e2e-live").status_code == 204
