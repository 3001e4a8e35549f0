"""Which addresses triggers connect to: public ones, and those that the operator names."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest

from nova.events.triggers import mqtt, nats, postgres, rabbitmq, redis_stream
from nova.events.triggers.address import dial
from nova.events.triggers.base import SourceError
from nova.security.egress import Guard
from tests.events.triggers.sources import made

pytestmark = pytest.mark.anyio
BROKERS: list[tuple[ModuleType, dict[str, Any]]] = [
    (rabbitmq, {"url": "amqp://{at}/", "queue": "q"}),
    (rabbitmq, {"url": "amqps://{at}/", "queue": "q"}),
    (redis_stream, {"url": "redis://{at}/0", "stream": "s", "group": "g"}),
    (redis_stream, {"url": "rediss://{at}/0", "stream": "s", "group": "g"}),
    (nats, {"servers": ["nats://{at}", "tls://{at}"], "subject": "a"}),
    (mqtt, {"url": "mqtt://{at}", "topic": "t"}),
    (mqtt, {"url": "mqtts://{at}", "topic": "t"}),
    (postgres, {"dsn": "postgresql://{at}/db", "channel": "c"}),
]


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[int, list[str]]]:
    """A port of this machine, and who has connected to it."""
    seen: list[str] = []

    def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(writer.get_extra_info("peername")[0])
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], seen


def _at(config: Any, at: str) -> Any:
    if isinstance(config, list):
        return [_at(each, at) for each in config]
    return config.format(at=at)


@pytest.mark.parametrize(("module", "config"), BROKERS)
async def test_a_private_address_is_not_dialled(module: ModuleType, config: dict[str, Any]) -> None:
    """EV11: neither by number nor by a name; nothing is sent there."""
    async with listening() as (port, seen):
        for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
            source = made(module, allow=(), **{name: _at(value, f"{host}:{port}") for name, value in config.items()})
            with pytest.raises(SourceError, match="no public address"):
                await source.check()
    assert not seen


async def test_the_address_that_was_checked_is_the_one_that_is_dialled() -> None:
    """A name server that answers otherwise the second time changes nothing, because nobody asks a second time."""
    answers = [["203.0.113.7", "10.0.0.1"], ["127.0.0.1"]]

    async def resolve(_host: str, _port: int) -> list[str]:
        return answers.pop(0)

    guard = Guard(["203.0.113.0/24"], resolve)
    assert await dial(guard, "broker.example", 1) == "203.0.113.7"
    with pytest.raises(SourceError, match=r"broker\.example.*egress\.allow"):
        await dial(guard, "broker.example", 1)


async def test_of_several_addresses_the_first_that_answers_is_taken() -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["127.0.0.2", "127.0.0.1", "127.0.0.3"]

    async with listening() as (port, _):
        assert await dial(Guard(["127.0.0.0/8"], resolve), "broker.example", port) == "127.0.0.1"


async def test_a_database_of_several_hosts_keeps_their_names_and_gets_their_addresses() -> None:
    found = await postgres.reachable(
        Guard(["127.0.0.1/32"]), {"host": "127.0.0.1,localhost,10.0.0.1", "port": "5001,,5003", "user": "me"}
    )
    assert found == {
        "host": "127.0.0.1,localhost",
        "hostaddr": "127.0.0.1,127.0.0.1",
        "port": "5001,5432",
        "user": "me",
    }
    for ports in ("1,2", "x"):
        with pytest.raises(ValueError, match="port"):
            postgres.Config(dsn=f"host=a,b,c port={ports} dbname=d", channel="c")
