"""Circles of topics and functions: what leads to what is counted, and it ends."""

import pytest
from msgspec.structs import replace

from nova import payload
from nova.domain.call import AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.message import HOPS, counted, hops_of
from nova.errors import NovaError
from nova.events.bus.publish import TopicPublisher
from nova.rpc import nova_pb2 as pb
from nova.rpc.messages import read_request, write_request
from nova.store import messages
from nova.store.db import Database
from nova.work.notices import Notices
from tests.events.bus.dispatching import Delivered, dispatching, subscription
from tests.events.bus.topics import message, topic
from tests.events.support import IDENTITY, Calls, nebula, result
from tests.events.support import function as function_row

pytestmark = pytest.mark.anyio


async def test_a_message_that_too_many_others_led_to_is_refused(database: Database) -> None:
    topic_id = await topic(database)
    publisher = TopicPublisher(database, Notices(database), max_hops=lambda: 3)
    await publisher.publish(Scope(), "orders", [message(extensions=counted({}, 3))], caller="key:test")
    with pytest.raises(NovaError, match="3 times") as refused:
        await publisher.publish(Scope(), "orders", [message(), message(extensions=counted({}, 4))], caller="key:test")
    assert refused.value.code == "recursion"
    for what in ("", "-1", "1.5", "9" * 30, "١"):
        with pytest.raises(NovaError) as malformed:
            await publisher.publish(Scope(), "orders", [message(extensions={HOPS: what})], caller="key:test")
        assert [error.field for error in malformed.value.errors] == [HOPS]
    await publisher.close()
    assert [hops_of(row.attributes) for row in await messages.read_after(database, topic_id, 0, 10)] == [3]


async def test_a_function_that_publishes_to_its_own_topic_goes_round_so_often_and_no_further(
    database: Database,
) -> None:
    """In batches too, and through the topic of dead letters: each round counts one."""
    topic_id = await topic(database)
    bus: Delivered

    async def again(call: CallRequest) -> CallResult:
        event = payload.decode(call.payload)
        data = payload.encode((event[0] if isinstance(event, list) else event)["data"])
        sent = message(data, extensions=counted({}, call.hops))
        await bus.publisher.publish(Scope(), "orders", [sent], caller="function:f")
        return result(call)

    calls = Calls(again)
    async with dispatching(database, calls) as bus:
        made = await subscription(database, topic_id, batch_size=10, max_attempts=5)
        await bus.noticed()
        await bus.publish({"n": 1})
        (dead,) = await bus.settled(made, 1, "dlq")
        assert (dead.sequence, dead.attempts, "16 times" in (dead.error or "")) == (17, 1, True)
    assert [call.hops for call in calls.seen] == list(range(1, 18))


async def test_a_topic_of_dead_letters_that_leads_back_to_itself_ends(database: Database) -> None:
    topic_id = await topic(database)

    async def fails(call: CallRequest) -> CallResult:
        raise NovaError("bad_payload", "no")

    async with dispatching(database, Calls(fails)) as bus:
        made = await subscription(database, topic_id, dead_letter_topic="orders")
        await bus.noticed()
        await bus.publish(1)
        dead = await bus.settled(made, 17, "dlq")
    assert len(dead) == 17
    assert [row.sequence for row in dead if "refused it: recursion" in (row.error or "")] == [17]


async def test_jobs_and_calls_between_processes_carry_the_count(database: Database) -> None:
    await function_row(database)
    async with nebula(database) as plane:
        call = CallRequest("r", Scope(), "f", b"{}", IDENTITY, 0.0, hops=5)
        told = pb.InvokeRequest()
        write_request(told, replace(call, request_id=""), 0)
        there = read_request(told, IDENTITY, Scope(), None, now=0.0, limit=100)
        assert there.hops == 5
        accepted = await plane.queue.accept(there, AsyncOptions())
        await plane.ended(accepted.invocation_id)
        assert [seen.hops for seen in plane.calls.seen] == [5]
