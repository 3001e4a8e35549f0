"""Triggers: what listens somewhere outside and hands on what it gets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol

from nova.domain.identity import Scope

TriggerType = Literal["rabbitmq", "redis_stream", "nats", "mqtt", "webhook", "filesystem", "http_poll", "postgres"]
TargetType = Literal["function", "workflow", "topic"]
OnError = Literal["retry", "dlq", "drop"]
State = Literal["starting", "running", "stopped", "error"]

WEBHOOK = "webhook"
"""The type that nobody runs: the gateway serves it."""
MAX_BATCH = 500
MAX_WINDOW_MS = 60_000
MAX_INFLIGHT = 1_000
MAX_UNDER_WAY = 10_000
"""Events of one trigger that may be under way at once: ``max_inflight`` batches of ``batch.size``."""


@dataclass(frozen=True, slots=True)
class TriggerSettings:
    """What may be changed on a trigger. ``config`` is as its type's model says, with everything secret in it.
    ``filters``: as subscriptions have them (:mod:`nova.domain.filters`).

    ``max_attempts`` counts executions, the first included. ``on_error``: what happens after them.
    """

    name: str
    target_type: TargetType
    target: str
    qualifier: str | None
    enabled: bool
    config: Mapping[str, Any]
    filters: Sequence[Mapping[str, Any]]
    batch_size: int
    batch_window_ms: int
    max_inflight: int
    on_error: OnError
    max_attempts: int


@dataclass(frozen=True, slots=True)
class TriggerRecord:
    """``revision`` grows with every change. ``created_by`` is the subject in whose name the target is called."""

    id: str
    scope: Scope
    type: TriggerType
    settings: TriggerSettings
    revision: int
    created_by: str
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class TriggerStatus:
    """How a trigger is. ``lag`` are messages that wait at the source, None when it cannot say; the counts are of events since
    the trigger was made. ``node`` None: no process is in charge."""

    state: State
    last_error: str | None
    lag: int | None
    received: int
    processed: int
    failed: int
    last_event_at: datetime | None
    node: str | None


@dataclass(frozen=True, slots=True)
class HookRequest:
    """An HTTP request to a webhook's address. Header names are in lower case; of a repeated header, the last."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes
    address: str | None
    request_id: str
    received: float
    traceparent: str | None = None
    tracestate: str | None = None


@dataclass(frozen=True, slots=True)
class HookAnswer:
    status: int
    body: bytes
    headers: Sequence[tuple[bytes, bytes]] = field(default=((b"content-type", b"application/json"),))


class HookDesk(Protocol):
    """The port through which requests to ``/hooks`` reach their triggers."""

    async def limit(self, scope: Scope, name: str) -> int:
        """How many bytes the body may have. Raises ``not_found``, or ``invalid_state`` while the trigger is paused."""
        ...

    async def receive(self, scope: Scope, name: str, request: HookRequest) -> HookAnswer:
        """Check who sends it, then hand it on. Raises ``not_found``, ``unauthenticated``, ``duplicate_request`` and what the
        target refuses with."""
        ...
