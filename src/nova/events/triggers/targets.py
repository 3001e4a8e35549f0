"""What events are handed to: a function, a topic or a workflow. One attempt each; who tries again is :mod:`.deliver`."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from nova.clock import Clock
from nova.domain.asyncs import JobError
from nova.domain.call import CallRequest
from nova.domain.filters import Fits, Subject
from nova.domain.message import NewMessage
from nova.domain.ports import Invoker, Publisher, WorkflowStarter
from nova.domain.trigger import TriggerRecord
from nova.errors import NovaError
from nova.events import cloudevent
from nova.events.acting import acting_for
from nova.events.refusals import HOPELESS, NOT_YET, never_began
from nova.events.triggers.base import SourceEvent

_ABSENT = frozenset({404})
"""A target that is not there may come: events wait for it at their source."""
_MAX_KEY = 200


class NotTaken(Exception):
    """The target did not take the events. ``counts``: it was an attempt; ``hopeless``: another would end the same."""

    def __init__(
        self, error: JobError, *, counts: bool = True, hopeless: bool = False, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(f"{error.type}: {error.message}")
        self.error = error
        self.counts = counts
        self.hopeless = hopeless
        self.retry_after_s = retry_after_s


class Target(Protocol):
    async def send(self, events: Sequence[SourceEvent], request_id: str, attempt: int) -> None:
        """Returns when the target has succeeded. Raises :class:`NotTaken`."""
        ...

    def input(self, events: Sequence[SourceEvent], attempt: int) -> bytes:
        """What the target gets of them."""
        ...


@dataclass(frozen=True, slots=True)
class Ports:
    """How a process reaches targets. None: not part of it, so triggers of that kind wait."""

    invoker: Invoker
    publisher: Publisher | None = None
    starter: WorkflowStarter | None = None


def target_of(record: TriggerRecord, ports: Ports, clock: Clock) -> Target:
    kind = record.settings.target_type
    if kind == "function":
        return _Function(record, ports.invoker, clock)
    if kind == "topic":
        return _Topic(record, ports.publisher, clock)
    return _Workflow(record, ports.starter, clock)


def key_of(record: TriggerRecord, event_id: str) -> str:
    """The same for an event whenever it comes, and for no event of another trigger; visible ASCII, 200 characters at most."""
    text = f"{record.id}/{event_id}"
    if len(text) <= _MAX_KEY and all("!" <= character <= "~" for character in text):
        return text
    return f"{record.id}/{sha256(event_id.encode()).hexdigest()}"


def fits(wanted: Fits | None, event: SourceEvent) -> bool:
    """Is this an event that the trigger's filters let through?"""
    if wanted is None:
        return True
    attributes = {**event.extensions, "id": event.id, "source": event.source, "type": event.type}
    if event.subject is not None:
        attributes["subject"] = event.subject
    if event.ordering_key is not None:
        attributes["orderingkey"] = attributes["partitionkey"] = event.ordering_key
    return wanted(Subject(attributes, {}, event.data))


def envelope(record: TriggerRecord, event: SourceEvent, clock: Clock, attempt: int = 1) -> bytes:
    extensions: dict[str, object] = dict(event.extensions)
    extensions["novatenant"] = record.scope.tenant
    extensions["novatrigger"] = record.settings.name
    extensions["novaattempt"] = attempt
    extensions["partitionkey"] = event.ordering_key
    return cloudevent.build(
        id=event.id,
        source=event.source,
        type=event.type,
        subject=event.subject,
        time=event.time or clock.now(),
        data=event.data,
        extensions=extensions,
    )


class _Base:
    def __init__(self, record: TriggerRecord, clock: Clock) -> None:
        self.record = record
        self.clock = clock
        self.caller = f"trigger:{record.settings.name}"

    def input(self, events: Sequence[SourceEvent], attempt: int) -> bytes:
        envelopes = [envelope(self.record, event, self.clock, attempt) for event in events]
        return envelopes[0] if self.record.settings.batch_size == 1 else cloudevent.batch(envelopes)


class _Function(_Base):
    def __init__(self, record: TriggerRecord, invoker: Invoker, clock: Clock) -> None:
        super().__init__(record, clock)
        self._invoker = invoker
        self._identity = acting_for(record.created_by, record.scope)

    async def send(self, events: Sequence[SourceEvent], request_id: str, attempt: int) -> None:
        settings = self.record.settings
        call = CallRequest(
            request_id=request_id,
            scope=self.record.scope,
            function=settings.target,
            payload=self.input(events, attempt),
            identity=self._identity,
            received=self.clock.monotonic(),
            qualifier=settings.qualifier,
            trigger="trigger",
            attempt=attempt,
            caller=self.caller,
        )
        first = events[0].extensions
        if len(events) == 1 and "traceparent" in first:
            call.traceparent, call.tracestate = first["traceparent"], first.get("tracestate")
        try:
            result = await self._invoker.invoke(call)
        except NovaError as refusal:
            raise refused(refusal) from None
        if result.error is not None:
            error = result.error
            raise NotTaken(JobError(error.type, error.message, error.stack))


class _Topic(_Base):
    def __init__(self, record: TriggerRecord, publisher: Publisher | None, clock: Clock) -> None:
        super().__init__(record, clock)
        self._publisher = publisher

    async def send(self, events: Sequence[SourceEvent], request_id: str, attempt: int) -> None:
        if self._publisher is None:
            raise _missing("topics")
        settings = self.record.settings
        messages = [
            NewMessage(
                payload=event.data,
                ordering_key=_short(event.ordering_key),
                dedup_id=key_of(self.record, event.id),
                id=event.id,
                source=event.source,
                type=event.type,
                subject=event.subject,
                time=event.time,
                extensions={**event.extensions, "novatrigger": settings.name},
            )
            for event in events
        ]
        try:
            await self._publisher.publish(self.record.scope, settings.target, messages, caller=self.record.created_by)
        except NovaError as refusal:
            raise refused(refusal) from None


class _Workflow(_Base):
    def __init__(self, record: TriggerRecord, starter: WorkflowStarter | None, clock: Clock) -> None:
        super().__init__(record, clock)
        self._starter = starter

    async def send(self, events: Sequence[SourceEvent], request_id: str, attempt: int) -> None:
        if self._starter is None:
            raise _missing("workflows")
        (event,) = events
        try:
            await self._starter.start(
                self.record.scope,
                self.record.settings.target,
                self.input(events, 1),
                key=key_of(self.record, event.id),
                caller=self.record.created_by,
                traceparent=event.extensions.get("traceparent"),
                tracestate=event.extensions.get("tracestate"),
            )
        except NovaError as refusal:
            raise refused(refusal) from None


def refused(refusal: NovaError) -> NotTaken:
    error = JobError("Nova." + "".join(part.capitalize() for part in refusal.code.split("_")), refusal.detail)
    if refusal.status in HOPELESS - _ABSENT:
        return NotTaken(error, hopeless=True)
    if refusal.status in NOT_YET | _ABSENT and never_began(refusal):
        return NotTaken(error, counts=False, retry_after_s=refusal.retry_after_s or 1.0)
    return NotTaken(error)


def _short(key: str | None) -> str | None:
    """A key that no longer one of a topic has: equal ones stay equal."""
    return key if key is None or len(key) <= _MAX_KEY else sha256(key.encode()).hexdigest()


def _missing(what: str) -> NotTaken:
    return NotTaken(JobError("Nova.Unsupported", f"{what} cannot be reached from this process"), counts=False)
