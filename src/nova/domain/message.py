"""Messages of the event bus: what a publisher hands over, and what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

MAX_BATCH = 500
"""Messages published at once."""
MAX_PAYLOAD = 1 << 20
"""Bytes of a message's payload."""
MAX_KEY = 256
"""Characters of an ordering key, and of a dedup_id."""
MAX_HEADERS = 64
MAX_HEADER_BYTES = 16 << 10
"""Names and values of a message's headers, or its CloudEvents attributes, together."""
MAX_DELAY_S = 365 * 86_400
TOPIC = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


@dataclass(frozen=True, slots=True)
class NewMessage:
    """``payload`` is checked JSON on one line (:mod:`nova.payload`). ``ordering_key``: messages that share one are delivered one
    at a time, in their order. Equal ``dedup_id``s within the topic's window are one message.

    ``id`` … ``time`` and ``extensions`` are CloudEvents attributes that the publisher gave; None: Nova's own.
    """

    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    ordering_key: str | None = None
    dedup_id: str | None = None
    delay_s: float = 0.0
    id: str | None = None
    source: str | None = None
    type: str | None = None
    subject: str | None = None
    time: datetime | None = None
    extensions: Mapping[str, str] = field(default_factory=dict)
    traceparent: str | None = None
    tracestate: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """``sequence`` is the place in the topic; None while a delay runs. ``duplicate``: an earlier message stands for it."""

    id: str
    sequence: int | None
    duplicate: bool = False
