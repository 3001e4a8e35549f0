"""CloudEvents 1.0 over HTTP: binary, structured and batch mode, as the SDK sends them."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

from nova.store.db import Database
from tests.control.support import fields
from tests.events.bus.topics import Bus, bus

pytestmark = pytest.mark.anyio
EVENT = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/shop/ü",
    "type": "order.placed",
    "subject": "customer-7",
    "time": "2026-01-31T03:00:00Z",
}


@pytest.fixture
async def plane(database: Database) -> AsyncIterator[Bus]:
    async with bus(database) as running:
        await running.topic()
        yield running


async def post(plane: Bus, event: HTTPMessage) -> dict[str, Any]:
    answer = await plane.client.post("/topics/orders/publish", content=event.body, headers=event.headers)
    assert answer.status_code in (200, 201), answer.text
    told: dict[str, Any] = answer.json()["message"]
    return told


async def test_what_the_sdk_sends_arrives(plane: Bus) -> None:
    """Both modes carry the same event; its source and id name it, so the second is the first."""
    attributes = {name: value for name, value in EVENT.items() if name != "time"} | {"region": "eu"}
    first = await post(plane, to_binary_event(CloudEvent(dict(attributes), {"price": 5})))
    again = await post(plane, to_structured_event(CloudEvent(dict(attributes), {"price": 5})))
    assert (again["id"], again["duplicate"]) == (first["id"], True)
    other = CloudEvent(dict(attributes) | {"id": "e-2", "partitionkey": "p"}, {"price": 6})
    await post(plane, to_structured_event(other))
    one, two = (await plane.get("/topics/orders/messages"))["items"]
    assert (one["payload"], two["payload"]) == ({"price": 5}, {"price": 6})
    assert (one["ordering_key"], two["ordering_key"]) == ("customer-7", "p")
    assert {name: one["attributes"][name] for name in attributes if name != "specversion"} == {
        name: value for name, value in attributes.items() if name != "specversion"
    }


async def test_data_stays_as_it_was_or_is_wrapped(plane: Bus) -> None:
    """JSON is not read and written again; what is no JSON travels in base64; no data is null."""
    structured = {"content-type": "application/cloudevents+json; charset=utf-8"}
    head = json.dumps({**EVENT, "flag": True, "count": 7, "nothing": None})[:-1]
    body = head + ', "data": {"a" :1.0, "big":123456789012345678901234567890}}'
    assert (await plane.client.post("/topics/orders/publish", content=body, headers=structured)).status_code == 201
    binary = {f"ce-{name}": value.replace("ü", "%C3%BC") for name, value in EVENT.items()}
    await plane.client.post(
        "/topics/orders/publish",
        content=b"\xff\x00",
        headers={**binary, "ce-id": "e-2", "content-type": "application/octet-stream"},
    )
    await plane.client.post(
        "/topics/orders/publish",
        content=json.dumps({**EVENT, "id": "e-3", "data_base64": "/wA="}),
        headers=structured,
    )
    await plane.client.post("/topics/orders/publish", headers={**binary, "ce-id": "e-4"})
    rows = await plane.db.fetch("SELECT payload::text AS payload, attributes FROM event_messages ORDER BY sequence")
    assert [row["payload"] for row in rows] == [
        '{"a" :1.0, "big":123456789012345678901234567890}',
        '{"b64":"/wA="}',
        '{"b64":"/wA="}',
        "null",
    ]
    assert rows[0]["attributes"] == {
        "id": "e-1",
        "source": "/shop/ü",
        "type": "order.placed",
        "subject": "customer-7",
        "time": "2026-01-31T03:00:00.000Z",
        "flag": "true",
        "count": "7",
    }
    assert rows[1]["attributes"]["source"] == "/shop/ü"


async def test_a_batch_is_all_or_nothing(plane: Bus) -> None:
    batch = {"content-type": "application/cloudevents-batch+json"}
    good = [{**EVENT, "id": str(n), "data": n} for n in range(3)]
    answer = await plane.client.post("/topics/orders/publish-batch", content=json.dumps(good), headers=batch)
    assert answer.status_code == 201
    assert [told["sequence"] for told in answer.json()["messages"]] == [1, 2, 3]
    bad = json.dumps([{**EVENT, "id": "9"}, {**EVENT, "type": ""}])
    answer = await plane.client.post("/topics/orders/publish-batch", content=bad, headers=batch)
    assert (answer.status_code, fields(answer.json())) == (400, ["1.type"])
    single = await plane.client.post("/topics/orders/publish", content=json.dumps(good), headers=batch)
    assert single.status_code == 415
    assert await plane.payloads() == [0, 1, 2]


MALFORMED: list[tuple[dict[str, Any], str]] = [
    ({"id": None}, "id"),
    ({"source": ""}, "source"),
    ({"type": 7}, "type"),
    ({"specversion": "0.3"}, "specversion"),
    ({"time": "yesterday"}, "time"),
    ({"time": "2026-01-31T03:00:00"}, "time"),
    ({"Upper": "x"}, "Upper"),
    ({"list": [1]}, "list"),
    ({"data": 1, "data_base64": "/wA="}, "data_base64"),
    ({"data_base64": "?"}, "data_base64"),
]


async def test_malformed_events_are_refused_naming_the_attribute(plane: Bus) -> None:
    headers = {"content-type": "application/cloudevents+json"}
    for change, field in MALFORMED:
        event = json.dumps({**EVENT, **change})
        answer = await plane.client.post("/topics/orders/publish", content=event, headers=headers)
        assert answer.status_code == 400, (change, answer.text)
        assert fields(answer.json()) == [field], answer.text
    binary = {f"ce-{name}": value for name, value in EVENT.items() if name != "source"}
    missing = await plane.client.post("/topics/orders/publish", content=b"1", headers=binary)
    assert (missing.status_code, fields(missing.json())) == (400, ["source"])
    late = {**binary, "ce-source": "/s", "ce-time": "late"}
    timed = await plane.client.post("/topics/orders/publish", content=b"1", headers=late)
    assert (timed.status_code, fields(timed.json())) == (400, ["time"])
    body = {**binary, "ce-source": "/s", "content-type": "application/json"}
    broken = await plane.client.post("/topics/orders/publish", content=b"{", headers=body)
    assert (broken.status_code, broken.json()["code"]) == (400, "bad_payload")
    assert await plane.payloads() == []
