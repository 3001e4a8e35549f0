"""A dispatcher on the test's database, with scripted calls in the place of the execution plane."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from nova import payload
from nova.clock import SYSTEM_CLOCK
from nova.config import EgressSettings
from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.message import Published
from nova.domain.ports import Flight, WorkflowStarter
from nova.errors import NovaError
from nova.events.bus.delivering import Delivering
from nova.events.bus.dispatch import Dispatcher
from nova.events.bus.dispatch_shares import LOOK_S
from nova.events.bus.publish import TopicPublisher
from nova.ids import new_id
from nova.security.egress import client
from nova.service import ServiceGroup
from nova.store.bus_deliveries import DeliveryRecord, DeliveryStore
from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.subscriptions import Secrets, SubscriptionRecord, SubscriptionSettings, SubscriptionStore
from nova.work.leader import Leases
from nova.work.notices import Notices
from tests.events.bus.topics import message
from tests.events.support import Calls

SECRET = "whsec_" + "QUJD" * 11
_OWN = {field.name for field in fields(SubscriptionRecord)}


async def subscription(db: Database, topic_id: str, name: str = "s", **given: Any) -> str:
    """A subscription of function ``f`` unless said otherwise, from the topic's beginning; its id."""
    own = {key: given.pop(key) for key in list(given) if key in _OWN}
    now = datetime.now(UTC)
    record = SubscriptionRecord(
        **{
            "id": new_id(),
            "scope": Scope(),
            "topic_id": topic_id,
            "topic": "orders",
            "name": name,
            "consumer_group": name,
            "enabled": True,
            "disabled_reason": None,
            "settings": SubscriptionSettings(**{"type": "function", "target": "f", "backoff_base_ms": 50, **given}),
            "secrets": Secrets(SECRET),
            "shard": 0,
            "cursor": 0,
            "generation": 0,
            "replayed_to": 0,
            "epoch": 0,
            "expired": 0,
            "created_by": "key:test",
            "created_at": now,
            "updated_at": now,
            **own,
        }
    )
    async with db.transaction() as conn:
        assert await SubscriptionStore(db).insert(conn, record)
    return record.id


def data(call: CallRequest) -> Any:
    """What the event of a call carries."""
    return payload.decode(call.payload)["data"]


class Work:
    def __init__(self, task: asyncio.Task[CallResult]) -> None:
        self._task = task

    def cancel(self) -> None:
        self._task.cancel()


class Starting:
    """The execution plane of one process: calls begin without a task of the dispatcher's, as :class:`Calls` says they end."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def invoke(self, call: CallRequest) -> CallResult:
        return await self._calls.invoke(call)

    def begin(self, call: CallRequest, done: Callable[[CallResult | NovaError], None]) -> Flight | None:
        def ended(work: asyncio.Task[CallResult]) -> None:
            if work.cancelled():
                return
            failure = work.exception()
            if failure is None:
                done(work.result())
            else:
                assert isinstance(failure, NovaError), failure
                done(failure)

        work = asyncio.ensure_future(self._calls.invoke(call))
        work.add_done_callback(ended)
        return Work(work)


@dataclass
class Delivered:
    """What runs: ``calls`` remembers every call."""

    db: Database
    calls: Calls
    publisher: TopicPublisher
    dispatcher: Dispatcher
    listener: Listener

    async def publish(self, *payloads: Any, topic: str = "orders", **given: Any) -> list[Published]:
        messages = [message(payload.encode(one), **given) for one in payloads]
        return list(await self.publisher.publish(Scope(), topic, messages, caller="key:test"))

    async def rows(self, subscription_id: str, status: str | None = None) -> list[DeliveryRecord]:
        """Oldest first."""
        page = await DeliveryStore(self.db).page(subscription_id, status=status, after=None, limit=5000)
        return page[::-1]

    async def until(self, fits: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not fits():
                await asyncio.sleep(0.005)

    async def noticed(self) -> None:
        """Whoever delivers knows of every change."""
        rows = await self.db.fetch("SELECT id::text AS id, epoch FROM event_subscriptions")
        await self.until(lambda: self.dispatcher.serving == {row["id"]: row["epoch"] for row in rows})

    async def settled(self, subscription_id: str, count: int, *statuses: str) -> list[DeliveryRecord]:
        """Its rows, when so many have ended (in one of ``statuses``)."""
        async with asyncio.timeout(20):
            while True:
                rows = await self.rows(subscription_id)
                ended = [row for row in rows if (row.status in statuses if statuses else row.status != "queued")]
                if len(ended) >= count:
                    return ended
                await asyncio.sleep(0.01)


@asynccontextmanager
async def dispatching(
    db: Database,
    calls: Calls | None = None,
    *,
    egress: EgressSettings | None = None,
    workflows: WorkflowStarter | None = None,
    poll_s: float = 5.0,
    look_s: float = LOOK_S,
) -> AsyncIterator[Delivered]:
    calls = calls or Calls()
    async with ServiceGroup() as services:
        listener = await services.start(Listener(db.dsn))
        db.on_commit = listener.deliver
        notices = await services.start(Notices(db))
        publisher = await services.start(TopicPublisher(db, notices))
        leases = await services.start(Leases(db.dsn, listener, node="test"))
        settings = egress or EgressSettings(allow=["127.0.0.0/8"])
        delivering = Delivering(
            Starting(calls), lambda: client(settings, timeout_s=5), SYSTEM_CLOCK, workflows=workflows
        )
        dispatcher = Dispatcher(db, listener, leases, delivering, publisher=publisher, poll_s=poll_s, look_s=look_s)
        await services.start(dispatcher)
        yield Delivered(db, calls, publisher, dispatcher, listener)
