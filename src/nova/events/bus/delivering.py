"""One attempt of a delivery: a function called, a workflow started, or a webhook sent, with the message as an event."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

import httpx
import structlog

from nova import payload
from nova.clock import Clock
from nova.domain.call import CallRequest, CallResult
from nova.domain.message import hops_of
from nova.domain.ports import Flight, Invoker, Starter, WorkflowStarter
from nova.errors import NovaError
from nova.events import cloudevent
from nova.events.acting import acting_for
from nova.events.refusals import HOPELESS, NOT_YET, never_began
from nova.events.webhooks import WebhookSender
from nova.ids import new_id
from nova.store.messages import MessageRow
from nova.store.subscriptions import SubscriptionRecord

log = structlog.get_logger(__name__)
TYPE = "nova.topic.message"
_WAIT_S = (1.0, 60.0)
"""Shortest and longest pause after one of those."""
_MAX_ERROR = 2000
"""Characters of an error that are kept."""
Outcome = Literal["done", "failed", "dead", "later"]


@dataclass(frozen=True, slots=True)
class Parcel:
    """A message on its way to one subscription. ``attempt`` counts executions from 1."""

    delivery_id: str
    message: MessageRow
    attempt: int
    replay: bool


@dataclass(slots=True)
class Verdict:
    """What came of an attempt.

    failed: to be tried again; dead: it is no use; later: this was no attempt, ``pause_s`` is how long to wait. ``gone``: the
    receiver wants nothing any more. ``output`` is what a function answered.
    """

    outcome: Outcome
    started_at: datetime
    duration_ms: float
    request_id: str | None = None
    error: str | None = None
    pause_s: float = 0.0
    gone: bool = False
    output: bytes | None = None


class Delivering:
    """``client`` makes an HTTP client (:func:`nova.security.egress.client`): each webhook has one of its own, because one whose
    receiver hangs uses up all its connections. ``workflows`` None: subscriptions of type workflow end in the dead-letter
    queue with an error that says so.
    """

    def __init__(
        self,
        invoker: Invoker,
        client: Callable[[], httpx.AsyncClient],
        clock: Clock,
        *,
        workflows: WorkflowStarter | None = None,
    ) -> None:
        self._invoker = invoker
        self._start_call = invoker.begin if isinstance(invoker, Starter) else None
        self._client = client
        self._senders: dict[str, WebhookSender] = {}
        self._clock = clock
        self._workflows = workflows

    async def forget(self, subscription_id: str) -> None:
        """It is not delivered from here any more."""
        sender = self._senders.pop(subscription_id, None)
        if sender is not None:
            await sender.close()

    def begin(
        self, record: SubscriptionRecord, parcels: Sequence[Parcel], done: Callable[[list[Verdict]], None]
    ) -> Flight | None:
        """One call for all of ``parcels``, without a task; ``done`` hears the verdicts, in a callback of the event loop.

        None, and nothing has happened, when there is something to wait for or to refuse: :meth:`deliver` does that.
        """
        if self._start_call is None or record.settings.type != "function":
            return None
        verdict, began = Verdict("done", self._clock.now(), 0.0), self._clock.monotonic()
        try:
            call = self._request(record, parcels, verdict, began)
        except Exception as error:
            log.debug("a delivery takes the long way", subscription=record.id, error=type(error).__name__)
            return None

        def ended(outcome: CallResult | NovaError) -> None:
            try:
                verdicts = _judged(outcome, record, parcels, verdict)
            except Exception as error:
                verdicts = _broken(record, parcels, verdict, error)
            done(self._timed(verdicts, began))

        return self._start_call(call, ended)

    async def deliver(self, record: SubscriptionRecord, parcels: Sequence[Parcel]) -> list[Verdict]:
        """One call for all of ``parcels``; a verdict for each. Never raises for what the target does."""
        started_at, began = self._clock.now(), self._clock.monotonic()
        verdict = Verdict("done", started_at, 0.0)
        try:
            match record.settings.type:
                case "function":
                    verdicts = await self._call(record, parcels, verdict, began)
                case "workflow":
                    verdicts = [await self._start(record, parcels[0], verdict)]
                case "webhook":
                    verdicts = [await self._send(record, parcels[0], verdict)]
        except NovaError as refusal:
            verdicts = [_refused(refusal, verdict)] * len(parcels)
        except Exception as error:
            verdicts = _broken(record, parcels, verdict, error)
        return self._timed(verdicts, began)

    def _timed(self, verdicts: list[Verdict], began: float) -> list[Verdict]:
        took_ms = (self._clock.monotonic() - began) * 1000
        for one in verdicts:
            one.duration_ms = took_ms
        return verdicts

    async def _call(
        self, record: SubscriptionRecord, parcels: Sequence[Parcel], verdict: Verdict, began: float
    ) -> list[Verdict]:
        call = self._request(record, parcels, verdict, began)
        try:
            outcome: CallResult | NovaError = await self._invoker.invoke(call)
        except NovaError as refusal:
            outcome = refusal
        return _judged(outcome, record, parcels, verdict)

    def _request(
        self, record: SubscriptionRecord, parcels: Sequence[Parcel], verdict: Verdict, began: float
    ) -> CallRequest:
        settings = record.settings
        verdict.request_id = new_id()
        events = [envelope(record, parcel) for parcel in parcels]
        first = parcels[0]
        return CallRequest(
            request_id=verdict.request_id,
            scope=record.scope,
            function=settings.target,
            payload=cloudevent.batch(events) if settings.batch_size > 1 else events[0],
            identity=acting_for(record.created_by, record.scope),
            received=began,
            qualifier=settings.qualifier,
            timeout_ms=None if settings.timeout_s is None else int(settings.timeout_s * 1000),
            trigger="event",
            traceparent=first.message.traceparent,
            tracestate=first.message.tracestate,
            attempt=first.attempt,
            hops=1 + max(hops_of(parcel.message.attributes) for parcel in parcels),
            caller=f"subscription:{record.topic}/{record.name}",
        )

    async def _start(self, record: SubscriptionRecord, parcel: Parcel, verdict: Verdict) -> Verdict:
        """One run for each delivery, however often it is tried: its id is the run's key."""
        if self._workflows is None:
            return replace(verdict, outcome="dead", error="workflows do not run here")
        message = parcel.message
        run_id = await self._workflows.start(
            record.scope,
            record.settings.target,
            envelope(record, parcel),
            key=parcel.delivery_id,
            caller=record.created_by,
            traceparent=message.traceparent,
            tracestate=message.tracestate,
        )
        return replace(verdict, request_id=run_id)

    async def _send(self, record: SubscriptionRecord, parcel: Parcel, verdict: Verdict) -> Verdict:
        settings = record.settings
        sender = self._senders.get(record.id)
        if sender is None:
            sender = self._senders[record.id] = WebhookSender(self._client(), self._clock)
        sent = await sender.send(
            settings.target,
            parcel.delivery_id,
            envelope(record, parcel),
            *record.secrets.valid(self._clock.now()),
            method=settings.webhook_method,
            headers={**settings.webhook_headers, "x-nova-topic": record.topic},
            timeout_s=settings.webhook_timeout_ms / 1000,
        )
        if sent.error is None:
            return verdict
        outcome: Outcome = "dead" if sent.final else "failed"
        return replace(
            verdict, outcome=outcome, error=_text(sent.error), pause_s=sent.retry_after_s or 0.0, gone=sent.gone
        )


