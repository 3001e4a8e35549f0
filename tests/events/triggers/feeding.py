"""Numbers as messages of each broker, each acknowledged by it before this returns; and triggers that take them."""

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

import aio_pika
import aiomqtt
import nats
from redis.asyncio import Redis

from tests.events.triggers import brokers

_AT_ONCE = 500


def config(broker: brokers.Broker, name: str) -> tuple[str, dict[str, Any]]:
    """Type and configuration of a trigger on the stream, queue or topic ``name``."""
    match broker:
        case brokers.Redis():
            return "redis_stream", {"url": broker.url, "stream": name, "group": "nova", "start": "earliest"}
        case brokers.Nats():
            return "nats", {"servers": [broker.url], "subject": name, "stream": name, "start": "earliest"}
        case brokers.Mosquitto():
            return "mqtt", {"url": broker.url, "topic": name}
        case brokers.RabbitMQ():
            return "rabbitmq", {"url": broker.url, "queue": name, "declare": True}
    raise TypeError(type(broker).__name__)


def prepare(broker: brokers.Broker, name: str) -> None:
    """What a trigger does not make by itself."""
    if isinstance(broker, brokers.Nats):
        asyncio.run(_stream(broker, name))


def feed(broker: brokers.Broker, name: str, numbers: Iterable[int]) -> None:
    match broker:
        case brokers.Redis():
            asyncio.run(_redis(broker, name, numbers))
        case brokers.Nats():
            asyncio.run(_nats(broker, name, numbers))
        case brokers.Mosquitto():
            asyncio.run(_mqtt(broker, name, numbers))
        case brokers.RabbitMQ():
            asyncio.run(_rabbit(broker, name, numbers))


def _parts(numbers: Iterable[int]) -> Iterable[list[int]]:
    left = iter(numbers)
    while part := list(islice(left, _AT_ONCE)):
        yield part


async def _redis(broker: brokers.Redis, name: str, numbers: Iterable[int]) -> None:
    async with Redis.from_url(broker.url) as redis:
        for part in _parts(numbers):
            async with redis.pipeline(transaction=False) as commands:
                for n in part:
                    commands.xadd(name, {"n": str(n)})
                await commands.execute()


async def _stream(broker: brokers.Nats, name: str) -> None:
    client = await nats.connect(broker.url)
    await client.jetstream().add_stream(name=name, subjects=[name])
    await client.close()


async def _nats(broker: brokers.Nats, name: str, numbers: Iterable[int]) -> None:
    client = await nats.connect(broker.url)
    streams = client.jetstream()
    for part in _parts(numbers):
        await asyncio.gather(*(streams.publish(name, str(n).encode()) for n in part))
    await client.close()


async def _mqtt(broker: brokers.Mosquitto, name: str, numbers: Iterable[int]) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port, username="nova", password="pa55") as client:
        client.pending_calls_threshold = _AT_ONCE + 1
        for part in _parts(numbers):
            await asyncio.gather(*(client.publish(name, str(n), qos=1) for n in part))


async def _rabbit(broker: brokers.RabbitMQ, name: str, numbers: Iterable[int]) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        channel = await connection.channel()
        persistent = aio_pika.DeliveryMode.PERSISTENT
        for part in _parts(numbers):
            messages = [aio_pika.Message(str(n).encode(), delivery_mode=persistent) for n in part]
            await asyncio.gather(*(channel.default_exchange.publish(message, name) for message in messages))
