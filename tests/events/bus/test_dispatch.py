"""Delivering from memory: what reaches the target, what is retried, what is dead, and what it costs the others."""

import pytest

from nova import payload
from nova.errors import FunctionError, NovaError
from nova.store.db import Database
from tests.events.bus.dispatching import data, dispatching, subscription
from tests.events.bus.topics import topic
from tests.events.support import Calls, failing

pytestmark = pytest.mark.anyio
BROKEN = FunctionError("ValueError", "no")


async def test_a_message_reaches_its_function_as_an_event(database: Database) -> None:
    made = await subscription(database, await topic(database), "mail")
    async with dispatching(database) as bus:
        await bus.publish({"order": 1}, ordering_key="eu", headers={"a": "b"}, type="order.made", source="/shop")
        (row,) = await bus.settled(made, 1)
    (call,) = bus.calls.seen
    event = payload.decode(call.payload)
    assert event["data"] == {"order": 1}
    assert (event["type"], event["source"], event["partitionkey"], event["sequence"]) == (
        "order.made",
        "/shop",
        "eu",
        "1",
    )
    assert (event["novasubscription"], event["novaattempt"], event["novadelivery"]) == ("mail", 1, row.id)
    assert payload.decode(event["novaheaders"]) == {"a": "b"}
    assert (call.function, call.trigger, call.identity.subject) == ("f", "event", "key:test")
    assert (row.status, row.attempts, row.request_id, row.ordering_key) == ("succeeded", 1, call.request_id, "eu")


async def test_three_attempts_are_three_executions_and_then_it_is_dead(database: Database) -> None:
    made = await subscription(database, await topic(database), max_attempts=3)
    async with dispatching(database, Calls(failing(BROKEN, BROKEN, BROKEN))) as bus:
        await bus.publish(1)
        (row,) = await bus.settled(made, 1)
    assert len(bus.calls.seen) == 3
    assert [call.attempt for call in bus.calls.seen] == [1, 2, 3]
    assert (row.status, row.attempts, row.error) == ("dlq", 3, "ValueError: no")
    assert [entry["no"] for entry in row.history] == [1, 2, 3]


async def test_a_target_that_is_busy_costs_no_attempt_and_one_that_is_not_there_no_time(database: Database) -> None:
    made = await subscription(database, await topic(database), max_attempts=1)
    busy, gone = NovaError("inflight_limit", "busy", retry_after_s=0), NovaError("not_found", "no function")
    async with dispatching(database, Calls(failing(busy, gone))) as bus:
        await bus.publish(1)
        (row,) = await bus.settled(made, 1)
    assert (row.status, row.attempts, len(bus.calls.seen)) == ("dlq", 1, 2)
    assert "no function" in (row.error or "")


async def test_everything_is_delivered_once_and_the_cursor_follows(database: Database) -> None:
    made = await subscription(database, await topic(database))
    async with dispatching(database) as bus:
        for start in range(0, 2000, 500):
            await bus.publish(*range(start, start + 500))
        await bus.settled(made, 2000)
    assert sorted(data(call) for call in bus.calls.seen) == list(range(2000))
    row = await database.one("SELECT cursor, in_charge FROM event_subscriptions")
    assert row == {"cursor": 2000, "in_charge": None}
