"""The API of topics: what is checked, what is shown, what is kept, and the live view."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from nova.ids import new_id
from nova.store.db import Database
from nova.store.messages import MessageRetention
from tests.control.support import fields, problem
from tests.events.bus.topics import Bus, bus, message, topic
from tests.http.harness import serve

pytestmark = pytest.mark.anyio


@pytest.fixture
async def plane(database: Database) -> AsyncIterator[Bus]:
    async with bus(database) as running:
        yield running


async def test_a_topic_is_made_changed_listed_and_deleted(plane: Bus) -> None:
    made = await plane.topic("orders", description="what was bought", max_retained_mb=5)
    assert made == await plane.get("/topics/orders")
    shown = {key: made[key] for key in made if key not in ("id", "created_at", "updated_at")}
    assert shown == {
        "name": "orders",
        "description": "what was bought",
        "retention_hours": 168,
        "max_retained_mb": 5,
        "dedup_window_s": 600,
        "schema": None,
        "schema_mode": "off",
        "messages": 0,
        "bytes": 0,
        "first_sequence": 1,
        "last_sequence": 0,
        "last_published_at": None,
        "created_by": "operator",
    }
    answer = await plane.client.patch("/topics/orders", json={"retention_hours": 24, "max_retained_mb": None})
    assert answer.status_code == 200
    assert (answer.json()["retention_hours"], answer.json()["max_retained_mb"]) == (24, None)
    assert answer.json()["description"] == "what was bought"
    for name in ("a.b-c_1", "other"):
        await plane.topic(name)
    first = await plane.get("/topics?limit=2")
    assert [item["name"] for item in first["items"]] == ["other", "a.b-c_1"]
    rest = await plane.get(f"/topics?limit=2&cursor={first['next_cursor']}")
    assert ([item["name"] for item in rest["items"]], rest["next_cursor"]) == (["orders"], None)
    assert [item["name"] for item in (await plane.get("/topics?q=ORD"))["items"]] == ["orders"]
    problem(await plane.client.post("/topics", json={"name": "orders"}), 409, "already_exists")
    assert (await plane.client.delete("/topics/orders")).status_code == 204
    problem(await plane.client.delete("/topics/orders"), 404, "not_found")
    problem(await plane.client.get("/topics?cursor=nonsense"), 400, "invalid_cursor")


ORDER = {"type": "object", "required": ["item"], "properties": {"item": {"type": "string"}, "count": {"minimum": 1}}}


async def test_messages_have_to_fit_the_schema_of_their_topic(plane: Bus) -> None:
    """However they come: alone, in batches, as events, named or not, into the outbox; others' requests are not held up."""
    await plane.topic("orders", schema=ORDER)
    await plane.publish(7)
    patched = await plane.client.patch("/topics/orders", json={"schema_mode": "reject"})
    assert (patched.json()["schema"], patched.json()["schema_mode"]) == (ORDER, "reject")
    await plane.topic("plain")

    async def refused(path: str, body: Any, *at: str, **headers: str) -> None:
        answer = await plane.client.post(f"/topics/orders/{path}", json=body, headers=headers)
        assert fields(problem(answer, 400, "validation_failed")) == list(at)

    good, bad = {"payload": {"item": "tea"}}, {"payload": {"item": "tea", "count": 0}}
    await refused("publish", {"payload": {"item": 5}}, "payload.item")
    await refused("publish", {"payload": []}, "payload")
    await refused("publish", {**bad, "dedup_id": "d"}, "payload.count")
    await refused("publish", {**bad, "delay_s": 60}, "payload.count")
    await refused("outbox", {**bad, "hold": True}, "payload.count")
    await refused("publish-batch", {"messages": [good, bad, {"payload": {}}]}, "messages.1.payload.count")
    event = {"specversion": "1.0", "id": "1", "source": "/shop", "type": "t", "data": {"item": None}}
    await refused("publish", event, "payload.item", **{"content-type": "application/cloudevents+json"})
    both = asyncio.gather(
        plane.client.post("/topics/plain/publish", json=bad),
        plane.client.post("/topics/orders/publish", json=bad),
        plane.client.post("/topics/orders/publish", json=good),
        plane.client.post("/topics/nowhere/publish", json=good),
    )
    assert [answer.status_code for answer in await both] == [201, 400, 201, 404]
    waits = await plane.client.post("/topics/orders/publish", json={**good, "delay_s": 60, "dedup_id": "d"})
    assert waits.status_code == 202
    kept = await plane.get("/topics/orders/messages")
    assert [message["payload"] for message in kept["items"]] == [7, {"item": "tea"}]
    off = await plane.client.patch("/topics/orders", json={"schema": None, "schema_mode": None})
    assert (off.json()["schema"], off.json()["schema_mode"]) == (None, "off")
    await plane.publish(8)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"name": "no spaces"}, "name"),
    ({"name": "x" * 129}, "name"),
    ({"name": "x", "retention_hours": 0}, "retention_hours"),
    ({"name": "x", "max_retained_mb": 0}, "max_retained_mb"),
    ({"name": "x", "dedup_window_s": -1}, "dedup_window_s"),
    ({"name": "x", "description": "x" * 1025}, "description"),
    ({"name": "x", "schema": {"type": "number", "minimum": "x"}}, "schema"),
    ({"name": "x", "schema": {"$ref": "https://example.com/order.json"}}, "schema"),
    ({"name": "x", "schema": {"description": "x" * 65_536}}, "schema"),
    ({"name": "x", "schema_mode": "reject"}, "schema_mode"),
    ({"name": "x", "schema": {}, "schema_mode": "warn"}, "schema_mode"),
]
BAD_MESSAGES: list[tuple[dict[str, Any], str]] = [
    ({}, "payload"),
    ({"payload": 1, "ordering_key": ""}, "ordering_key"),
    ({"payload": 1, "dedup_id": "x" * 257}, "dedup_id"),
    ({"payload": 1, "delay_s": -1}, "delay_s"),
    ({"payload": 1, "headers": {"no spaces": "x"}}, "headers"),
    ({"payload": 1, "headers": {"a": "x" * 17_000}}, "headers"),
    ({"payload": 1, "priority": 1}, "priority"),
]


