"""Order, speed and company: keys in sequence, batches, limits, and what a slow subscriber costs the others."""

import asyncio
import random
import time
from collections import defaultdict

import pytest

from nova import payload
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.errors import FunctionError
from nova.events.bus.dispatch_attempts import Attempts
from nova.events.bus.dispatch_items import Item
from nova.store.db import Database
from tests.events.bus.dispatching import data, dispatching, subscription
from tests.events.bus.topics import message, topic
from tests.events.support import Calls, result

pytestmark = pytest.mark.anyio
BROKEN = FunctionError("ValueError", "no")


async def test_one_key_runs_one_at_a_time_in_order_also_when_attempts_fail(database: Database) -> None:
    """EV9: a retry holds its successors and nobody else's."""
    made = await subscription(database, await topic(database), max_inflight=64, max_attempts=20, backoff_base_ms=5)
    chance = random.Random(7)
    done: dict[str, list[int]] = defaultdict(list)
    running: set[str] = set()

    async def script(call: CallRequest) -> CallResult:
        key, number = data(call)
        assert key not in running
        running.add(key)
        await asyncio.sleep(0)
        running.discard(key)
        if chance.random() < 0.1:
            return result(call, error=BROKEN)
        done[key].append(number)
        return result(call)

    async with dispatching(database, Calls(script)) as bus:
        for number in range(10):
            batch = [message(payload.encode([f"k{k}", number]), ordering_key=f"k{k}") for k in range(50)]
            await bus.publisher.publish(Scope(), "orders", batch, caller="key:test")
        await bus.settled(made, 500, "succeeded")
    assert done == {f"k{k}": list(range(10)) for k in range(50)}


async def test_a_dead_message_holds_its_successors_only_when_it_is_asked_to(database: Database) -> None:
    """EV9: on_dlq; and with ordered=false keys mean nothing."""
    topic_id = await topic(database)
    goes_on = await subscription(database, topic_id, "goes on", target="go", max_attempts=1)
    blocks = await subscription(database, topic_id, "blocks", target="block", max_attempts=1, on_dlq="block")
    loose = await subscription(
        database, topic_id, "loose", target="loose", ordered=False, on_dlq="block", max_attempts=1
    )
    broken = True

    async def script(call: CallRequest) -> CallResult:
        return result(call, error=BROKEN if data(call) == 0 and broken else None)

    async with dispatching(database, Calls(script)) as bus:
        await bus.publish(0, 1, 2, ordering_key="a")
        await bus.publish(3, ordering_key="b")
        for made in (goes_on, loose):
            assert [row.status for row in await bus.settled(made, 4)] == ["dlq", *["succeeded"] * 3]
        ended = await bus.settled(blocks, 2)
        assert [(row.sequence, row.status) for row in ended] == [(1, "dlq"), (4, "succeeded")]
    # a successor knows of it too
    async with dispatching(database, Calls(script)) as bus:
        await bus.publish(4, ordering_key="a")
        await bus.publish(5, ordering_key="b")
        await bus.settled(blocks, 3)
        assert sorted((call.function, data(call)) for call in bus.calls.seen if call.function == "block") == [
            ("block", 5)
        ]
        broken = False
        await database.run("UPDATE event_deliveries SET status = 'queued', attempts = 0, next_run_at = now(), ended_at = NULL"
                           " WHERE subscription_id = %(id)s AND sequence = 1", id=blocks)  # fmt: skip
        bus.listener.deliver("nova_subscriptions", blocks)
        await bus.settled(blocks, 6, "succeeded")
        order = [data(call) for call in bus.calls.seen if call.function == "block"]
    assert order == [5, 0, 1, 2, 4]


async def test_batches_fill_within_their_window_and_only_what_failed_comes_again(database: Database) -> None:
    made = await subscription(
        database, await topic(database), batch_size=4, batch_window_ms=800, max_inflight=1, max_attempts=2
    )
    batches: list[list[int]] = []

    async def script(call: CallRequest) -> CallResult:
        events = payload.decode(call.payload)
        batches.append([event["data"] for event in events])
        failed = [
            {"itemIdentifier": event["id"]} for event in events if event["data"] == 2 and event["novaattempt"] == 1
        ]
        return result(call, payload.encode({"batchItemFailures": failed}))

    async with dispatching(database, Calls(script)) as bus:
        began = time.monotonic()
        await bus.publish(0, 1, 2, 3, 4)
        rows = await bus.settled(made, 5, "succeeded")
        took = time.monotonic() - began
    assert sorted(batches[0]) == [0, 1, 2, 3]
    assert sorted(batches[1]) == [2, 4]
    assert took >= 0.8
    assert [row.attempts for row in rows] == [1, 1, 2, 1, 1]


