"""Brokers call real functions, and nothing is lost when a broker, nebula or a comet is killed."""

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest

from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.planes import SixPlanes
from tests.e2e.server import NovaServer
from tests.e2e.test_triggers import kept, make, reaches
from tests.events.triggers import brokers
from tests.events.triggers.feeding import config, feed, prepare

KEEPER = """
def handler(event, context):
    data = event["data"]
    n = int(data["fields"]["n"] if "fields" in data else data["body"])
    if n < 0:
        raise ValueError("bad")
    context.state.put(f"n{n}", event["type"])
"""
APART = 1_000
"""Each broker's numbers begin at a multiple of it."""


@pytest.fixture(scope="module")
def all_brokers(
    redis_broker: brokers.Redis,
    nats_broker: brokers.Nats,
    mqtt_broker: brokers.Mosquitto,
    rabbit_broker: brokers.RabbitMQ,
) -> Sequence[brokers.Broker]:
    return (redis_broker, nats_broker, mqtt_broker, rabbit_broker)


@contextmanager
def triggers(
    platform: Platform, function: str, some: Sequence[brokers.Broker], **members: Any
) -> Iterator[tuple[str, list[str]]]:
    """The name of what they read, and their ids; each is connected."""
    name = f"q{uuid.uuid4().hex}"
    made: list[str] = []
    platform.deploy(function, KEEPER)
    try:
        for broker in some:
            prepare(broker, name)
            type, settings = config(broker, name)
            made.append(make(platform, f"{type}-{name}"[:60], type, function, settings, **members))
        for trigger in made:
            reaches(platform, trigger, "running")
        yield name, made
    finally:
        for trigger in made:
            platform.http.delete(f"/triggers/{trigger}")
        platform.delete(function)


def numbers(place: int, count: int, first: int = 0) -> range:
    return range(place * APART + first, place * APART + first + count)


def test_messages_of_every_broker_call_a_function(
    nova_server: NovaServer, all_brokers: Sequence[brokers.Broker]
) -> None:
    """EV18: in both shapes of the platform. Poison is dead-lettered, and the source is told."""
    members = {"max_attempts": 1}
    with platform_at(nova_server.url) as platform:
        http = platform.http
        with triggers(platform, "t-broker", all_brokers, **members) as (name, made):
            for place, broker in enumerate(all_brokers):
                feed(broker, name, [*numbers(place, 50), -1])
            wanted = {n for place in range(len(all_brokers)) for n in numbers(place, 50)}
            until(lambda: kept(platform, "t-broker") == wanted, "every message has come")

            def settled(trigger: str) -> bool:
                status = http.get(f"/triggers/{trigger}/status").json()
                counts = (status["received"], status["processed"], status["failed"])
                return counts == (51, 50, 1) and status["lag"] in (0, None)

            for trigger in made:
                until(partial(settled, trigger), "all is counted and acknowledged")
                assert http.post(f"/triggers/{trigger}/test").json() == {"ok": True, "error": None}
                assert "pa55" not in http.get(f"/triggers/{trigger}").text
                assert http.post(f"/triggers/{trigger}/pause").status_code == 200
            letters = http.get("/async-invocations", params={"status": "dlq", "limit": 200}).json()["items"]
            assert len([letter for letter in letters if letter["function"] == "t-broker"]) == len(made)
            for place, broker in enumerate(all_brokers):
                feed(broker, name, numbers(place, 10, 50))
            for trigger in made:
                assert http.post(f"/triggers/{trigger}/resume").status_code == 200
            wanted |= {n for place in range(len(all_brokers)) for n in numbers(place, 10, 50)}
            until(lambda: kept(platform, "t-broker") == wanted, "what came in the pause has come")


def test_nothing_is_lost_when_brokers_nebula_or_a_comet_are_killed(
    planes: SixPlanes, platform: Platform, all_brokers: Sequence[brokers.Broker]
) -> None:
    """EV18: 2,000 messages of four brokers while all of them and the platform's processes die; each message reaches its
    function at least once."""
    each, total = 500, 500 * len(all_brokers)
    with triggers(platform, "t-brokers-killed", all_brokers, on_error="retry") as (name, _):
        for place, broker in enumerate(all_brokers):
            feed(broker, name, numbers(place, each))
            if isinstance(broker, brokers.Mosquitto):
                broker.save()

        def some(share: float) -> None:
            until(lambda: len(kept(platform, "t-brokers-killed")) >= share * total, f"{share:.0%} have come", 60)

        some(0.1)
        planes.planes["nebula"].kill()
        planes.planes["nebula"].start()
        some(0.3)
        for broker in all_brokers:
            broker.kill()
        for broker in all_brokers:
            broker.start()
        planes.planes["comet"].kill()
        planes.planes["comet"].start()
        wanted = {n for place in range(len(all_brokers)) for n in numbers(place, each)}
        until(lambda: kept(platform, "t-brokers-killed") == wanted, "every message has come", 90)
