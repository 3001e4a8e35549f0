"""Brokers over TLS: whoever has no certificate that is believed for the name that was asked for is not talked to."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import ValidationError

from nova.events.triggers import mqtt, nats, rabbitmq, redis_stream
from nova.events.triggers.base import SourceError
from tests.events.triggers import brokers
from tests.events.triggers.sources import Kept, made, running

pytestmark = [
    pytest.mark.anyio,
    # A failed handshake leaves paho's socket to the garbage collector, which closes it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
Ways = Callable[[str], dict[str, Any]]


def _source(name: str, request: pytest.FixtureRequest, folder: Path) -> tuple[ModuleType, brokers.Broker, Ways]:
    """The module, the broker, and the configuration for a host."""
    if name == "nats":
        server = brokers.NatsTls(folder)
        request.addfinalizer(server.stop)
        server.start()
        return nats, server, lambda host: {"servers": [f"tls://nova:pa55@{host}:{server.port}"], "subject": "a"}
    broker: brokers.Broker = request.getfixturevalue(f"{name}_broker")
    at = f"{{}}:{broker.tls_port}"
    if name == "redis":
        return redis_stream, broker, lambda host: _redis(f"rediss://:pa55@{at.format(host)}")
    if name == "mqtt":
        return mqtt, broker, lambda host: {"url": f"mqtts://nova:pa55@{at.format(host)}", "topic": "tls"}
    return rabbitmq, broker, lambda host: _rabbit(f"amqps://guest:guest@{at.format(host)}/")


def _redis(url: str) -> dict[str, Any]:
    return {"url": url, "stream": "tls", "group": "g"}


def _rabbit(url: str) -> dict[str, Any]:
    return {"url": url, "queue": "tls", "declare": True}


@pytest.mark.parametrize("name", ["redis", "nats", "mqtt", "rabbit"])
async def test_only_a_certificate_that_is_believed_will_do(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    module, broker, config = _source(name, request, tmp_path / "broker")
    authority = broker.certificate.read_text()
    await made(module, ca=authority, **config("127.0.0.1")).check()
    sink = Kept()
    async with running(lambda: made(module, ca=authority, **config("127.0.0.1")), sink):
        assert sink.terms == 1
    with pytest.raises((SourceError, OSError), match=r"(?i)certificate"):
        await made(module, **config("127.0.0.1")).check()
    with pytest.raises((SourceError, OSError), match=r"(?i)certificate|hostname"):
        await made(module, ca=authority, **config("localhost")).check()
    with pytest.raises(ValidationError, match="ca"):
        made(module, ca="-----BEGIN CERTIFICATE-----\nnone\n", **config("127.0.0.1"))
