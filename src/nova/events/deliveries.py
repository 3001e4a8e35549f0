"""Sending what the outbox holds: work of kind ``delivery``.

A function gets the event as another job and a topic as a message, in the transaction that ends the delivery; so they get it once.
A workflow begins one run for each delivery, whose id is the run's key. A webhook gets it at least once and knows a repetition by
its ``webhook-id``.
"""

import time
from collections.abc import Callable
from typing import Literal

import structlog

from nova import payload
from nova.domain.asyncs import MAX_DEPTH, MAX_PAYLOAD, backoff_s
from nova.domain.call import AsyncOptions
from nova.domain.message import MAX_HOPS, check_hops
from nova.domain.ports import WorkflowStarter
from nova.errors import NovaError
from nova.events.bus import inbound
from nova.events.observers import JobEvents, NoEvents
from nova.events.refusals import NOT_YET
from nova.events.silent import SilentReceivers
from nova.events.webhook_secrets import WebhookSecrets
from nova.events.webhooks import Sent, WebhookSender
from nova.ids import new_id
from nova.store import asyncs, messages
from nova.store.asyncs import NewJob
from nova.store.db import Connection, Database
from nova.store.listen import Channel
from nova.store.messages import Append, Entry
from nova.store.outbox import Delivery, OutboxStore
from nova.work import queue
from nova.work.queue import WorkItem
from nova.work.runner import Kind

log = structlog.get_logger(__name__)
MAX_ATTEMPTS = 12
"""Over about eleven hours."""
_BACKOFF_MS = (5_000, 21_600_000)


