"""The envelope of whatever reaches a function without a person asking: a CloudEvents 1.0 object, in its JSON format.

``data`` is put in as the bytes that were sent, so a payload reaches its function unchanged.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from nova import payload
from nova.clock import rfc3339


def build(
    *,
    id: str,
    source: str,
    type: str,
    time: datetime,
    data: bytes,
    subject: str | None = None,
    extensions: Mapping[str, Any] | None = None,
) -> bytes:
    """``data`` is checked JSON. ``extensions`` are further attributes; those that are None are left out."""
    event: dict[str, Any] = {"specversion": "1.0", "id": id, "source": source, "type": type}
    if subject is not None:
        event["subject"] = subject
    event["time"] = rfc3339(time)
    event["datacontenttype"] = "application/json"
    if extensions:
        event |= {name: value for name, value in extensions.items() if value is not None}
    event["data"] = msgspec.Raw(data)
    return payload.encode(event)


def batch(events: list[bytes]) -> bytes:
    """Several envelopes as one input: a list of them."""
    return b"[" + b",".join(events) + b"]"