async def test_bad_fields_are_refused_by_name(plane: Bus) -> None:
    await plane.topic()
    for members, field in BAD:
        answer = await plane.client.post("/topics", json=members)
        assert answer.status_code == 400, answer.text
        assert fields(answer.json())[0].split(".")[0] == field
    for members, field in BAD_MESSAGES:
        single = await plane.client.post("/topics/orders/publish", json=members)
        batch = await plane.client.post("/topics/orders/publish-batch", json={"messages": [{"payload": 1}, members]})
        assert (single.status_code, batch.status_code) == (400, 400), single.text + batch.text
        assert fields(single.json())[0].split(".")[0] == field
        assert field in fields(batch.json())[0]
    too_many = await plane.client.post("/topics/orders/publish-batch", json={"messages": [{"payload": 1}] * 501})
    assert (too_many.status_code, fields(too_many.json())) == (400, ["messages"])
    large = await plane.client.post("/topics/orders/publish", json={"payload": "x" * (1 << 20)})
    problem(large, 413, "payload_too_large")
    broken = await plane.client.post("/topics/orders/publish", content=b'{"payload": tru}')
    problem(broken, 400, "invalid_json")
    problem(await plane.client.post("/topics/nothing/publish", json={"payload": 1}), 404, "not_found")
    assert await plane.payloads() == []