def attributes_of(topic: str, message: MessageRow) -> dict[str, str]:
    """The attributes of the event that a message is: its publisher's, and ours where he gave none."""
    found = {"id": message.id, "source": f"/topics/{topic}", "type": TYPE, **message.attributes}
    if message.ordering_key is not None:
        found["partitionkey"] = message.ordering_key
    return found


def envelope(record: SubscriptionRecord, parcel: Parcel) -> bytes:
    """The event: a publisher's own attributes are kept."""
    message = parcel.message
    given = dict(message.attributes)
    time = given.pop("time", None)
    headers = payload.encode(dict(message.headers)).decode() if message.headers else None
    extensions: dict[str, Any] = {
        "partitionkey": message.ordering_key,
        "sequence": str(message.sequence),
        "traceparent": message.traceparent,
        "tracestate": message.tracestate if message.traceparent is not None else None,
        "novatenant": record.scope.tenant,
        "novatopic": record.topic,
        "novasubscription": record.name,
        "novadelivery": parcel.delivery_id,
        "novaattempt": parcel.attempt,
        "novareplay": True if parcel.replay else None,
        "novaheaders": headers,
    }
    return cloudevent.build(
        id=given.pop("id", message.id),
        source=given.pop("source", f"/topics/{record.topic}"),
        type=given.pop("type", TYPE),
        subject=given.pop("subject", None),
        time=message.published_at if time is None else datetime.fromisoformat(time),
        data=message.payload,
        extensions={**given, **extensions},
    )


