"""MQTT 5 and 3.1.1: a subscription in a session that the broker keeps.

With QoS 1 a message is acknowledged (PUBACK) when its event has been delivered, in the order in which the messages came, as
the standard wants it. With QoS 0, the publisher's or the subscription's, there is nothing to acknowledge: at most once.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from pydantic import AfterValidator, Field

from nova import payload
from nova.api.table import Model
from nova.events.triggers.address import Authority, credentials, dial, split, tls
from nova.events.triggers.base import Context, SecretUrl, Sink, SourceError, SourceEvent, body
from nova.events.triggers.delivering import deliveries
from nova.ids import new_id

_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 30
_SESSION_S = 7 * 86_400
_RECEIVE_MAX = 65_535
_QUEUED_MAX = 8192
_PAUSE_AT = 1024
_READ_ON_AT = 512
"""Messages that wait here. A broker that sends more than may be under way (of version 3.1.1 each may, and mosquitto 2.0.11 sends
up to a window for each acknowledgement) is not read meanwhile, so that it has to wait."""
_PORTS = {"mqtt": 1883, "mqtts": 8883}


def _url(url: str) -> str:
    if split(url, "mqtt", "mqtts").path.strip("/"):
        raise ValueError("the URL of a broker has no path")
    return url


class Config(Model):
    """``client_id`` names the session: no two clients of a broker may share one. The broker keeps it for 7 days without us."""

    url: Annotated[SecretUrl, AfterValidator(_url)]
    topic: str = Field(min_length=1, max_length=4096)
    qos: Literal[0, 1] = 1
    client_id: str | None = Field(None, min_length=1, max_length=256)
    version: Literal["5", "3.1.1"] = "5"
    ca: Authority | None = None


def make(config: Config, context: Context) -> "Mqtt":
    return Mqtt(config, context)


class Mqtt:
    def __init__(self, config: Config, context: Context) -> None:
        self._config = config
        self._context = context
        self._client_id = config.client_id or f"nova-{context.trigger_id}"

    async def check(self) -> None:
        """With a session of its own: the trigger's may be in use, and is kept."""
        async with self._connected(f"{self._client_id}-test", session_s=0):
            pass

    async def lag(self) -> int | None:
        return None

    async def run(self, sink: Sink) -> None:
        config = self._config
        async with (
            self._connected(self._client_id, session_s=_SESSION_S) as client,
            deliveries(sink, self._context.window) as running,
        ):
            granted = await client.subscribe(config.topic, qos=config.qos)
            _refused(granted, config.topic)
            sink.connected()
            async for message in client.messages:
                acknowledge = partial(client.delivered, client.received(message))
                await running.take(self._event(message), acknowledge)

    def _event(self, message: aiomqtt.Message) -> SourceEvent:
        topic = str(message.topic)
        data = {"topic": topic, "qos": message.qos, "retain": message.retain, "body": body(message.payload)}
        return SourceEvent(
            id=new_id(),
            type="nova.trigger.mqtt",
            source=self._context.source,
            data=payload.encode(data),
            subject=topic,
        )

    @asynccontextmanager
    async def _connected(self, client_id: str, *, session_s: int) -> "AsyncIterator[_Client]":
        config = self._config
        parts = split(config.url, *_PORTS)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        user, password = credentials(parts)
        kept: dict[str, Any] = {"clean_session": session_s == 0}
        if config.version == "5":
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
            properties.SessionExpiryInterval = session_s
            properties.ReceiveMaximum = min(self._context.window, _RECEIVE_MAX)
            kept = {"clean_start": session_s == 0, "properties": properties}
        try:
            async with _Client(
                await dial(self._context.guard, host, port),
                port,
                username=user,
                password=password,
                identifier=client_id,
                protocol=aiomqtt.ProtocolVersion.V5 if config.version == "5" else aiomqtt.ProtocolVersion.V311,
                timeout=_TIMEOUT_S,
                keepalive=_KEEP_ALIVE_S,
                queue_type=_Arrived,
                max_queued_incoming_messages=_QUEUED_MAX,
                tls_context=tls(config.ca, host) if parts.scheme == "mqtts" else None,
                **kept,
            ) as client:
                yield client
        except aiomqtt.MqttError as error:
            raise SourceError(f"MQTT: {error.__cause__ or error}") from error


class _Arrived(asyncio.Queue[aiomqtt.Message]):
    """What nobody has to acknowledge is dropped when it is full; for the rest the connection is not read for a while."""

    client: "_Client | None" = None

    def full(self) -> bool:
        return False

    def put_nowait(self, item: aiomqtt.Message) -> None:
        if self.qsize() >= self.maxsize and not item.qos:
            raise asyncio.QueueFull
        super().put_nowait(item)
        if self.client is not None and item.qos and self.qsize() >= _PAUSE_AT:
            self.client.pause()

    def _get(self) -> aiomqtt.Message:
        if self.client is not None and self.qsize() <= _READ_ON_AT:
            self.client.read_on()
        return super()._get()


class _Client(aiomqtt.Client):
    """aiomqtt acknowledges what it has received, paho can leave it to its user; and aiomqtt reads on whatever waits."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._client.manual_ack_set(True)
        self._unacknowledged: deque[_Receipt] = deque()
        self._descriptor = -1
        self._paused = False
        if isinstance(self._queue, _Arrived):
            self._queue.client = self

    def pause(self) -> None:
        """Leave in the socket what comes."""
        if self._descriptor >= 0 and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._descriptor)

    def read_on(self) -> None:
        if self._descriptor >= 0 and self._paused:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._read)

    def _read(self) -> None:
        try:
            self._client.loop_read()
            sock = self._client.socket()
            while isinstance(sock, ssl.SSLSocket) and sock.pending() > 0:  # decrypted already: nothing will announce it
                self._client.loop_read()
                sock = self._client.socket()
        except Exception as error:
            if not self._disconnected.done():
                self._disconnected.set_exception(error)

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:
        self._descriptor, self._paused = sock.fileno(), False
        super()._on_socket_open(client, userdata, sock)

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:
        self._descriptor = -1  # soon somebody else's
        super()._on_socket_close(client, userdata, sock)

    def received(self, message: aiomqtt.Message) -> "_Receipt":
        receipt = _Receipt(message)
        if message.qos:
            self._unacknowledged.append(receipt)
        return receipt

    async def delivered(self, receipt: "_Receipt") -> None:
        receipt.delivered = True
        while self._unacknowledged and self._unacknowledged[0].delivered:
            first = self._unacknowledged.popleft().message
            self._client.ack(first.mid, first.qos)


class _Receipt:
    __slots__ = ("delivered", "message")

    def __init__(self, message: aiomqtt.Message) -> None:
        self.message = message
        self.delivered = False


def _refused(granted: Any, topic: str) -> None:
    """A broker may take the connection and refuse the subscription."""
    for code in granted:
        if (code if isinstance(code, int) else code.value) >= 0x80:
            raise SourceError(f"MQTT: the broker refuses the subscription to {topic}")
