"""RabbitMQ: a consumer of one queue. A message is acknowledged when its event has been delivered; none is put back.

A message that cannot be delivered is given up as the trigger says, and acknowledged then: it does not go round for ever.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Annotated, Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage, AbstractQueue
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from pydantic import AfterValidator, Field

from nova import payload
from nova.api.table import Model
from nova.events.triggers.address import Authority, at_address, dial, split, tls
from nova.events.triggers.base import Context, SecretUrl, Sink, SourceError, SourceEvent, body
from nova.events.triggers.delivering import deliveries, text_or_b64
from nova.ids import new_id

_PORTS = {"amqp": 5672, "amqps": 5671}
_TIMEOUT_S = 10.0
_CLOSE_S = 2.0
_PREFETCH_MAX = 65_535


def _url(url: str) -> str:
    split(url, *_PORTS)
    return url


class Config(Model):
    """``declare``: make the queue, durable, when there is none of this name. ``exchange``: bind the queue to it, with
    ``routing_key`` or its own name; it must exist. ``prefetch``: fewer unacknowledged messages than ``max_inflight``."""

    url: Annotated[SecretUrl, AfterValidator(_url)]
    queue: str = Field(min_length=1, max_length=255)
    exchange: str | None = Field(None, min_length=1, max_length=255)
    routing_key: str | None = Field(None, max_length=255)
    prefetch: int | None = Field(None, ge=1, le=_PREFETCH_MAX)
    declare: bool = False
    ca: Authority | None = None


def make(config: Config, context: Context) -> "RabbitMQ":
    return RabbitMQ(config, context)


class RabbitMQ:
    def __init__(self, config: Config, context: Context) -> None:
        self._config = config
        self._context = context
        self._connection: AbstractConnection | None = None

    async def check(self) -> None:
        async with self._connected() as connection:
            if not self._config.declare:
                await self._existing(connection)

    async def lag(self) -> int | None:
        if self._connection is None:
            return None
        async with self._connection.channel(publisher_confirms=False) as channel:
            queue = await channel.declare_queue(self._config.queue, passive=True)
            return queue.declaration_result.message_count

    async def run(self, sink: Sink) -> None:
        window = min(self._context.window, self._config.prefetch or _PREFETCH_MAX, _PREFETCH_MAX)
        async with self._connected() as connection:
            channel, queue = await self._queue(connection)
            await channel.set_qos(prefetch_count=window)
            ended = await _told_of_the_end(channel)
            self._connection = connection
            try:
                async with deliveries(sink, window) as running, queue.iterator() as messages:
                    running.alongside(_until(ended))
                    sink.connected()
                    async for message in messages:
                        await running.take(self._event(message), message.ack)
                    raise SourceError("RabbitMQ: the connection was closed")
            finally:
                self._connection = None

    async def _queue(self, connection: AbstractConnection) -> "_Queue":
        config = self._config
        try:
            channel, queue = await self._existing(connection)
        except ChannelNotFoundEntity:
            if not config.declare:
                raise
            channel = await connection.channel(publisher_confirms=False)
            queue = await channel.declare_queue(config.queue, durable=True)
        if config.exchange is not None:
            await queue.bind(config.exchange, config.queue if config.routing_key is None else config.routing_key)
        return channel, queue

    async def _existing(self, connection: AbstractConnection) -> "_Queue":
        """Whatever its properties are: to declare it with others is an error, which ends the channel."""
        channel = await connection.channel(publisher_confirms=False)
        return channel, await channel.declare_queue(self._config.queue, passive=True)

    def _event(self, message: AbstractIncomingMessage) -> SourceEvent:
        data = {
            "queue": self._config.queue,
            "exchange": message.exchange or "",
            "routing_key": message.routing_key or "",
            "redelivered": bool(message.redelivered),
            "body": body(message.body),
            "headers": _plain(message.headers),
        }
        time = message.timestamp
        return SourceEvent(
            id=message.message_id or new_id(),
            type="nova.trigger.rabbitmq",
            source=self._context.source,
            data=payload.encode(data),
            subject=self._config.queue,
            time=time.astimezone(UTC) if isinstance(time, datetime) else None,
            redelivered=bool(message.redelivered),
        )

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AbstractConnection]:
        config = self._config
        parts = split(config.url, *_PORTS)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        secure: dict[str, Any] = {"ssl_context": tls(config.ca, host)} if parts.scheme == "amqps" else {}
        properties: dict[str, Any] = {"connection_name": f"nova-{self._context.trigger_id}"}
        try:
            url = at_address(parts, await dial(self._context.guard, host, port), port)
            connection = await aio_pika.connect(
                url, timeout=_TIMEOUT_S, client_properties=properties, heartbeat=30, **secure
            )
            try:
                yield connection
            finally:
                with suppress(AMQPError, OSError):  # one that does not answer must not keep us
                    async with asyncio.timeout(_CLOSE_S):
                        await connection.close()
        except AMQPError as error:
            raise SourceError(f"RabbitMQ: {error}") from error


async def _told_of_the_end(channel: AbstractChannel) -> "asyncio.Future[None]":
    """Fails when the broker ends the consumer and keeps the channel: messages would just not come any more."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def cancelled(_: object) -> None:
        if not ended.done():
            ended.set_exception(SourceError("RabbitMQ: the queue was deleted"))

    underlay = await channel.get_underlay_channel()
    underlay.on_consumer_cancel_callbacks.add(cancelled)
    return ended


async def _until(ended: "asyncio.Future[None]") -> None:
    await ended


_Queue = tuple[AbstractChannel, AbstractQueue]


def _plain(value: Any) -> Any:
    """Values of AMQP's tables as JSON."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes | bytearray):
        return text_or_b64(bytes(value))
    return value if isinstance(value, str | int | float | bool | datetime | None) else str(value)
