"""The outbox: what waits becomes a message once, in order, whoever dies; what is taken back never does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from nova.events.bus.outbox import Relay
from nova.service import Background
from nova.store.bus_outbox import BusOutboxStore
from nova.store.db import Database
from nova.work.queue import LeaseLost
from tests.control.support import fields, problem
from tests.events.bus.topics import Bus, bus
from tests.scheduling.support import Held

pytestmark = pytest.mark.anyio


@pytest.fixture
async def plane(database: Database) -> AsyncIterator[Bus]:
    async with bus(database) as running:
        await running.topic()
        yield running


@asynccontextmanager
async def relaying(plane: Bus) -> AsyncIterator[None]:
    tasks = Background("test")
    task = tasks.spawn("lead", Relay(plane.db, plane.notices, plane.listener).lead(Held()))
    try:
        yield
        assert not task.done(), "the duty ended"
    finally:
        await tasks.close()


async def _status(plane: Bus, row: str, wanted: str) -> None:
    async with asyncio.timeout(10):
        while (await plane.get(f"/outbox/{row}"))["status"] != wanted:
            await asyncio.sleep(0.01)


async def test_delayed_messages_come_in_the_order_of_their_times(plane: Bus) -> None:
    async with relaying(plane):
        later = await plane.publish("later", delay_s=0.4)
        soon = await plane.publish("soon", delay_s=0.1)
        assert later["sequence"] is None
        batch = {"messages": [{"payload": "now"}, {"payload": "last", "delay_s": 0.5}]}
        answer = await plane.client.post("/topics/orders/publish-batch", json=batch)
        assert [told["sequence"] for told in answer.json()["messages"]] == [1, None]
        await _status(plane, answer.json()["messages"][1]["id"], "published")
        assert await plane.payloads() == ["now", "soon", "later", "last"]
        row = await plane.get(f"/outbox/{later['id']}")
        assert (row["sequence"], row["payload"], row["duplicate"]) == (3, None, False)
        shown = await plane.get("/topics/orders/messages/2")
        assert shown["id"] == soon["id"]


async def test_what_is_held_waits_for_its_release(plane: Bus) -> None:
    async with relaying(plane):
        held = (await plane.client.post("/topics/orders/outbox", json={"payload": 1, "hold": True})).json()
        gone = (await plane.client.post("/topics/orders/outbox", json={"payload": 2, "hold": True})).json()
        times = {"not_before": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}
        timed = (await plane.client.post("/topics/orders/outbox", json={"payload": 3, **times})).json()
        plain = (await plane.client.post("/topics/orders/outbox", json={"payload": 4})).json()
        assert (held["status"], timed["status"]) == ("held", "pending")
        await _status(plane, plain["id"], "published")
        assert (await plane.client.delete(f"/outbox/{gone['id']}")).status_code == 204
        problem(await plane.client.post(f"/outbox/{gone['id']}/release"), 404, "not_found")
        released = await plane.client.post(f"/outbox/{held['id']}/release")
        assert released.status_code == 202
        await _status(plane, held["id"], "published")
        problem(await plane.client.post(f"/outbox/{held['id']}/release"), 409, "invalid_state")
        problem(await plane.client.delete(f"/outbox/{held['id']}"), 409, "invalid_state")
        assert await plane.payloads() == [4, 1]
    listed = await plane.get("/topics/orders/outbox?limit=2")
    assert [row["id"] for row in listed["items"]] == [plain["id"], timed["id"]]
    rest = await plane.get(f"/topics/orders/outbox?limit=2&cursor={listed['next_cursor']}")
    assert [row["id"] for row in rest["items"]] == [held["id"]]
    assert [row["id"] for row in (await plane.get("/topics/orders/outbox?status=pending"))["items"]] == [timed["id"]]
    both = await plane.client.post("/topics/orders/outbox", json={"payload": 1, "delay_s": 1, **times})
    assert (both.status_code, fields(both.json())) == (400, ["not_before"])


async def test_a_row_is_published_once_whoever_dies(plane: Bus) -> None:
    """Two relays at once, one that has lost its duty, and a row that repeats a message."""
    for number in range(40):
        await plane.client.post("/topics/orders/outbox", json={"payload": number, "dedup_id": str(number // 2)})
    relays = [Relay(plane.db, plane.notices, plane.listener) for _ in range(3)]
    with pytest.raises(LeaseLost):
        await relays[2].relay(Held(lost=True))
    await asyncio.gather(*(relay.relay(Held()) for relay in relays for _ in range(3)))
    assert await plane.payloads() == list(range(0, 40, 2))
    rows = (await plane.get("/topics/orders/outbox"))["items"]
    assert sum(row["duplicate"] for row in rows) == 20
    assert all(row["status"] == "published" for row in rows)
    assert await BusOutboxStore(plane.db).delete_published(datetime.now(UTC) + timedelta(hours=1), 30) == 30
    assert (await plane.client.delete("/topics/orders")).status_code == 204
    assert await plane.db.fetch("SELECT id FROM bus_outbox") == []
