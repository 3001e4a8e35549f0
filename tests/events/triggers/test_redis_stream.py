"""Redis streams as a source: real server, real groups."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import ValidationError
from redis.asyncio import Redis

from nova.events.triggers import redis_stream
from nova.events.triggers.base import Source, SourceError, SourceEvent
from tests.events.triggers import brokers
from tests.events.triggers.sources import Kept, made, running

pytestmark = pytest.mark.anyio


@pytest.fixture
async def redis(redis_broker: brokers.Redis) -> AsyncIterator[Redis]:
    async with Redis.from_url(redis_broker.url) as redis:
        await redis.flushall()
        yield redis


def source(broker: brokers.Redis, **more: Any) -> Source:
    return made(redis_stream, **({"url": broker.url, "stream": "orders", "group": "g", "start": "earliest"} | more))


def _text(id: bytes | str) -> str:
    return id.decode() if isinstance(id, bytes) else id


async def pending(redis: Redis) -> int:
    found = await redis.xpending("orders", "g")
    return int(found["pending"])


async def test_entries_are_delivered_and_acknowledged(redis_broker: brokers.Redis, redis: Redis) -> None:
    """What stood in the stream before the group and what comes later; what is not text travels as base64."""
    await redis.xadd("orders", {"n": "1", "raw": b"\xff\x00"})
    sink = Kept()
    async with running(lambda: source(redis_broker), sink):
        await sink.have(1)
        id = _text(await redis.xadd("orders", {"n": "2"}))
        await sink.have(2)
        await until_acknowledged(redis)
    first, second = sink.data
    assert first["fields"] == {"n": "1", "raw": {"b64": "/wA="}}
    assert second == {"stream": "orders", "id": id, "fields": {"n": "2"}}
    event = sink.events[1]
    assert (event.id, event.type, event.source) == (id, "nova.trigger.redis", "/triggers/t")
    assert not event.redelivered


async def until_acknowledged(redis: Redis) -> None:
    async with asyncio.timeout(10):
        while await pending(redis):
            await asyncio.sleep(0.01)


async def test_a_new_group_begins_with_what_comes_next_unless_told(redis_broker: brokers.Redis, redis: Redis) -> None:
    """... and a group that vanished with its stream begins at the start of the new one: nothing of it was seen."""
    await redis.xadd("orders", {"n": "1"})
    sink = Kept()
    async with running(lambda: source(redis_broker, start="latest"), sink):
        await redis.xadd("orders", {"n": "2"})
        await sink.have(1)
        async with redis.pipeline() as commands:
            commands.delete("orders")
            commands.xadd("orders", {"n": "3"})
            await commands.execute()
        await sink.have(2)
    assert [data["fields"]["n"] for data in sink.data] == ["2", "3"]


async def test_what_was_not_acknowledged_comes_first_after_a_restart(redis_broker: brokers.Redis, redis: Redis) -> None:
    async def stuck(event: SourceEvent) -> None:
        await asyncio.Event().wait()

    for n in range(5):
        await redis.xadd("orders", {"n": str(n)})
    first = Kept(stuck)
    async with running(lambda: source(redis_broker, window=3), first):
        await first.until(lambda: first.at_once == 3)
    assert await pending(redis) == 3, "no more than fit were taken, and none acknowledged"
    second = Kept()
    async with running(lambda: source(redis_broker, window=3), second):
        await second.have(5)
        await until_acknowledged(redis)
    assert [data["fields"]["n"] for data in second.data] == ["0", "1", "2", "3", "4"]
    assert [event.redelivered for event in second.events] == [True, True, True, False, False]


async def test_what_a_dead_consumer_held_is_claimed(redis_broker: brokers.Redis, redis: Redis) -> None:
    """After claim_idle_ms, and what is under way here for longer than that is left alone."""
    await redis.xgroup_create("orders", "g", id="0", mkstream=True)
    await redis.xadd("orders", {"n": "1"})
    await redis.xreadgroup("g", "somebody", {"orders": ">"})
    gate = asyncio.Event()

    async def slow(event: SourceEvent) -> None:
        await gate.wait()

    sink = Kept(slow)
    async with running(lambda: source(redis_broker, claim_idle_ms=1000), sink):
        await sink.until(lambda: sink.at_once == 1)
        await redis.xadd("orders", {"n": "2"})
        await asyncio.sleep(1.7)  # longer than claim_idle_ms
        gate.set()
        await sink.have(2)
        await until_acknowledged(redis)
    assert [data["fields"]["n"] for data in sink.data] == ["1", "2"]
    assert sink.events[0].redelivered


async def test_lag_counts_what_waits_and_what_is_under_way(redis_broker: brokers.Redis, redis: Redis) -> None:
    gate = asyncio.Event()

    async def held(event: SourceEvent) -> None:
        await gate.wait()

    sink, made = Kept(held), source(redis_broker, window=2)
    async with running(lambda: made, sink):
        for n in range(5):
            await redis.xadd("orders", {"n": str(n)})
        await sink.until(lambda: sink.at_once == 2)
        assert await made.lag() == 5
        gate.set()
        await sink.have(5)
        await until_acknowledged(redis)
        assert await made.lag() == 0
    assert sink.most_at_once == 2


async def test_nothing_is_lost_when_the_broker_is_killed(redis_broker: brokers.Redis, redis: Redis) -> None:
    for n in range(500):
        await redis.xadd("orders", {"n": str(n)})
    killed = asyncio.Event()

    async def handle(event: SourceEvent) -> None:
        if len(sink.events) >= 200:
            await killed.wait()

    sink = Kept(handle)
    async with running(lambda: source(redis_broker), sink):
        await sink.have(200)
        redis_broker.kill()
        killed.set()
        await sink.until(lambda: bool(sink.errors))
        redis_broker.start()
        await sink.until(lambda: sink.bodies() == set(range(500)))
    assert sink.terms == 2


async def test_bad_configurations_and_servers_are_named(redis_broker: brokers.Redis) -> None:
    for url in ("http://h", "redis://", "redis://h/x", "redis://h?ssl_ca_certs=/etc/passwd", "unix:///run/redis.sock"):
        with pytest.raises(ValidationError, match="url"):
            source(redis_broker, url=url)
    await source(redis_broker).check()
    with pytest.raises(SourceError, match=r"(?i)password|auth") as error:
        await source(redis_broker, url=f"redis://:wr0ng@127.0.0.1:{redis_broker.port}").check()
    assert "wr0ng" not in str(error.value)
    with pytest.raises(SourceError, match="failed"):
        await source(redis_broker, url="redis://127.0.0.1:1").check()
