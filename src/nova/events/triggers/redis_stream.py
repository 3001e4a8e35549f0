"""Redis streams, read by a consumer group. An entry is acknowledged (XACK) when its event has been delivered.

All nodes use one consumer name, for one at a time is in charge: what its predecessor left unacknowledged is the group's
list of pending entries of that name, and is read before anything new. What other consumers hold for too long is claimed.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from time import monotonic
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from nova import payload
from nova.api.table import Model
from nova.events.triggers.address import Authority, at_address, dial, split
from nova.events.triggers.base import Context, SecretUrl, Sink, SourceError, SourceEvent
from nova.events.triggers.delivering import Deliveries, deliveries, text, text_or_b64

_PORT = 6379
_BLOCK_MS = 2000
_TIMEOUT_S = 10.0
_LAST_S = 2.0
_READ_MAX = 500
Entries = list[tuple[bytes, Mapping[bytes, bytes] | None]]


def _url(url: str) -> str:
    database = split(url, "redis", "rediss").path.strip("/")
    if database and not database.isdecimal():
        raise ValueError("the path of the URL is the number of a database")
    return url


class Config(Model):
    """``start``: where a group begins that this trigger makes. ``claim_idle_ms``: what another consumer of the group has held
    for longer is taken from it."""

    url: Annotated[SecretUrl, AfterValidator(_url)]
    stream: str = Field(min_length=1, max_length=1024)
    group: str = Field(min_length=1, max_length=256)
    consumer: str = Field("nova", min_length=1, max_length=256)
    start: Literal["earliest", "latest"] = "latest"
    claim_idle_ms: int = Field(60_000, ge=1000, le=86_400_000)
    ca: Authority | None = None


PLACE = ("url", "stream", "group")


def make(config: Config, context: Context) -> "RedisStream":
    return RedisStream(config, context)


class _Named(SSLConnection):
    """Checks the certificate for the name, where the host is an address."""

    def __init__(self, *, server_name: str, **options: Any) -> None:
        super().__init__(**options)
        self._server_name = server_name

    def _connection_arguments(self) -> Mapping[str, Any]:
        return {**super()._connection_arguments(), "server_hostname": self._server_name}


class RedisStream:
    def __init__(self, config: Config, context: Context) -> None:
        self._config = config
        self._context = context
        self._redis: Redis | None = None
        self._under_way: set[bytes] = set()
        self._done: list[bytes] = []
        self._some_done = asyncio.Event()

    async def check(self) -> None:
        async with self._connected() as redis:
            await redis.ping()

    async def lag(self) -> int | None:
        if self._redis is None:
            return None
        for group in await self._redis.xinfo_groups(self._config.stream):
            if group["name"] == self._config.group.encode():
                waiting = group.get("lag")  # since Redis 7, and not always then
                return None if waiting is None else int(waiting) + int(group["pending"])
        return None

    async def run(self, sink: Sink) -> None:
        async with self._connected() as redis:
            await self._make_group(redis, sink)
            self._redis = redis
            sink.connected()
            try:
                async with deliveries(sink, self._context.window) as running:
                    running.alongside(self._acknowledge(redis))
                    await self._read(redis, running)
            finally:
                self._redis = None
                with suppress(RedisError, TimeoutError):
                    async with asyncio.timeout(_LAST_S):
                        await self._flush(redis)

    async def _make_group(self, redis: Redis, sink: Sink) -> None:
        """A group that is missing though it was made once went with its stream: the new stream is read from its beginning."""
        config, once = self._config, await sink.position()
        first = "$" if config.start == "latest" and once is None else "0"
        try:
            await redis.xgroup_create(config.stream, config.group, id=first, mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        if once is None:
            await sink.save(b"made")

    async def _read(self, redis: Redis, running: Deliveries) -> None:
        config = self._config
        block_ms = min(_BLOCK_MS, config.claim_idle_ms // 2)
        last: bytes = b"0"
        claim_at = 0.0
        while True:
            if monotonic() >= claim_at and last == b">":
                await self._claim(redis, running)
                claim_at = monotonic() + config.claim_idle_ms / 2000
            count = min(await running.room(), _READ_MAX)
            where: Any = {config.stream: last}
            reply: Any = await redis.xreadgroup(config.group, config.consumer, where, count=count, block=block_ms)
            entries: Entries = reply[0][1] if reply else []
            await self._take(entries, running, again=last != b">")
            if last != b">":
                last = entries[-1][0] if entries else b">"

    async def _claim(self, redis: Redis, running: Deliveries) -> None:
        config = self._config
        cursor = b"0-0"
        while True:
            count = min(await running.room(), _READ_MAX)
            reply: Any = await redis.xautoclaim(
                config.stream, config.group, config.consumer, config.claim_idle_ms, cursor, count
            )
            cursor, entries = reply[0], reply[1]
            await self._take(entries, running, again=True)
            if cursor == b"0-0":
                return

    async def _take(self, entries: Entries, running: Deliveries, *, again: bool) -> None:
        for id, fields in entries:
            if id in self._under_way:  # one of ours that takes long
                continue
            self._under_way.add(id)
            if fields:
                await running.take(self._event(id, fields, again=again), partial(self._ended, id))
            else:  # it was deleted while it was pending
                await self._ended(id)

    async def _ended(self, id: bytes) -> None:
        self._done.append(id)
        self._some_done.set()

    async def _acknowledge(self, redis: Redis) -> None:
        while True:
            await self._some_done.wait()
            self._some_done.clear()
            await self._flush(redis)

    async def _flush(self, redis: Redis) -> None:
        """All of one moment with one command."""
        if ids := self._done:
            self._done = []
            await redis.xack(self._config.stream, self._config.group, *ids)
            self._under_way.difference_update(ids)

    def _event(self, id: bytes, fields: Mapping[bytes, bytes], *, again: bool) -> SourceEvent:
        config = self._config
        texts = {text(name): text_or_b64(value) for name, value in fields.items()}
        data = {"stream": config.stream, "id": id.decode(), "fields": texts}
        return SourceEvent(
            id=id.decode(),
            type="nova.trigger.redis",
            source=self._context.source,
            data=payload.encode(data),
            subject=config.stream,
            redelivered=again,
        )

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Redis]:
        config = self._config
        parts = split(config.url, "redis", "rediss")
        host, port = parts.hostname or "", parts.port or _PORT
        secure: dict[str, Any] = {"ssl_ca_data": config.ca} if config.ca and parts.scheme == "rediss" else {}
        # A read that is sent again could leave entries pending that nobody saw: after an error all is read anew.
        pool: ConnectionPool = ConnectionPool.from_url(
            at_address(parts, await dial(self._context.guard, host, port), port),
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_TIMEOUT_S,
            socket_connect_timeout=_TIMEOUT_S,
            client_name=f"nova-{self._context.trigger_id}",
            **secure,
        )
        if parts.scheme == "rediss":
            pool.connection_class = _Named
            pool.connection_kwargs["server_name"] = host
        redis: Redis = Redis.from_pool(pool)
        try:
            yield redis
        except RedisError as error:
            raise SourceError(f"Redis: {error}") from error
        finally:
            await redis.aclose()
