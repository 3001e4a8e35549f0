"""Messages of the event bus: what a publisher hands over, and what it is told."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from nova.errors import NovaError, invalid
from nova.payload import too_large

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
HOPS = "novahops"
"""The attribute of a message that says how many deliveries led to it, one after the other; without it: none."""
MAX_HOPS = 16
"""The default of ``events.max_hops``."""
_MOST_HOPS = 1_000_000
TOPIC = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
_topic = re.compile(TOPIC[:-1] + r"\Z")


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
    message_id: str | None = None
    """what it is to be called in its topic: a UUID of its own; None: a new one"""


@dataclass(frozen=True, slots=True)
class Published:
    """``sequence`` is the place in the topic; None while a delay runs. ``duplicate``: an earlier message stands for it."""

    id: str
    sequence: int | None
    duplicate: bool = False


def is_topic(name: str) -> bool:
    return _topic.match(name) is not None


def hops_of(attributes: Mapping[str, str]) -> int:
    """How many deliveries led to a message with these attributes. What is no number counts as none."""
    text = attributes.get(HOPS, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < len(str(_MOST_HOPS)) else 0


def counted(attributes: Mapping[str, str], hops: int) -> dict[str, str]:
    """The attributes of a message that so many deliveries led to."""
    others = {name: value for name, value in attributes.items() if name != HOPS}
    return others | {HOPS: str(hops)} if hops else others


def check_hops(message: NewMessage, limit: int) -> None:
    """Raise ``recursion`` when too many deliveries led to it: topics and functions that publish to one another in a circle.

    ``validation_failed`` for a count that is none: it may come from outside, with an event that was sent there.
    """
    text = message.extensions.get(HOPS)
    if text is None:
        return
    if not (text.isascii() and text.isdecimal() and len(text) < len(str(_MOST_HOPS))):
        raise invalid(HOPS, f"a whole number below {_MOST_HOPS}")
    if int(text) > limit:
        raise NovaError("recursion", f"messages have led to one another {limit} times, which is the limit")


def check(message: NewMessage) -> None:
    """Raise ``validation_failed`` or ``payload_too_large`` for what no topic takes."""
    if len(message.payload) > MAX_PAYLOAD:
        raise too_large(MAX_PAYLOAD)
    for name, text in (("ordering_key", message.ordering_key), ("dedup_id", message.dedup_id)):
        if text is not None and not 0 < len(text) <= MAX_KEY:
            raise invalid(name, f"1 to {MAX_KEY} characters")
        _storable(name, text)
    if len(message.headers) > MAX_HEADERS:
        raise invalid("headers", f"at most {MAX_HEADERS}")
    _bounded("headers", message.headers.items())
    named = (("id", message.id), ("source", message.source), ("type", message.type), ("subject", message.subject))
    _bounded("attributes", [*((name, text or "") for name, text in named), *message.extensions.items()])
    _bounded("traceparent", [("traceparent", message.traceparent or ""), ("tracestate", message.tracestate or "")])
    if not 0 <= message.delay_s <= MAX_DELAY_S:
        raise invalid("delay_s", f"from 0 to {MAX_DELAY_S}")


def _bounded(field: str, pairs: Iterable[tuple[str, str]]) -> None:
    size = 0
    for name, text in pairs:
        _storable(field, name)
        _storable(field, text)
        size += len(name.encode()) + len(text.encode())
    if size > MAX_HEADER_BYTES:
        raise invalid(field, f"at most {MAX_HEADER_BYTES} bytes together")


def _storable(field: str, text: str | None) -> None:
    if text is None or (text.isascii() and "\0" not in text):
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(field, "has half of a surrogate pair") from None
    if "\0" in text:
        raise invalid(field, "has a NUL character")
