"""One delivery on request, its result inline: is a subscription set up as it was meant?"""

import json
from collections.abc import Callable
from typing import Protocol

import httpx

from nova import payload
from nova.api import subscriptions as api
from nova.api.table import Empty
from nova.clock import Clock
from nova.domain.filters import Subject, compile_filters
from nova.domain.message import MAX_PAYLOAD
from nova.domain.ports import Invoker, WorkflowStarter
from nova.errors import draining, not_found
from nova.events.bus.delivering import Delivering, Parcel, attributes_of
from nova.events.bus.subscription_settings import check_right
from nova.http.handler import Req, handles, identifier
from nova.ids import new_id
from nova.store.db import Database
from nova.store.messages import MessageRow
from nova.store.subscriptions import SubscriptionStore


class Ports(Protocol):
    """Who runs calls; known when the process is put together."""

    @property
    def invoker(self) -> Invoker | None: ...


class TryHandlers:
    """In a process that runs calls. Nothing is written, and neither filters nor limits apply."""

    def __init__(
        self,
        db: Database,
        ports: Ports,
        client: Callable[[], httpx.AsyncClient],
        workflows: WorkflowStarter | None,
        clock: Clock,
    ) -> None:
        self._subscriptions = SubscriptionStore(db)
        self._ports = ports
        self._client = client
        self._workflows = workflows
        self._clock = clock

    @handles("subscription.test")
    async def test(self, req: Req[api.Trial, Empty]) -> api.TrialResult:
        subscription_id = identifier("subscription", req.params["id"])
        record = await self._subscriptions.get(req.scope, subscription_id)
        if record is None:
            raise not_found("subscription", subscription_id)
        check_right(req.identity, record.settings)
        if self._ports.invoker is None:
            raise draining()
        text = json.dumps(req.body.payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        data = payload.check(text.encode(), limit=MAX_PAYLOAD)
        message = MessageRow(
            topic_id=record.topic_id,
            sequence=0,
            id=new_id(),
            payload=data,
            headers={},
            ordering_key=None,
            attributes={},
            traceparent=None,
            tracestate=None,
            size=len(data),
            published_by=req.identity.subject,
            published_at=self._clock.now(),
        )
        fits = compile_filters(record.settings.filters)
        delivering = Delivering(self._ports.invoker, self._client, self._clock, workflows=self._workflows)
        try:
            (verdict,) = await delivering.deliver(record, [Parcel(new_id(), message, 1, False)])
        finally:
            await delivering.forget(record.id)
        return api.TrialResult(
            status="succeeded" if verdict.outcome == "done" else "failed",
            error=verdict.error,
            output=None if verdict.output is None else payload.decode(verdict.output),
            request_id=verdict.request_id,
            duration_ms=verdict.duration_ms,
            fits=fits is None or fits(Subject(attributes_of(record.topic, message), {}, data)),
        )