async def test_messages_are_published_and_browsed(plane: Bus) -> None:
    await plane.topic()
    first = await plane.publish({"n": 1}, headers={"source": "shop"}, ordering_key="k")
    answer = await plane.client.post(
        "/topics/orders/publish-batch",
        json={"messages": [{"payload": n, "ordering_key": "k" if n % 2 else None} for n in (2, 3, 4)]},
    )
    assert answer.status_code == 201
    assert [told["sequence"] for told in answer.json()["messages"]] == [2, 3, 4]
    assert await plane.payloads() == [{"n": 1}, 2, 3, 4]
    shown = await plane.get("/topics/orders/messages/1")
    assert (shown["id"], shown["headers"], shown["ordering_key"]) == (first["id"], {"source": "shop"}, "k")
    assert shown["size"] == len('{"n":1}') + len('{"source":"shop"}')
    page = await plane.get("/topics/orders/messages?from_sequence=2&limit=2")
    assert [item["payload"] for item in page["items"]] == [2, 3]
    rest = await plane.get(f"/topics/orders/messages?limit=2&cursor={page['next_cursor']}")
    assert ([item["payload"] for item in rest["items"]], rest["next_cursor"]) == ([4], None)
    keyed = await plane.get("/topics/orders/messages?ordering_key=k")
    assert [item["sequence"] for item in keyed["items"]] == [1, 3]
    since = shown["published_at"].replace("+", "%2B")
    assert len((await plane.get(f"/topics/orders/messages?from_time={since}"))["items"]) == 4
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat().replace("+", "%2B")
    assert (await plane.get(f"/topics/orders/messages?from_time={later}"))["items"] == []
    topic_shown = await plane.get("/topics/orders")
    assert (topic_shown["messages"], topic_shown["last_sequence"]) == (4, 4)
    assert topic_shown["last_published_at"] is not None
    problem(await plane.client.get("/topics/orders/messages/5"), 404, "not_found")
    problem(await plane.client.get("/topics/orders/messages/x"), 404, "not_found")


async def test_a_repeated_message_is_the_first_one(plane: Bus) -> None:
    """``dedup_id`` counts within the topic's window; a window of 0 compares nothing."""
    await plane.topic()
    await plane.topic("all", dedup_window_s=0)
    first = await plane.publish(1, dedup_id="x")
    assert await plane.publish(2, dedup_id="x") == {**first, "duplicate": True}
    assert [(await plane.publish(n, "all", dedup_id="x"))["sequence"] for n in (1, 2)] == [1, 2]
    await plane.db.run("UPDATE event_dedup SET expires_at = now() - interval '1 s'")
    assert (await plane.publish(3, dedup_id="x"))["sequence"] == 2
    await plane.db.run("UPDATE event_dedup SET expires_at = now() - interval '1 s'")
    assert await MessageRetention(plane.db).sweep_keys(datetime.now(UTC), 10) == 1


async def test_payloads_are_for_those_who_may_read_them(plane: Bus) -> None:
    await plane.topic()
    await plane.publish({"secret": 1})
    for role, expected in (("viewer", None), ("developer", {"secret": 1})):
        answer = await plane.api.remote.get("/topics/orders/messages", headers={"X-API-Key": await plane.api.key(role)})
        assert [item["payload"] for item in answer.json()["items"]] == [expected]
    viewer = {"X-API-Key": await plane.api.key("viewer")}
    refused = await plane.api.remote.post("/topics/orders/publish", json={"payload": 1}, headers=viewer)
    problem(refused, 403, "forbidden")


async def test_retention_removes_by_age_and_size_without_asking(plane: Bus) -> None:
    """What is past it is gone at once for readers, and its rows a batch at a time; a deleted topic's too."""
    topic_id = (await plane.topic(retention_hours=1, max_retained_mb=1))["id"]
    await topic(plane.db, "old")
    for number in range(6):
        await plane.publish(str(number) + "x" * 300_000)
    await plane.publish(1, "old")
    await plane.db.run("UPDATE event_messages SET published_at = now() - interval '2 h' WHERE sequence = 1")
    retention = MessageRetention(plane.db)
    assert await retention.sweep(datetime.now(UTC), 2) == 2
    shown = await plane.get("/topics/orders")
    assert (shown["first_sequence"], shown["messages"]) == (4, 3)
    assert shown["bytes"] <= 1 << 20
    problem(await plane.client.get("/topics/orders/messages/3"), 410, "gone")
    assert [item["sequence"] for item in (await plane.get("/topics/orders/messages"))["items"]] == [4, 5, 6]
    assert await retention.sweep(datetime.now(UTC), 100) == 1
    await plane.client.delete("/topics/orders")
    assert await retention.sweep(datetime.now(UTC), 100) == 3
    left = await plane.db.fetch("SELECT topic_id FROM event_heads WHERE topic_id = %(id)s", id=topic_id)
    assert left == []
    assert await plane.payloads("old") == [1]


