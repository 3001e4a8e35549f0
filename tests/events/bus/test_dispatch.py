"""Delivering from memory: what reaches the target, what is retried, what is dead, and what it costs the others."""

import time
from itertools import pairwise

import pytest

from nova import payload
from nova.domain.call import CallRequest, CallResult
from nova.errors import FunctionError, NovaError
from nova.events.bus import dispatch
from nova.store.db import Database
from tests.events.bus.dispatching import data, dispatching, subscription
from tests.events.bus.topics import topic
from tests.events.support import Calls, failing, result

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


async def test_pauses_grow_up_to_their_maximum(database: Database) -> None:
    """EV4."""
    made = await subscription(database, await topic(database), max_attempts=4, backoff_base_ms=80, backoff_max_ms=160)
    times: list[float] = []

    async def script(call: CallRequest) -> CallResult:
        times.append(time.monotonic())
        return result(call, error=BROKEN)

    async with dispatching(database, Calls(script)) as bus:
        await bus.publish(1)
        await bus.settled(made, 1)
    first, second, third = (after - before for before, after in pairwise(times))
    assert 0.06 <= first < second
    assert 0.12 <= second < 2
    assert 0.12 <= third < 2


async def test_the_version_and_the_time_that_it_may_take_reach_the_call(database: Database) -> None:
    made = await subscription(database, await topic(database), qualifier="7", timeout_s=2.5)
    async with dispatching(database) as bus:
        await bus.publish(1)
        await bus.settled(made, 1)
    assert [(call.qualifier, call.timeout_ms) for call in bus.calls.seen] == [("7", 2500)]


async def test_two_processes_share_the_work_and_one_takes_it_over(database: Database) -> None:
    """Whoever leaves in good order is followed at once, and nobody is careful."""
    topic_id = await topic(database)
    made = [await subscription(database, topic_id, f"s{n}", shard=n) for n in range(4)]
    async with dispatching(database) as first:
        await first.until(lambda: first.dispatcher.serving.keys() == set(made))
        async with dispatching(database) as second:
            await first.publish(1)
            for one in made:
                await first.settled(one, 1)
            assert not second.calls.seen
            await first.dispatcher.close()
            await second.until(lambda: second.dispatcher.serving.keys() == set(made))
            await first.publish(2)
            for one in made:
                rows = await second.settled(one, 2)
                assert [row.attempts for row in rows] == [1, 1]
    assert [data(call) for call in second.calls.seen] == [2] * 4


async def test_messages_that_retention_removed_first_are_counted(database: Database) -> None:
    topic_id = await topic(database)
    made = await subscription(database, topic_id, enabled=False)
    async with dispatching(database) as bus:
        await bus.publish(*range(5))
        await database.run("UPDATE event_heads SET first_sequence = 4")
        await database.run("UPDATE event_subscriptions SET enabled = true, epoch = epoch + 1")
        bus.listener.deliver("nova_subscriptions", made)
        await bus.settled(made, 2)
    assert sorted(data(call) for call in bus.calls.seen) == [3, 4]
    assert await database.one("SELECT cursor, expired FROM event_subscriptions") == {"cursor": 5, "expired": 3}


async def test_what_cannot_be_recorded_is_not_delivered_again_and_again(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands still, and goes on when there is somewhere to write again."""
    monkeypatch.setattr(dispatch, "_BROKEN_S", 0.5)
    made = await subscription(database, await topic(database), max_attempts=50)
    async with dispatching(database) as bus:
        await bus.noticed()
        await database.run("ALTER TABLE event_deliveries ADD CONSTRAINT refused CHECK (status <> 'succeeded')")
        await bus.publish(*range(20))
        await bus.until(lambda: len(bus.calls.seen) > 20)
        assert len(bus.calls.seen) <= 40
        await database.run("ALTER TABLE event_deliveries DROP CONSTRAINT refused")
        rows = await bus.settled(made, 20)
    assert {row.status for row in rows} == {"succeeded"}
