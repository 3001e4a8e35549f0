"""NATS as a source: streams of JetStream, and subjects without one."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import NotFoundError
from pydantic import ValidationError

from nova.events.triggers import nats as nats_source
from nova.events.triggers.base import Source, SourceError, SourceEvent
from nova.ids import new_id
from tests.events.triggers import brokers
from tests.events.triggers.sources import Kept, made, running

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(nats_broker: brokers.Nats) -> AsyncIterator[Client]:
    """With a stream ORDERS of its own."""
    client = await nats.connect(nats_broker.url, allow_reconnect=False)
    streams = client.jetstream()
    try:
        await streams.delete_stream("ORDERS")
    except NotFoundError:
        pass
    await streams.add_stream(name="ORDERS", subjects=["orders.*"])
    yield client
    await client.close()


def source(broker: brokers.Nats, **more: Any) -> Source:
    base = {"servers": [broker.url], "subject": "orders.*", "stream": "ORDERS", "durable": "d", "start": "earliest"}
    return made(nats_source, **(base | more))


async def publish(client: Client, *numbers: int) -> None:
    streams = client.jetstream()
    for n in numbers:
        await streams.publish("orders.new", str(n).encode())


async def until_acknowledged(client: Client) -> None:
    async with asyncio.timeout(10):
        while True:
            info = await client.jetstream().consumer_info("ORDERS", "d")
            if not info.num_ack_pending and not info.num_pending:
                return
            await asyncio.sleep(0.01)


async def test_messages_of_a_stream_are_delivered_and_acknowledged(nats_broker: brokers.Nats, client: Client) -> None:
    """What stood in it before, what comes later, an empty one, one that looks like a status."""
    streams = client.jetstream()
    await publish(client, 1)
    sink, this = Kept(), source(nats_broker)
    async with running(lambda: this, sink):
        await sink.have(1)
        await streams.publish("orders.old", b"\xff", headers={"X-Kind": "a"})
        await streams.publish("orders.old", b"", headers={"Status": "408"})
        await sink.have(3)
        await until_acknowledged(client)
        assert await this.lag() == 0
    first, second, third = sink.data
    assert first == {"subject": "orders.new", "sequence": 1, "body": 1, "headers": {}}
    assert second == {"subject": "orders.old", "sequence": 2, "body": {"b64": "/w=="}, "headers": {"X-Kind": "a"}}
    assert third["body"] is None
    event = sink.events[0]
    assert event.type == "nova.trigger.nats"
    assert event.id.startswith("ORDERS-1-")
    assert not event.redelivered


async def test_a_new_consumer_begins_with_what_comes_next_unless_told(
    nats_broker: brokers.Nats, client: Client
) -> None:
    await publish(client, 1)
    sink = Kept()
    async with running(lambda: source(nats_broker, start=None), sink):
        await publish(client, 2)
        await sink.have(1)
    assert sink.bodies() == {2}


async def test_no_more_than_the_window_and_again_what_was_not_acknowledged(
    nats_broker: brokers.Nats, client: Client
) -> None:
    async def stuck(event: SourceEvent) -> None:
        await asyncio.Event().wait()

    await client.jetstream().add_consumer("ORDERS", durable_name="d", ack_policy="explicit", ack_wait=1)
    await publish(client, *range(5))
    first = Kept(stuck)
    async with running(lambda: source(nats_broker, window=3), first):
        await first.until(lambda: first.at_once == 3)
        assert (await client.jetstream().consumer_info("ORDERS", "d")).num_ack_pending == 3
        assert await source(nats_broker).lag() is None, "it does not run"
    second = Kept()
    async with running(lambda: source(nats_broker, window=3), second):
        await second.have(5)
        await until_acknowledged(client)
    assert second.bodies() == set(range(5))
    assert sum(event.redelivered for event in second.events) == 3


async def test_a_delivery_may_take_longer_than_the_consumer_waits(nats_broker: brokers.Nats, client: Client) -> None:
    async def slow(event: SourceEvent) -> None:
        await asyncio.sleep(1.5)

    await client.jetstream().add_consumer("ORDERS", durable_name="d", ack_policy="explicit", ack_wait=0.6)
    sink = Kept(slow)
    async with running(lambda: source(nats_broker), sink):
        await publish(client, 1)
        await sink.have(1)
        await until_acknowledged(client)
    assert len(sink.events) == 1


async def test_a_subject_without_a_stream(nats_broker: brokers.Nats, client: Client) -> None:
    """Whoever shares the queue group takes its part; without one everybody gets everything."""
    alone, left, right = Kept(), Kept(), Kept()
    plain = {"stream": None, "durable": None, "start": None, "subject": "live.>"}
    async with (
        running(lambda: source(nats_broker, **plain), alone),
        running(lambda: source(nats_broker, **plain, queue_group="g"), left),
        running(lambda: source(nats_broker, **plain, queue_group="g"), right),
    ):
        for n in range(50):
            await client.publish("live.a.b", str(n).encode())
        await client.flush()
        await alone.have(50)
        await left.until(lambda: len(left.events) + len(right.events) >= 50)
    assert alone.bodies() == left.bodies() | right.bodies() == set(range(50))
    assert not left.bodies() & right.bodies()
    assert alone.data[0] == {"subject": "live.a.b", "sequence": None, "body": 0, "headers": {}}


async def test_nothing_is_lost_when_the_broker_is_killed(nats_broker: brokers.Nats, client: Client) -> None:
    """... and while it is away the source says so."""
    await publish(client, *range(500))

    async def handle(event: SourceEvent) -> None:
        if len(sink.events) == 200:
            nats_broker.kill()

    sink = Kept(handle)
    async with running(lambda: source(nats_broker), sink):
        await sink.until(lambda: bool(sink.errors))
        nats_broker.start()
        await sink.until(lambda: sink.bodies() == set(range(500)))
    assert sink.terms == 2


async def test_a_consumer_that_is_deleted_is_an_error(nats_broker: brokers.Nats, client: Client) -> None:
    """The next start makes it again."""
    sink = Kept()
    async with running(lambda: source(nats_broker), sink):
        await publish(client, 1)
        await sink.have(1)  # so that the broker has been asked for more
        await client.jetstream().delete_consumer("ORDERS", "d")
        await sink.until(lambda: sink.terms == 2)
        await publish(client, 2)
        await sink.have(2)
    assert "Consumer Deleted" in sink.errors[0]


async def test_bad_configurations_and_servers_are_named(nats_broker: brokers.Nats) -> None:
    bad: list[tuple[str, dict[str, object]]] = [
        ("servers", {"servers": []}),
        ("servers", {"servers": ["http://h"]}),
        ("servers", {"servers": ["nats://h/x"]}),
        ("stream", {"stream": "a.b"}),
        ("durable", {"stream": None}),
        ("queue_group", {"queue_group": "g"}),
        ("subject", {"subject": "a b"}),
    ]
    for name, wrong in bad:
        with pytest.raises(ValidationError, match=name):
            source(nats_broker, **wrong)
    dead = "nats://127.0.0.1:1"
    stream = f"S{new_id()}"
    with pytest.raises(SourceError, match="stream not found"):
        await source(nats_broker, servers=[dead, nats_broker.url], stream=stream).check()
    with pytest.raises(SourceError, match="failed"):
        await source(nats_broker, servers=[dead]).check()
    with pytest.raises(SourceError, match="Authorization") as error:
        await source(nats_broker, servers=[f"nats://nova:wr0ng@127.0.0.1:{nats_broker.port}"]).check()
    assert "wr0ng" not in str(error.value)