async def test_the_live_view_shows_what_comes_and_resumes(plane: Bus) -> None:
    await plane.topic()
    await plane.publish("before")
    async with (
        serve(plane.api.app) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client,
    ):
        async with client.stream("GET", "/topics/orders/stream") as answer:
            lines = answer.aiter_lines()
            assert await anext(lines) == ": stream"
            await plane.publish({"n": 1})
            first = await _event(lines)
            assert (first["id"], json.loads(first["data"])["payload"]) == ("2", {"n": 1})
        await plane.publish("meanwhile")
        async with client.stream("GET", "/topics/orders/stream", headers={"Last-Event-ID": "2"}) as answer:
            assert json.loads((await _event(answer.aiter_lines()))["data"])["payload"] == "meanwhile"
        async with client.stream("GET", "/topics/orders/stream?from_sequence=1") as answer:
            assert json.loads((await _event(answer.aiter_lines()))["data"])["payload"] == "before"
        await plane.db.run("UPDATE event_heads SET first_sequence = 3")
        async with client.stream("GET", "/topics/orders/stream?from_sequence=1") as answer:
            lines = answer.aiter_lines()
            lagged = await _event(lines)
            assert (lagged["event"], json.loads(lagged["data"])) == ("lagged", {"dropped": 2})
            assert (await _event(lines))["id"] == "3"
        refused = await client.get("/topics/orders/stream", headers={"Last-Event-ID": "x"})
        problem(refused, 400, "validation_failed")


async def _event(lines: AsyncIterator[str]) -> dict[str, str]:
    """The next event: its fields by name."""
    found: dict[str, str] = {}
    async with asyncio.timeout(10):
        async for line in lines:
            if not line and found:
                return found
            name, _, value = line.partition(": ")
            if name:
                found[name] = value
    raise AssertionError("the stream has ended")


async def test_topics_of_another_tenant_are_not_there(plane: Bus) -> None:
    await plane.topic()
    await plane.api.tenant("other")
    stranger = {"X-API-Key": await plane.api.key(tenant="other"), "X-Nova-Tenant": "other"}
    row = (await plane.client.post("/topics/orders/outbox", json={"payload": 1, "hold": True})).json()["id"]
    for method, path in (
        ("GET", "/topics/orders"),
        ("DELETE", "/topics/orders"),
        ("GET", "/topics/orders/messages"),
        ("GET", "/topics/orders/stream"),
        ("GET", "/topics/orders/outbox"),
        ("GET", f"/outbox/{row}"),
        ("POST", f"/outbox/{row}/release"),
        ("DELETE", f"/outbox/{row}"),
    ):
        problem(await plane.api.remote.request(method, path, headers=stranger), 404, "not_found")
    sent = await plane.api.remote.post("/topics/orders/publish", json={"payload": 1}, headers=stranger)
    problem(sent, 404, "not_found")
    assert message().payload == b"{}"


async def test_a_topic_with_subscriptions_goes_only_with_them(plane: Bus) -> None:
    topic_id = (await plane.topic())["id"]
    await plane.db.run(
        "INSERT INTO event_subscriptions (id, tenant_id, namespace, topic_id, name, consumer_group, enabled, settings, shard,"
        " cursor, created_by) VALUES (%(id)s, 'default', 'default', %(topic)s, 's', 's', true, '{}', 0, 0, 'test')",
        id=new_id(),
        topic=topic_id,
    )
    refused = problem(await plane.client.delete("/topics/orders"), 409, "in_use")
    assert refused["references"] == ["s"]
    assert (await plane.client.delete("/topics/orders?cascade=true")).status_code == 204
    assert await plane.db.fetch("SELECT id FROM event_subscriptions") == []