async def test_a_batch_has_one_message_of_a_key_and_a_wrong_answer_fails_it_all(database: Database) -> None:
    made = await subscription(database, await topic(database), batch_size=10, max_attempts=1)

    async def script(call: CallRequest) -> CallResult:
        return result(call, b'{"batchItemFailures":[{"itemIdentifier":"nobody"}]}')

    async with dispatching(database, Calls(script)) as bus:
        await bus.publish(0, 1, 2, ordering_key="a")
        rows = await bus.settled(made, 3)
        assert [len(payload.decode(call.payload)) for call in bus.calls.seen] == [1, 1, 1]
    assert {(row.status, "itemIdentifier" in (row.error or "")) for row in rows} == {("dlq", True)}


async def test_max_inflight_and_the_rate_hold(database: Database) -> None:
    """EV8."""
    topic_id = await topic(database)
    narrow = await subscription(database, topic_id, "narrow", target="narrow", max_inflight=3)
    paced = await subscription(database, topic_id, "paced", target="paced", rate_limit_per_sec=50)
    running: dict[str, int] = defaultdict(int)
    most: dict[str, int] = defaultdict(int)

    async def script(call: CallRequest) -> CallResult:
        running[call.function] += 1
        most[call.function] = max(most[call.function], running[call.function])
        await asyncio.sleep(0.005)
        running[call.function] -= 1
        return result(call)

    async with dispatching(database, Calls(script)) as bus:
        await bus.until(lambda: len(bus.dispatcher.serving) == 2)
        began = time.monotonic()
        await bus.publish(*range(30))
        await bus.settled(narrow, 30)
        await bus.settled(paced, 30)
        took = time.monotonic() - began
    assert most["narrow"] == 3
    assert took >= 29 / 50 - 0.03


async def test_a_subscriber_that_hangs_delays_no_other(database: Database) -> None:
    """EV8: also when it lets thousands of messages wait."""
    topic_id = await topic(database)
    await subscription(database, topic_id, "hangs", target="hangs", max_inflight=5)
    quick = await subscription(database, topic_id, "quick", target="quick")
    forever = asyncio.Event()
    hanging = most = 0

    async def script(call: CallRequest) -> CallResult:
        nonlocal hanging, most
        if call.function == "hangs":
            hanging += 1
            most = max(most, hanging)
            try:
                await forever.wait()
            finally:
                hanging -= 1
        return result(call)

    async with dispatching(database, Calls(script)) as bus:
        for _ in range(4):
            await bus.publish(*range(500))
        await bus.settled(quick, 2000)
        assert most == 5
        forever.set()


async def test_a_row_waits_for_messages_of_its_key_that_are_not_read_yet(database: Database) -> None:
    """EV9: whoever was killed may have written of a later message and not of the earlier ones."""
    made = await subscription(database, await topic(database), enabled=False)
    async with dispatching(database) as bus:
        await bus.publish(1, 2, 3, 4, ordering_key="a")
        await database.run(
            "INSERT INTO event_deliveries (subscription_id, sequence, generation, tenant_id, namespace, topic_id, status,"
            " attempts, replay, ordering_key, next_run_at) SELECT id, 3, 0, tenant_id, namespace, topic_id, 'queued', 1,"
            " false, 'a', now() FROM event_subscriptions"
        )
        await database.run("UPDATE event_subscriptions SET enabled = true, epoch = epoch + 1")
        bus.listener.deliver("nova_subscriptions", made)
        rows = await bus.settled(made, 4, "succeeded")
    assert [data(call) for call in bus.calls.seen] == [1, 2, 3, 4]
    assert [row.attempts for row in rows] == [1, 1, 2, 1]


async def test_nothing_is_delivered_by_who_lost_its_subscription_while_it_wrote_that_it_would(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EV9: another process may be several messages further by then."""
    made = await subscription(database, await topic(database), enabled=False)
    count, lost = Attempts._count, 0

    async def count_and_lose(attempts: Attempts, item: Item) -> bool:
        nonlocal lost
        counted = await count(attempts, item)
        if not lost:
            lost = len(bus.calls.seen) + 1
            attempts._fence.lose()  # as it is after a standstill
        return counted

    monkeypatch.setattr(Attempts, "_count", count_and_lose)
    async with dispatching(database) as bus:
        await bus.publish(1, 2, ordering_key="a")
        await database.run(
            "INSERT INTO event_deliveries (subscription_id, sequence, generation, tenant_id, namespace, topic_id, status,"
            " attempts, replay, ordering_key, next_run_at) SELECT id, 1, 0, tenant_id, namespace, topic_id, 'queued', 1,"
            " false, 'a', now() FROM event_subscriptions"
        )
        await database.run("UPDATE event_subscriptions SET enabled = true, epoch = epoch + 1")
        bus.listener.deliver("nova_subscriptions", made)
        rows = await bus.settled(made, 2, "succeeded")
    assert lost == 1
    assert [data(call) for call in bus.calls.seen] == [1, 2]
    assert [row.attempts for row in rows] == [3, 1], "the attempt that was counted and not begun counts"