def _judged(
    outcome: CallResult | NovaError, record: SubscriptionRecord, parcels: Sequence[Parcel], verdict: Verdict
) -> list[Verdict]:
    """What came of a call, for each of its parcels."""
    if isinstance(outcome, NovaError):
        return [_refused(outcome, verdict)] * len(parcels)
    if outcome.error is not None:
        failed = replace(verdict, outcome="failed", error=_text(f"{outcome.error.type}: {outcome.error.message}"))
        return [failed] * len(parcels)
    verdict.output = outcome.output
    if record.settings.batch_size == 1:
        return [verdict]
    return _of_batch(outcome, parcels, verdict)


def _broken(record: SubscriptionRecord, parcels: Sequence[Parcel], verdict: Verdict, error: Exception) -> list[Verdict]:
    log.error("a delivery failed", subscription=record.id, exc_info=error)
    return [replace(verdict, outcome="failed", error=f"internal error ({type(error).__name__})")] * len(parcels)


def _of_batch(result: CallResult, parcels: Sequence[Parcel], verdict: Verdict) -> list[Verdict]:
    """Those whose ids the answer names have failed; an answer that cannot be understood fails all of them."""
    answer = payload.decode(result.output) if result.output else None
    if not isinstance(answer, Mapping) or not answer.get("batchItemFailures"):
        return [verdict] * len(parcels)
    failed = replace(verdict, outcome="failed", error="the function named it in batchItemFailures")
    ids = [parcel.message.attributes.get("id", parcel.message.id) for parcel in parcels]
    named: set[str] = set()
    failures = answer["batchItemFailures"]
    for entry in failures if isinstance(failures, list) else [None]:
        name = entry.get("itemIdentifier") if isinstance(entry, Mapping) else None
        if not isinstance(name, str) or name not in ids:
            problem = "batchItemFailures has an entry without the itemIdentifier of an event of the batch"
            return [replace(failed, error=problem)] * len(parcels)
        named.add(name)
    return [failed if event_id in named else verdict for event_id in ids]


def _refused(refusal: NovaError, verdict: Verdict) -> Verdict:
    error = _text(f"{refusal.code}: {refusal.detail}")
    if refusal.status in HOPELESS:
        return replace(verdict, outcome="dead", error=error)
    if refusal.status in NOT_YET and never_began(refusal):
        least, most = _WAIT_S
        pause_s = min(most, max(least, refusal.retry_after_s or 0)) * random.uniform(1, 1.25)
        return replace(verdict, outcome="later", error=error, pause_s=pause_s)
    return replace(verdict, outcome="failed", error=error)


def _text(error: str) -> str:
    """As PostgreSQL takes it."""
    return error.replace("\x00", "").encode(errors="replace").decode()[:_MAX_ERROR]
