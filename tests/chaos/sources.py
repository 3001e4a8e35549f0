"""The load: each source asks for things at its own pace and counts as accepted what was acknowledged, nothing else.

Who got no answer asks again with the same name (idempotency key, ``dedup_id``, id of a run) until there is one, so each thing is
asked for once however often that was said. Brokers know no such names: what was not acknowledged is published again.
"""

import asyncio
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any

import aio_pika
import aiomqtt
import httpx
import nats
from redis.asyncio import Redis
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_random

from tests.chaos.functions import DURABLE_STEPS, WORKFLOW_ITEMS, WORKFLOW_STEPS
from tests.chaos.oracle import Account
from tests.chaos.stage import MESSAGES
from tests.events.triggers import brokers

ASKED_FOR_S = 300.0
"""So long one thing is asked for; whatever is away comes back before."""
_PUBLISH_S = 5.0
_KEYS = 8
_AWAY = (401, 409, 429, 502, 503, 504)
"""401: a clock was set while the request was between two planes."""
GOOD, PATIENT = 100, {"backoff_base_ms": 50, "backoff_max_ms": 500}
KILLER_ATTEMPTS = 3


class Away(Exception):
    """Nobody could say yes or no."""


class Door:
    """The platform's API, for things that can be asked for twice."""

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=10, trust_env=False)

    async def ask(self, path: str, body: Any) -> dict[str, Any]:
        """The answer. Raises AssertionError for a refusal that has nothing to do with what dies at the moment."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type((Away, httpx.TransportError)),
            wait=wait_random(0.1, 0.5),
            stop=stop_after_delay(ASKED_FOR_S),
            reraise=True,
        ):
            with attempt:
                answer = await self._http.post(path, json=body)
                if answer.status_code in _AWAY:
                    raise Away(answer.text)
                assert answer.status_code < 300, f"{path}: {answer.status_code} {answer.text}"
                found: dict[str, Any] = answer.json()
                return found
        raise AssertionError

    async def close(self) -> None:
        await self._http.aclose()


class Source(ABC):
    """``per_s`` things a second until it is stopped."""

    def __init__(self, name: str, per_s: float, *, ordered: bool = False) -> None:
        self.account = Account(name, ordered=ordered)
        self.per_s = per_s
        self._numbers = itertools.count()

    async def run(self, stopped: asyncio.Event) -> None:
        due = time.monotonic()
        while not stopped.is_set():
            await self.one(next(self._numbers))
            due = max(due + 1 / self.per_s, time.monotonic())  # what an outage held up is not caught up with
            await asyncio.sleep(due - time.monotonic())

    @abstractmethod
    async def one(self, number: int) -> None:
        """Ask for one thing, until it is acknowledged; then put it into the account."""


class Jobs(Source):
    """Asynchronous calls. ``fields`` are members of the request, by number."""

    def __init__(
        self,
        door: Door,
        name: str,
        per_s: float,
        payload: dict[str, Any],
        fields: Callable[[int], dict[str, Any]],
        callback: Account | None = None,
    ) -> None:
        super().__init__(name, per_s)
        self._door = door
        self._payload = payload
        self._fields = fields
        self._callback = callback

    async def one(self, number: int) -> None:
        key = f"{self.account.source.replace(' ', '-')}-{number}"
        body = {"payload": {"source": self.account.source, "key": key, **self._payload}, "idempotency_key": key}
        await self._door.ask("/functions/c-job/invoke-async", body | self._fields(number))
        self.account.accepted.add((key, "job"))
        if self._callback is not None and not hangs(number):
            self._callback.accepted.add((key, "job"))


class Topic(Source):
    """Messages with an ordering key each; ``also`` are the accounts of the topic's other subscriptions."""

    def __init__(self, door: Door, name: str, topic: str, per_s: float, *also: Account) -> None:
        super().__init__(name, per_s, ordered=True)
        self._door = door
        self._topic = topic
        self._also = also

    async def one(self, number: int) -> None:
        key, n = f"k{number % _KEYS}", number // _KEYS
        body = {"payload": {"key": key, "n": n}, "ordering_key": key, "dedup_id": str(number)}
        await self._door.ask(f"/topics/{self._topic}/publish", body)
        for account in (self.account, *self._also):
            account.accepted.add((key, str(n)))


