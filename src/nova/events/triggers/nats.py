"""NATS: a stream of JetStream through a durable consumer, or a subject without a stream.

With a stream a message is acknowledged when its event has been delivered. Without one there is nothing to acknowledge: what
is published while nobody listens, or faster than events are delivered, is lost.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Annotated, Any, Literal

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.errors import NoServersError, SlowConsumerError
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError
from pydantic import AfterValidator, Field, model_validator

from nova import payload
from nova.api.table import Model
from nova.events.triggers.address import Authority, at_address, dial, split, tls
from nova.events.triggers.base import Context, SecretUrl, Sink, SourceError, SourceEvent, body
from nova.events.triggers.delivering import Deliveries, deliveries
from nova.ids import new_id

_PORT = 4222
_TIMEOUT_S = 10
_CLOSE_S = 1.0
_ACK_WAIT_S = 30.0
_PULL_S = 20.0
_HEARTBEAT_S = 5.0
_SILENCE_S = 3 * _HEARTBEAT_S
_ACK_PENDING = 1000
_log = logging.getLogger(__name__)
_QUEUED_MAX = 8192
_QUEUED_BYTES = 16 * 1024 * 1024


def _url(url: str) -> str:
    if split(url, "nats", "tls").path.strip("/"):
        raise ValueError("the URL of a server has no path")
    return url


Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\s.*>/\\]+$")]


class Config(Model):
    """``stream``: read it by the consumer ``durable``, which is made when it is missing and begins where ``start`` says.
    Without ``stream``: at most once. ``queue_group``: shares a subject without a stream with other subscribers."""

    servers: list[Annotated[SecretUrl, AfterValidator(_url)]] = Field(min_length=1, max_length=16)
    subject: str = Field(min_length=1, max_length=1024, pattern=r"^[^\s]+$")
    stream: Name | None = None
    durable: Name | None = None
    queue_group: Name | None = None
    start: Literal["earliest", "latest"] | None = None
    ca: Authority | None = None

    @model_validator(mode="after")
    def _fit(self) -> "Config":
        if self.stream is None and (self.durable is not None or self.start is not None):
            raise ValueError("durable and start need stream: without one nothing is kept")
        if self.stream is not None and self.queue_group is not None:
            raise ValueError(
                "queue_group is for subjects without stream; readers of a stream share the consumer durable"
            )
        return self


def make(config: Config, context: Context) -> "Nats":
    return Nats(config, context)


class Nats:
    def __init__(self, config: Config, context: Context) -> None:
        self._config = config
        self._context = context
        self._durable = config.durable or f"nova-{context.trigger_id}"
        self._streams: JetStreamContext | None = None

    async def check(self) -> None:
        async with self._connected() as (client, _):
            if self._config.stream is not None:
                await client.jetstream(timeout=_TIMEOUT_S).stream_info(self._config.stream)

    async def lag(self) -> int | None:
        if self._streams is None or self._config.stream is None:
            return None
        consumer = await self._streams.consumer_info(self._config.stream, self._durable)
        return (consumer.num_pending or 0) + (consumer.num_ack_pending or 0)

    async def run(self, sink: Sink) -> None:
        async with self._connected() as (client, closed), deliveries(sink, self._context.window) as running:
            running.alongside(_until(closed))
            if self._config.stream is None:
                await self._listen(client, running, sink)
            else:
                await self._pull(client, self._config.stream, running, sink)

    async def _listen(self, client: Client, running: Deliveries, sink: Sink) -> None:
        config = self._config
        messages = await client.subscribe(
            config.subject,
            queue=config.queue_group or "",
            pending_msgs_limit=_QUEUED_MAX,
            pending_bytes_limit=_QUEUED_BYTES,
        )
        await client.flush(_TIMEOUT_S)
        sink.connected()
        async for message in messages.messages:
            await running.take(self._event(message, new_id()), _nothing)

    async def _pull(self, client: Client, stream: str, running: Deliveries, sink: Sink) -> None:
        """Ask for as many messages as may be under way, and again when they have come and are under way."""
        streams = client.jetstream(timeout=_TIMEOUT_S)
        ack_wait_s = await self._make_consumer(streams, stream)
        under_way: dict[str, Msg] = {}
        running.alongside(_keep(under_way, ack_wait_s / 3))
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = client.new_inbox()
        await client.subscribe(inbox, cb=arrived.put)
        self._streams = streams
        sink.connected()
        where = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{self._durable}"
        while True:
            wanted = await running.room()
            ask = {"batch": wanted, "expires": int(_PULL_S * 1e9), "idle_heartbeat": int(_HEARTBEAT_S * 1e9)}
            await client.publish(where, payload.encode(ask), reply=inbox)
            while wanted:
                message = await _next(arrived)
                if message.reply:
                    wanted -= 1
                    under_way[message.reply] = message
                    await running.take(self._stored(message), partial(_acknowledge, message, under_way))
                elif _ends_the_request(message):
                    break

    async def _make_consumer(self, streams: JetStreamContext, stream: str) -> float:
        """How long the consumer lets a message be under way, in seconds. One that exists is taken as it is."""
        earliest = self._config.start == "earliest"
        wanted = ConsumerConfig(
            durable_name=self._durable,
            filter_subject=self._config.subject,
            deliver_policy=DeliverPolicy.ALL if earliest else DeliverPolicy.NEW,
            ack_policy=AckPolicy.EXPLICIT,
            ack_wait=_ACK_WAIT_S,
            max_ack_pending=max(_ACK_PENDING, self._context.window),
        )
        try:
            found = await streams.consumer_info(stream, self._durable)
        except NotFoundError:
            found = await streams.add_consumer(stream, wanted)
        if found.config.deliver_subject or found.config.ack_policy != AckPolicy.EXPLICIT:
            raise SourceError(f"NATS: the consumer {self._durable} is not one that is pulled from and acknowledged")
        return found.config.ack_wait or _ACK_WAIT_S

    def _stored(self, message: Msg) -> SourceEvent:
        """A stream that was made anew counts from 1 again, so a message's time is part of what names it."""
        meta = message.metadata
        number = meta.sequence.stream
        name = f"{meta.stream}-{number}-{int(meta.timestamp.timestamp() * 1e6)}"
        event = self._event(message, name, number)
        event.time = meta.timestamp
        event.redelivered = meta.num_delivered > 1
        return event

    def _event(self, message: Msg, id: str, sequence: int | None = None) -> SourceEvent:
        headers = dict(message.headers or {})
        data = {"subject": message.subject, "sequence": sequence, "body": body(message.data), "headers": headers}
        return SourceEvent(
            id=id,
            type="nova.trigger.nats",
            source=self._context.source,
            data=payload.encode(data),
            subject=message.subject,
        )

    @asynccontextmanager
    async def _connected(self) -> "AsyncIterator[tuple[Client, asyncio.Future[None]]]":
        """A connection to the first server that takes one, and a future that fails when it ends."""
        watch = _Watch(self._context.name)
        try:
            client = await self._first_server(watch)
            watch.connected = True
            try:
                yield client, watch.ended
            finally:
                self._streams = None
                await _close(client)
                watch.forget()
        except (NatsError, OSError) as error:
            raise SourceError(f"NATS: {str(error) or type(error).__name__}") from error

    async def _first_server(self, watch: "_Watch") -> Client:
        failure: Exception = NoServersError()
        for url in self._config.servers:
            parts = split(url, "nats", "tls")
            host, port = parts.hostname or "", parts.port or _PORT
            secure: dict[str, Any] = {"tls": tls(self._config.ca, host)} if parts.scheme == "tls" else {}
            client = Client()
            try:
                address = await dial(self._context.guard, host, port)
                await client.connect(
                    at_address(parts, address, port),
                    tls_hostname=host,
                    name=f"nova-{self._context.trigger_id}",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=_TIMEOUT_S,
                    ping_interval=20,
                    error_cb=watch.on_error,
                    closed_cb=watch.on_close,
                    **secure,
                )
                return client
            except SourceError as error:
                failure = error
            except (NatsError, OSError) as error:
                failure = (watch.last or error) if isinstance(error, NoServersError) else error
                await _close(client)
        raise failure


