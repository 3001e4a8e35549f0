"""Opaque keyset cursors: where a list goes on, stable while rows are inserted."""

import base64
import binascii
from collections.abc import Sequence

import msgspec

from nova.errors import NovaError

Value = str | int
_encoder = msgspec.json.Encoder()


def encode(values: Sequence[Value]) -> str:
    """The cursor after a row with these sort values."""
    return base64.urlsafe_b64encode(_encoder.encode(list(values))).decode().rstrip("=")


def decode(cursor: str | None, *kinds: type[Value]) -> tuple[Value, ...] | None:
    """The sort values in a cursor, of the given types; None for the first page. Raises ``invalid_cursor``."""
    if cursor is None:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        values = msgspec.json.decode(raw, type=list[Value])
    except (binascii.Error, ValueError):
        raise _bad() from None
    if len(values) != len(kinds) or not all(type(v) is k for v, k in zip(values, kinds, strict=True)):
        raise _bad()
    if any(isinstance(v, str) and "\x00" in v for v in values):
        raise _bad()
    return tuple(values)


def _bad() -> NovaError:
    return NovaError("invalid_cursor", "take the cursor from next_cursor of the page before")
