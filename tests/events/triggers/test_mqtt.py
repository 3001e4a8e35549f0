"""MQTT as a source: a real broker, both versions."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiomqtt
import pytest
from pydantic import ValidationError

from nova.events.triggers import mqtt
from nova.events.triggers.base import Source, SourceError, SourceEvent
from tests.events.triggers import brokers
from tests.events.triggers.sources import Kept, made, running

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(mqtt_broker: brokers.Mosquitto) -> AsyncIterator[aiomqtt.Client]:
    async with aiomqtt.Client("127.0.0.1", mqtt_broker.port, username="nova", password="pa55") as client:
        yield client


@pytest.fixture
def topic() -> str:
    return f"orders/{uuid.uuid4().hex}"


def source(broker: brokers.Mosquitto, topic: str, **more: Any) -> Source:
    return made(mqtt, **({"url": broker.url, "topic": topic, "client_id": f"c-{topic}"} | more))


async def publish(client: aiomqtt.Client, topic: str, *numbers: int) -> None:
    for n in numbers:
        await client.publish(topic, str(n), qos=1)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_session_outlives_the_connection(
    mqtt_broker: brokers.Mosquitto, client: aiomqtt.Client, topic: str, version: str
) -> None:
    """What was not acknowledged comes again, and what came meanwhile; what was acknowledged does not."""
    gate = asyncio.Event()

    async def stuck(event: SourceEvent) -> None:
        if len(first.events) >= 2:
            await gate.wait()

    first = Kept(stuck)
    async with running(lambda: source(mqtt_broker, topic, version=version), first):
        await publish(client, topic, *range(5))
        await first.until(lambda: first.at_once == 3)
    await publish(client, topic, 5)
    second = Kept()
    async with running(lambda: source(mqtt_broker, topic, version=version), second):
        await second.have(4)
        await publish(client, topic, 6)
        await second.have(5)
    assert [data["body"] for data in first.data] == [0, 1]
    assert [data["body"] for data in second.data] == [2, 3, 4, 5, 6]


async def test_acknowledgements_wait_for_those_before_them(
    mqtt_broker: brokers.Mosquitto, client: aiomqtt.Client, topic: str
) -> None:
    async def first_is_stuck(event: SourceEvent) -> None:
        if event.data.endswith(b'"body":0}'):
            await asyncio.Event().wait()

    first = Kept(first_is_stuck)
    async with running(lambda: source(mqtt_broker, topic), first):
        await publish(client, topic, 0, 1, 2)
        await first.have(2)
    second = Kept()
    async with running(lambda: source(mqtt_broker, topic), second):
        await second.have(3)
    assert [data["body"] for data in second.data] == [0, 1, 2]


async def test_no_more_than_the_window(mqtt_broker: brokers.Mosquitto, client: aiomqtt.Client, topic: str) -> None:
    """... and all in the end, more than a broker keeps under way for one client."""
    config = {"url": mqtt_broker.url, "topic": f"{topic}/#"}
    id = uuid.uuid4().hex
    sink = Kept()
    async with running(lambda: made(mqtt, window=3, trigger_id=id, **config), sink):
        await asyncio.gather(*(publish(client, f"{topic}/a", n) for n in range(100)))
        await sink.have(100)
    assert sink.bodies() == set(range(100))
    assert sink.most_at_once <= 3


async def test_what_a_message_says(mqtt_broker: brokers.Mosquitto, client: aiomqtt.Client, topic: str) -> None:
    """A retained one at once; quality 0 when either side wants no more."""
    await client.publish(topic, b"\xff", qos=1, retain=True)
    sink, least = Kept(), Kept()
    async with running(lambda: source(mqtt_broker, topic), sink):
        await client.publish(topic, b'{"a": 1}', qos=0)
        await sink.have(2)
    async with running(lambda: source(mqtt_broker, topic, qos=0, client_id="least"), least):
        await client.publish(topic, b"", qos=1)
        await least.have(2)
    await client.publish(topic, b"", qos=1, retain=True)
    assert sink.data == [
        {"topic": topic, "qos": 1, "retain": True, "body": {"b64": "/w=="}},
        {"topic": topic, "qos": 0, "retain": False, "body": {"a": 1}},
    ]
    assert least.data[1] == {"topic": topic, "qos": 0, "retain": False, "body": None}
    event = sink.events[0]
    assert (event.type, event.subject) == ("nova.trigger.mqtt", topic)


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_nothing_is_lost_when_the_broker_is_killed(
    mqtt_broker: brokers.Mosquitto, topic: str, version: str
) -> None:
    """... and while it is away the source says so."""
    async with running(lambda: source(mqtt_broker, topic, version=version), Kept()):
        pass  # now there is a session
    async with aiomqtt.Client("127.0.0.1", mqtt_broker.port, username="nova", password="pa55") as client:
        await asyncio.gather(*(publish(client, topic, n) for n in range(500)))
    mqtt_broker.save()

    async def handle(event: SourceEvent) -> None:
        if len(sink.events) == 50:  # some brokers send far ahead
            mqtt_broker.kill()

    sink = Kept(handle)
    async with running(lambda: source(mqtt_broker, topic, version=version), sink):
        await sink.until(lambda: bool(sink.errors))
        mqtt_broker.start()
        await sink.until(lambda: sink.bodies() == set(range(500)))
    assert sink.terms == 2


async def test_bad_configurations_and_servers_are_named(mqtt_broker: brokers.Mosquitto, topic: str) -> None:
    bad: list[tuple[str, object]] = [("url", "http://h"), ("url", "mqtt://h/x"), ("qos", 2), ("version", "3.1")]
    for name, wrong in bad:
        with pytest.raises(ValidationError, match=name):
            source(mqtt_broker, topic, **{name: wrong})
    await source(mqtt_broker, topic).check()
    with pytest.raises(SourceError, match=r"(?i)not authori[sz]ed") as error:
        await source(mqtt_broker, topic, url=f"mqtt://nova:wr0ng@127.0.0.1:{mqtt_broker.port}").check()
    assert "wr0ng" not in str(error.value)
    with pytest.raises(SourceError, match="refused"):
        await source(mqtt_broker, topic, url="mqtt://127.0.0.1:1").check()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
async def test_a_broker_that_sends_too_much_waits(
    mqtt_broker: brokers.Mosquitto, client: aiomqtt.Client, topic: str, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backlog that is many times what may wait here is delivered, each once, and never more of it waits here."""
    most = 0
    put = mqtt._Arrived.put_nowait

    def watched(queue: "mqtt._Arrived", item: aiomqtt.Message) -> None:
        nonlocal most
        put(queue, item)
        most = max(most, queue.qsize())

    monkeypatch.setattr(mqtt, "_PAUSE_AT", 64)
    monkeypatch.setattr(mqtt, "_READ_ON_AT", 32)
    monkeypatch.setattr(mqtt._Arrived, "put_nowait", watched)
    first, sink = Kept(), Kept()
    async with running(lambda: source(mqtt_broker, topic, version=version), first):
        await publish(client, topic, -1)
        await first.have(1)
    await publish(client, topic, *range(600))
    async with running(lambda: source(mqtt_broker, topic, version=version), sink):
        await sink.have(600)
    assert (sink.bodies(), len(sink.events), sink.errors) == (set(range(600)), 600, [])
    assert 64 <= most <= 65
