"""What a source of events is: one module for each type of trigger, one interface.

A module of a type has a pydantic model ``Config`` (``api.table.Model``: unknown fields are refused) and
``make(config, context) -> Source``. A field of ``Config`` that is a URL with a password is annotated :data:`SecretUrl`, any
other secret :data:`SecretText`: both are stored, and masked in every answer. The registry loads modules when they are first
needed, since the libraries of brokers cost memory.

A source acknowledges, or moves its position, after :meth:`Sink.deliver` has returned, whatever the verdict is: at least once.
"""

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Protocol

import httpx
import msgspec
from pydantic import StringConstraints

from nova import payload
from nova.clock import Clock
from nova.config import TriggerSettings
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.security.egress import Guard

SECRET = "secret"
SECRET_URL = "secret_url"
SecretText = Annotated[str, StringConstraints(min_length=1, max_length=4096), SECRET]
"""Masked as a whole."""
SecretUrl = Annotated[str, StringConstraints(min_length=1, max_length=4096), SECRET_URL]
"""Only the password in it is masked. Addresses with several hosts are fine."""


class SourceError(Exception):
    """The source cannot work as things are. The text is for people: it names what is wrong, and holds no password.

    ``retry_after_s``: another attempt before is of no use.
    """

    def __init__(self, text: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Verdict(StrEnum):
    """What became of an event. All of them are final: the source acknowledges."""

    SUCCEEDED = "succeeded"
    DEAD_LETTERED = "dead_lettered"
    DROPPED = "dropped"
    FILTERED = "filtered"
    DUPLICATE = "duplicate"
    """It was delivered before, and only the acknowledgement got lost."""


@dataclass(slots=True)
class SourceEvent:
    """One event, as the source got it.

    ``id`` is the same whenever the source delivers the event again, and no other event of this trigger ever has it.
    ``data`` is checked JSON on one line (:mod:`nova.payload`; :func:`body` makes it of bytes). ``time`` None: now.
    ``ordering_key``: events that share one are delivered one at a time, in the order in which they were handed over.
    ``redelivered``: the source knows, or fears, that it was delivered before. ``extensions``: further attributes of the
    envelope, names of lower-case letters and digits.
    """

    id: str
    type: str
    source: str
    data: bytes
    subject: str | None = None
    time: datetime | None = None
    ordering_key: str | None = None
    redelivered: bool = False
    extensions: Mapping[str, str] = field(default_factory=dict)


class Sink(Protocol):
    """Where a source puts what it gets."""

    async def deliver(self, event: SourceEvent) -> Verdict:
        """Returns when the target has succeeded, or when the event was given up as the trigger's ``on_error`` says.

        Waits while as many deliveries run as the trigger allows, so that a source that awaits it is slowed down. Call it for
        at most :attr:`Context.window` events at once. Raises only CancelledError, and LeaseLost when another process is in
        charge by now: then do not acknowledge, let it pass.
        """
        ...

    async def position(self) -> bytes | None:
        """What was saved last, by any process; None: nothing yet."""
        ...

    async def save(self, position: bytes) -> None:
        """Remember how far the source is; at most 1 MiB, committed when it returns. Raises LeaseLost when another process is
        in charge by now."""
        ...

    def connected(self) -> None:
        """The source is up: the trigger's state becomes ``running``."""
        ...


class Source(Protocol):
    """Gets events from somewhere. One object serves one term: after an error another is made."""

    async def check(self) -> None:
        """Connect, read nothing, disconnect. Raises :class:`SourceError`, or OSError."""
        ...

    async def run(self, sink: Sink) -> None:
        """Connect and deliver until cancelled; disconnect when cancelled.

        What it raises puts the trigger into the state ``error``; the frame makes a new source and starts it again, later
        each time until it has been connected. It need not reconnect by itself.
        """
        ...

    async def lag(self) -> int | None:
        """Messages that wait at the source; None when it cannot say. Asked every few seconds while :meth:`run` runs; an
        error is taken for None."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a source may use. ``window``: so many events may be under way at once; it is the prefetch of a broker.

    ``http`` makes a client that reaches public addresses and ``egress.allow`` only; close it. ``guard`` says which addresses
    those are, for every other protocol (:func:`nova.events.triggers.address.dial`).
    """

    trigger_id: str
    name: str
    scope: Scope
    window: int
    clock: Clock
    settings: TriggerSettings
    http: Callable[[float], httpx.AsyncClient]
    guard: Guard
    node: str = ""

    @property
    def source(self) -> str:
        """The ``source`` of the events' envelopes."""
        return f"/triggers/{self.name}"


def body(raw: bytes) -> Any:
    """The bytes of a message as a member of ``data``: the JSON they are, else ``{"b64": …}``. For ``payload.encode``."""
    try:
        return msgspec.Raw(payload.check(raw, limit=len(raw), empty=b"null"))
    except NovaError:
        return {"b64": base64.b64encode(raw).decode()}