class _Watch:
    """What a connection says of itself."""

    def __init__(self, trigger: str) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.connected = False
        self.last: Exception | None = None
        self._trigger = trigger

    async def on_error(self, error: Exception) -> None:
        self.last = error
        if isinstance(error, SlowConsumerError):
            _log.warning("messages of a subject without a stream were dropped", extra={"trigger": self._trigger})
        elif self.connected and not self.ended.done():
            self.ended.set_exception(error)

    async def on_close(self) -> None:
        if self.connected and not self.ended.done():
            self.ended.set_exception(SourceError("NATS: the connection was closed"))

    def forget(self) -> None:
        """Nobody may have asked."""
        if self.ended.done() and not self.ended.cancelled():
            self.ended.exception()


async def _close(client: Client) -> None:
    """A server that does not answer, or a handshake that failed, must not keep us."""
    with suppress(NatsError, OSError):
        async with asyncio.timeout(_CLOSE_S):
            await client.close()


async def _next(arrived: "asyncio.Queue[Msg]") -> Msg:
    if not arrived.empty():
        return arrived.get_nowait()
    async with asyncio.timeout(_SILENCE_S):
        return await arrived.get()


def _ends_the_request(status: Msg) -> bool:
    """Raises SourceError when nothing more is to be had."""
    headers = status.headers or {}
    code, text = headers.get("Status"), headers.get("Description") or "no responders"
    if code == "100":  # a heartbeat
        return False
    if code in ("404", "408"):  # its time is over
        return True
    raise SourceError(f"NATS: {text}")


async def _keep(under_way: dict[str, Msg], every_s: float) -> None:
    """Nothing is delivered a second time because the first takes long."""
    while True:
        await asyncio.sleep(every_s)
        for message in list(under_way.values()):
            await message.in_progress()


async def _acknowledge(message: Msg, under_way: dict[str, Msg]) -> None:
    await message.ack()
    del under_way[message.reply]


async def _nothing() -> None:
    """There is nothing to acknowledge."""


async def _until(closed: "asyncio.Future[None]") -> None:
    await closed
