"""What a run's nodes have come to, and what the machine that advances the run wants done."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import msgspec

from nova import payload
from nova.domain.workflows.document import RetryPolicy

Status = Literal["pending", "ready", "running", "waiting", "succeeded", "failed", "skipped", "cancelled"]
TERMINAL = frozenset({"succeeded", "failed", "skipped", "cancelled"})
MAX_MESSAGE = 8192
"""Characters of an error's message that are kept."""
ITSELF = -1
"""The item of a node that is no item of a map."""
Ref = tuple[int, int]
"""A node by its index, and the item of it."""
Purpose = Literal["call", "compensation"]


@dataclass(frozen=True, slots=True)
class Failure:
    """``type`` is the class that a function raised, or a ``Nova.*`` type. ``path`` is the node that it came from."""

    type: str
    message: str
    path: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"type": self.type, "message": self.message, "node_key": self.path}

    def encoded(self) -> bytes:
        """As JSON that PostgreSQL takes: it keeps no NUL, and nothing that is no text."""
        message = self.message[:MAX_MESSAGE].replace("\x00", "").encode(errors="replace").decode()
        kind = self.type[:256].replace("\x00", "").encode(errors="replace").decode()
        return payload.encode({"type": kind, "message": message, "node_key": self.path})

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> "Failure":
        return cls(stored.get("type", "Nova.Internal"), stored.get("message", ""), stored.get("node_key"))


@dataclass(slots=True)
class NodeState:
    """``taken``: the edges it went on by, None before it ended and when it failed for good. ``given``: an input that replaces
    the mapping's. ``open`` counts incoming edges that nothing is known of; ``active`` are the sources of those taken."""

    status: Status = "pending"
    attempt: int = 0
    input: bytes | None = None
    output: bytes | None = None
    error: Failure | None = None
    taken: tuple[int, ...] | None = None
    wake_at: datetime | None = None
    child: str | None = None
    completed_no: int | None = None
    compensation: str | None = None
    compensation_error: Failure | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    open: int = 0
    active: list[int] = field(default_factory=list)
    given: bytes | None = None

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while a run is advanced. ``depth`` counts the runs above it."""

    run_id: str
    workflow: str
    version: int
    key: str | None
    generation: int
    depth: int
    input: bytes
    deadline_at: datetime
    cancel_on_failure: bool
    max_items: int
    max_depth: int


@dataclass(frozen=True, slots=True)
class Call:
    """A function to be called. ``timeout_s`` is for this attempt."""

    ref: Ref
    purpose: Purpose
    function: str
    qualifier: str | None
    payload: bytes
    timeout_s: float
    attempt: int


@dataclass(frozen=True, slots=True)
class StartRun:
    ref: Ref
    run_id: str
    workflow: str
    version: int | None
    payload: bytes
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class Ask:
    """An approval to be asked for."""

    index: int
    input: bytes
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class Listen:
    """A node begins to wait for a message of a topic. ``filters`` is JSON, without paths."""

    index: int
    topic: str
    filters: bytes


@dataclass(frozen=True, slots=True)
class Tried:
    """A call that ended."""

    ref: Ref
    purpose: Purpose
    attempt: int
    request_id: str
    started_at: datetime
    duration_ms: float
    error: Failure | None


@dataclass(frozen=True, slots=True)
class CallEnd:
    """How a call ended: exactly one of ``output`` and ``error``. ``again_s``: it was refused for a reason that passes, so it
    is to be tried again after so many seconds and this was no attempt."""

    request_id: str
    started_at: datetime
    duration_ms: float
    output: bytes | None = None
    error: Failure | None = None
    again_s: float | None = None


@dataclass(slots=True)
class Ending:
    """Decided, but not done: what was begun has to end, and what was done may have to be undone."""

    status: Literal["failed", "cancelled", "timed_out"]
    error: Failure
    compensate: bool

    def encoded(self) -> bytes:
        error = msgspec.Raw(self.error.encoded())
        return payload.encode({"status": self.status, "error": error, "compensate": self.compensate})


@dataclass(frozen=True, slots=True)
class Ended:
    status: Literal["succeeded", "failed", "cancelled", "timed_out"]
    output: bytes | None = None
    error: Failure | None = None


@dataclass(slots=True)
class Step:
    """What one moment came to: what is to be written, and then what is to be done."""

    changed: dict[Ref, None] = field(default_factory=dict)
    tried: list[Tried] = field(default_factory=list)
    consumed: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    cancelled_calls: list[Ref] = field(default_factory=list)
    runs: list[StartRun] = field(default_factory=list)
    cancelled_runs: list[str] = field(default_factory=list)
    asked: list[Ask] = field(default_factory=list)
    answered: list[tuple[int, str]] = field(default_factory=list)
    listened: list[Listen] = field(default_factory=list)
    status: bool = False
    """The run's own status, ending or end is to be written."""

    @property
    def writes(self) -> bool:
        return bool(
            self.changed
            or self.tried
            or self.consumed
            or self.runs
            or self.asked
            or self.answered
            or self.listened
            or self.status
        )


def pause_s(policy: RetryPolicy, attempt: int) -> float:
    """Seconds between attempt ``attempt`` (from 1) and the next."""
    most: float = min(policy.max_backoff_ms, policy.base_ms * policy.factor ** min(attempt - 1, 60)) / 1000
    return most * random.uniform(0.75, 1.25) if policy.jitter else most


def concerns(on: list[str], error: Failure) -> bool:
    """Is this error one of those? A name may end in ``*``; nothing named means all."""
    if not on:
        return True
    return any(error.type.startswith(kind[:-1]) if kind.endswith("*") else error.type == kind for kind in on)
