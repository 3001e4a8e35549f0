"""RabbitMQ as a source: a real node."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from pydantic import ValidationError

from nova.events.triggers import rabbitmq
from nova.events.triggers.base import Source, SourceError, SourceEvent
from tests.events.triggers import brokers
from tests.events.triggers.sources import Kept, made, running

pytestmark = pytest.mark.anyio


@pytest.fixture
async def channel(rabbit_broker: brokers.RabbitMQ) -> AsyncIterator[AbstractChannel]:
    async with await aio_pika.connect(rabbit_broker.url) as connection:
        yield await connection.channel()


@pytest.fixture
def queue() -> str:
    return f"q-{uuid.uuid4().hex}"


def source(broker: brokers.RabbitMQ, queue: str, **more: Any) -> Source:
    return made(rabbitmq, **({"url": broker.url, "queue": queue, "declare": True} | more))


async def publish(channel: AbstractChannel, queue: str, *numbers: int) -> None:
    persistent = aio_pika.DeliveryMode.PERSISTENT
    for n in numbers:
        await channel.default_exchange.publish(aio_pika.Message(str(n).encode(), delivery_mode=persistent), queue)


async def waiting(channel: AbstractChannel, queue: str) -> int:
    found = await channel.declare_queue(queue, passive=True)
    return found.declaration_result.message_count or 0


async def test_messages_are_delivered_and_acknowledged(
    rabbit_broker: brokers.RabbitMQ, channel: AbstractChannel, queue: str
) -> None:
    """The queue is made; what a message says of itself arrives."""
    sink = Kept()
    async with running(lambda: source(rabbit_broker, queue), sink):
        message = aio_pika.Message(
            b'{"n": 1}',
            headers={"kind": "a", "raw": bytearray(b"\xff"), "deep": {"x": [1, True, None]}},
            message_id="m-1",
            timestamp=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        await channel.default_exchange.publish(message, queue)
        await channel.default_exchange.publish(aio_pika.Message(b"plain"), queue)
        await sink.have(2)
    assert await waiting(channel, queue) == 0
    assert sink.data[0] == {
        "queue": queue,
        "exchange": "",
        "routing_key": queue,
        "redelivered": False,
        "body": {"n": 1},
        "headers": {"kind": "a", "raw": {"b64": "/w=="}, "deep": {"x": [1, True, None]}},
    }
    assert sink.data[1]["body"] == {"b64": "cGxhaW4="}
    first, second = sink.events
    assert (first.id, first.type) == ("m-1", "nova.trigger.rabbitmq")
    assert first.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert second.id not in ("", "m-1")


async def test_a_queue_is_bound_to_an_exchange(
    rabbit_broker: brokers.RabbitMQ, channel: AbstractChannel, queue: str
) -> None:
    exchange = await channel.declare_exchange(f"x-{queue}", aio_pika.ExchangeType.TOPIC, auto_delete=True)
    sink, more = Kept(), {"exchange": exchange.name, "routing_key": "orders.*"}
    async with running(lambda: source(rabbit_broker, queue, **more), sink):
        for key in ("invoices.new", "orders.new"):
            await exchange.publish(aio_pika.Message(b"1"), key)
        await sink.have(1)
    assert sink.data[0]["exchange"] == exchange.name
    assert sink.data[0]["routing_key"] == "orders.new"
    with pytest.raises(SourceError, match="no exchange"):
        await source(rabbit_broker, queue, exchange="missing").run(Kept())


async def test_no_more_than_the_window_and_again_what_was_not_acknowledged(
    rabbit_broker: brokers.RabbitMQ, channel: AbstractChannel, queue: str
) -> None:
    """Also of a queue that somebody made with other properties."""

    async def stuck(event: SourceEvent) -> None:
        await asyncio.Event().wait()

    await channel.declare_queue(queue, arguments={"x-max-length": 100})
    await publish(channel, queue, *range(6))
    first, this = Kept(stuck), source(rabbit_broker, queue, prefetch=3)
    async with running(lambda: this, first):
        await first.until(lambda: first.at_once == 3)
        assert await this.lag() == 3, "those that wait in the queue"
    second = Kept()
    async with running(lambda: made(rabbitmq, window=2, url=rabbit_broker.url, queue=queue), second):
        await second.have(6)
    assert second.bodies() == set(range(6))
    assert [event.redelivered for event in second.events] == [True, True, True, False, False, False]
    assert second.most_at_once <= 2
    assert await waiting(channel, queue) == 0


async def test_a_queue_that_is_deleted_is_an_error(
    rabbit_broker: brokers.RabbitMQ, channel: AbstractChannel, queue: str
) -> None:
    """The next start makes it again."""
    sink = Kept()
    async with running(lambda: source(rabbit_broker, queue), sink):
        await channel.queue_delete(queue)
        await sink.until(lambda: sink.terms == 2)
        await publish(channel, queue, 1)
        await sink.have(1)
    assert "deleted" in sink.errors[0]


async def test_bad_configurations_and_servers_are_named(rabbit_broker: brokers.RabbitMQ, queue: str) -> None:
    for url in ("http://h", "amqp://", "amqps://h?cafile=/etc/passwd"):
        with pytest.raises(ValidationError, match="url"):
            source(rabbit_broker, queue, url=url)
    await source(rabbit_broker, queue).check()
    with pytest.raises(SourceError, match="no queue"):
        await source(rabbit_broker, queue, declare=False).check()
    with pytest.raises(SourceError, match=r"(?i)refused") as error:
        await source(rabbit_broker, queue, url=f"amqp://guest:wr0ng@127.0.0.1:{rabbit_broker.port}/").check()
    assert "wr0ng" not in str(error.value)
    with pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        await source(rabbit_broker, queue, url="amqp://127.0.0.1:1/").check()


async def test_nothing_is_lost_when_the_broker_is_killed(rabbit_broker: brokers.RabbitMQ, queue: str) -> None:
    """... and while it is away the source says so."""
    async with await aio_pika.connect(rabbit_broker.url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True)
        await asyncio.gather(*(publish(channel, queue, n) for n in range(500)))

    async def handle(event: SourceEvent) -> None:
        if len(sink.events) == 200:
            rabbit_broker.kill()

    sink = Kept(handle)
    async with running(lambda: source(rabbit_broker, queue), sink):
        await sink.until(lambda: bool(sink.errors))
        await asyncio.to_thread(rabbit_broker.start)
        await sink.until(lambda: sink.bodies() == set(range(500)))
    assert sink.terms == 2
