"""Processes that join get their share of the subscriptions, and what was under way is neither lost nor overtaken."""

import asyncio
from collections import defaultdict

import pytest

from nova import payload
from nova.domain.call import CallRequest, CallResult
from nova.store.db import Database
from tests.events.bus.dispatching import data, dispatching, subscription
from tests.events.bus.topics import topic
from tests.events.support import Calls, result

pytestmark = pytest.mark.anyio
KEYS = 5
ROUNDS = 20
LIMIT_S = 240


async def test_a_process_that_joins_gets_half_and_what_was_under_way_keeps_its_order(database: Database) -> None:
    topic_id = await topic(database)
    done: dict[tuple[str, str], list[int]] = defaultdict(list)

    async def slow(call: CallRequest) -> CallResult:
        await asyncio.sleep(0.002)
        event, (key, number) = payload.decode(call.payload), data(call)
        done[event["novasubscription"], key].append(number)
        return result(call)

    subscriptions = [await subscription(database, topic_id, f"s{n}", shard=n, max_inflight=5) for n in range(4)]
    other = Database(database.dsn, min_conns=1, max_conns=4)
    await other.start()
    try:
        async with asyncio.timeout(LIMIT_S), dispatching(database, Calls(slow), look_s=0.2) as first:
            while first.dispatcher.in_charge < 4:
                await asyncio.sleep(0.01)
            joined = Calls(slow)
            async with dispatching(other, joined, look_s=0.2) as second:
                number = 0
                while (first.dispatcher.in_charge, second.dispatcher.in_charge) != (2, 2) or number < ROUNDS:
                    for key in range(KEYS):
                        await first.publish([f"k{key}", number], ordering_key=f"k{key}")
                    number += 1
                    await asyncio.sleep(0.02)
                while not joined.seen:  # what is published from now on has two processes to go to
                    await first.publish(["k0", number], ordering_key="k0")
                    number += 1
                    await asyncio.sleep(0.02)
                last = number
                for one in subscriptions:
                    while len(done_of(done, one, subscriptions)) < KEYS or any(
                        len(numbers) < ROUNDS for numbers in done_of(done, one, subscriptions)
                    ):
                        await asyncio.sleep(0.02)
            while first.dispatcher.in_charge < 4:
                await asyncio.sleep(0.01)
            for key in range(KEYS):
                await first.publish([f"k{key}", last], ordering_key=f"k{key}")
            while sum(numbers[-1:] == [last] for numbers in done.values()) < KEYS * len(subscriptions):
                await asyncio.sleep(0.02)
    finally:
        await other.close()
    for numbers in done.values():  # one that lost its lease on a machine that is too busy may repeat the last
        assert numbers == sorted(numbers)
        assert set(numbers) >= {*range(ROUNDS), last}
    rows = await database.fetch("SELECT status, count(*) AS n FROM event_deliveries GROUP BY 1")
    published = await database.one("SELECT last_sequence AS n FROM event_heads")
    assert published is not None
    assert rows == [{"status": "succeeded", "n": published["n"] * len(subscriptions)}]


def done_of(done: dict[tuple[str, str], list[int]], one: str, subscriptions: list[str]) -> list[list[int]]:
    name = f"s{subscriptions.index(one)}"
    return [numbers for (subscription_name, _), numbers in done.items() if subscription_name == name]