class Workflows(Source):
    def __init__(self, door: Door, per_s: float) -> None:
        super().__init__("workflow", per_s, ordered=True)
        self._door = door

    async def one(self, number: int) -> None:
        key = f"run-{number}"
        await self._door.ask("/workflows/c-outer/runs", {"run_id": key, "input": {"key": key, "items": WORKFLOW_ITEMS}})
        self.account.accepted.update((key, step) for step in WORKFLOW_STEPS)


class Durables(Source):
    def __init__(self, door: Door, per_s: float) -> None:
        super().__init__("durable", per_s, ordered=True)
        self._door = door

    async def one(self, number: int) -> None:
        key = f"execution-{number}"
        body = {"execution_id": key, "input": {"key": key}}
        await self._door.ask("/functions/c-durable/invoke-durable", body)
        self.account.accepted.update((key, step) for step in DURABLE_STEPS)


class Messages(Source):
    """What a broker acknowledged, in small parcels."""

    def __init__(self, name: str, broker: brokers.Broker, per_s: float, quiet: asyncio.Lock) -> None:
        self._parcel = max(1, round(per_s))
        super().__init__(name, per_s / self._parcel)
        self._broker = broker
        self._quiet = quiet

    async def one(self, number: int) -> None:
        numbers = range(number * self._parcel, (number + 1) * self._parcel)
        async for attempt in AsyncRetrying(
            wait=wait_random(0.2, 0.6), stop=stop_after_delay(ASKED_FOR_S), reraise=True
        ):
            with attempt:
                async with self._quiet, asyncio.timeout(_PUBLISH_S):
                    await _PUBLISH[type(self._broker)](self._broker, [str(n) for n in numbers])
        self.account.accepted.update(("", str(n)) for n in numbers)


async def _redis(broker: brokers.Broker, texts: list[str]) -> None:
    async with Redis.from_url(broker.url) as redis:
        for text in texts:
            await redis.xadd(MESSAGES, {"n": text})


async def _rabbit(broker: brokers.Broker, texts: list[str]) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        exchange = (await connection.channel()).default_exchange
        persistent = aio_pika.DeliveryMode.PERSISTENT
        for text in texts:
            await exchange.publish(aio_pika.Message(text.encode(), delivery_mode=persistent), MESSAGES, mandatory=True)


async def _nats(broker: brokers.Broker, texts: list[str]) -> None:
    client = await nats.connect(broker.url, allow_reconnect=False, connect_timeout=2, error_cb=_ignore)
    try:
        for text in texts:
            await client.jetstream().publish(MESSAGES, text.encode())
    finally:
        await client.close()


async def _ignore(_error: Exception) -> None:
    """The call that failed raises it."""


async def _mqtt(broker: brokers.Broker, texts: list[str]) -> None:
    async with aiomqtt.Client("127.0.0.1", broker.port, username="nova", password="pa55") as client:
        for text in texts:
            await client.publish(MESSAGES, text, qos=1)


_PUBLISH: dict[type[brokers.Broker], Callable[[brokers.Broker, list[str]], Awaitable[None]]] = {
    brokers.Redis: _redis,
    brokers.RabbitMQ: _rabbit,
    brokers.Nats: _nats,
    brokers.Mosquitto: _mqtt,
}


def concurrent(number: int) -> dict[str, Any]:
    """Some jobs have a concurrency key, some a priority."""
    fields: dict[str, Any] = {"max_attempts": GOOD, **PATIENT}
    if number % 4 == 1:
        fields |= {"concurrency_key": f"key-{number % 3}"}
    if number % 4 == 2:
        fields |= {"priority": ("high", "low")[number // 4 % 2]}
    return fields


def hangs(number: int) -> bool:
    """Is the receiver of this job's callback the one that never answers?"""
    return number % 5 == 4