class Deliveries:
    """The handler of work of kind ``delivery``."""

    def __init__(
        self,
        db: Database,
        sender: WebhookSender,
        secrets: WebhookSecrets,
        workflows: WorkflowStarter,
        *,
        events: JobEvents | None = None,
        max_hops: Callable[[], int] = lambda: MAX_HOPS,
    ) -> None:
        self._db = db
        self._max_hops = max_hops
        self._store = OutboxStore(db)
        self._sender = sender
        self._secrets = secrets
        self._workflows = workflows
        self._events = events or NoEvents()
        self._silent = SilentReceivers()

    def kind(self, workers: int = 16) -> Kind:
        """``workers`` deliveries run here at once, of one tenant at most half of that over all processes."""
        return Kind(self, workers, per_tenant=max(1, workers // 2), max_attempts=MAX_ATTEMPTS, backoff_s=5)

    async def run(self, item: WorkItem) -> None:
        delivery = await self._store.get(item.subject)
        if delivery is None:
            async with self._db.transaction() as conn:
                await queue.finish(conn, item)
            return
        match delivery.type:
            case "function":
                await self._call(item, delivery)
            case "topic":
                await self._publish(item, delivery)
            case "workflow":
                await self._begin(item, delivery)
            case "webhook":
                await self._post(item, delivery)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        delivery = await self._store.get(item.subject)
        if delivery is not None:
            await self._end(item, delivery, "dead", reason)

    async def _call(self, item: WorkItem, delivery: Delivery) -> None:
        if delivery.depth > MAX_DEPTH:
            await self._end(item, delivery, "dead", f"more than {MAX_DEPTH} jobs would have caused one another")
            return
        if len(delivery.event) > MAX_PAYLOAD:
            await self._end(item, delivery, "dead", f"the event is larger than {MAX_PAYLOAD} bytes")
            return
        trace = payload.decode(delivery.event)
        job = NewJob(
            id=new_id(),
            scope=delivery.scope,
            function=delivery.target,
            payload=delivery.event,
            options=AsyncOptions(),
            caller=delivery.caller,
            source=f"async:{delivery.source.split('/')[1]}",
            traceparent=trace.get("traceparent"),
            tracestate=trace.get("tracestate"),
            depth=delivery.depth,
        )
        async with self._db.transaction() as conn:
            await queue.finish(conn, item)
            (outcome,) = await asyncs.add(conn, [job])
            if not isinstance(outcome, NovaError):
                await conn.notify(Channel.WORK, asyncs.DUE)
            status = await self._handed_over(conn, item, delivery, outcome)
        self._tell(delivery, status)

    async def _publish(self, item: WorkItem, delivery: Delivery) -> None:
        """The event becomes the message: its data is the payload, its attributes are the message's."""
        try:
            message = inbound.one(delivery.event, {"content-type": inbound.STRUCTURED})
            check_hops(message, self._max_hops())
        except NovaError as refusal:  # more data than a message may have, or a circle
            await self._end(item, delivery, "dead", refusal.detail)
            return
        entry = Entry.of(delivery.id, message, delivery.caller)
        async with self._db.transaction() as conn:
            await queue.finish(conn, item)
            (outcome,) = await messages.append(conn, [Append(delivery.scope, delivery.target, [entry], [entry])])
            if not isinstance(outcome, NovaError):
                await conn.notify(Channel.TOPICS, outcome.topic_id)
            status = await self._handed_over(conn, item, delivery, outcome)
        self._tell(delivery, status)

    async def _handed_over(
        self, conn: Connection, item: WorkItem, delivery: Delivery, outcome: object
    ) -> Literal["delivered", "dead"]:
        refusal = outcome.detail if isinstance(outcome, NovaError) else None
        status: Literal["delivered", "dead"] = "delivered" if refusal is None else "dead"
        await self._store.end(conn, delivery.id, status, item.attempt, refusal)
        return status

    async def _begin(self, item: WorkItem, delivery: Delivery) -> None:
        trace = payload.decode(delivery.event)
        try:
            await self._workflows.start(
                delivery.scope,
                delivery.target,
                delivery.event,
                key=delivery.id,
                caller=delivery.caller,
                traceparent=trace.get("traceparent"),
                tracestate=trace.get("tracestate"),
            )
        except NovaError as refusal:
            if refusal.status in NOT_YET and item.attempt < MAX_ATTEMPTS:
                await self._again(item, delivery, refusal.detail, refusal.retry_after_s)
            else:
                await self._end(item, delivery, "dead", refusal.detail)
        else:
            await self._end(item, delivery, "delivered", None)

    async def _post(self, item: WorkItem, delivery: Delivery) -> None:
        secret = await self._secrets.of_id(delivery.scope, delivery.function_id)
        if secret is None:
            await self._end(
                item, delivery, "dead", "the function is gone, and with it what its webhooks are signed with"
            )
            return
        receiver = delivery.scope.tenant, delivery.target
        if self._silent.may_try(receiver):
            began = time.monotonic()
            try:
                sent = await self._sender.send(delivery.target, delivery.id, delivery.event, secret.text)
            except BaseException:
                self._silent.left(receiver)
                raise
            self._silent.heard(receiver, failed=sent.error is not None, took_s=time.monotonic() - began)
        else:
            sent = Sent("its receiver does not answer, and another event is trying it")
        if sent.error is None:
            await self._end(item, delivery, "delivered", None)
        elif sent.final or item.attempt >= MAX_ATTEMPTS:
            await self._end(item, delivery, "dead", sent.error)
        else:
            await self._again(item, delivery, sent.error, sent.retry_after_s)

    async def _again(self, item: WorkItem, delivery: Delivery, error: str, retry_after_s: float | None) -> None:
        delay_s = max(backoff_s(*_BACKOFF_MS, item.attempt), retry_after_s or 0.0)
        async with self._db.transaction() as conn:
            await queue.hold(conn, item)
            await self._store.tried(conn, delivery, error)
            await queue.release(conn, item, delay_s=delay_s)

    async def _end(
        self, item: WorkItem, delivery: Delivery, status: Literal["delivered", "dead"], error: str | None
    ) -> None:
        async with self._db.transaction() as conn:
            await queue.finish(conn, item)
            await self._store.end(conn, delivery.id, status, item.attempt, error)
        if error is not None:
            log.warning("an event could not be delivered", delivery=delivery.id, target=delivery.type, error=error)
        self._tell(delivery, status)

    def _tell(self, delivery: Delivery, status: Literal["delivered", "dead"]) -> None:
        self._events.delivery_ended(delivery.scope, delivery.type, status)
