"""Opaque keyset cursors: where a list goes on, stable while rows are inserted."""

import base64
import binascii
import uuid
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TypeVar

import msgspec

from nova.errors import NovaError

Value = str | int
R = TypeVar("R")
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


def start(cursor: str | None, *, uuid_key: bool = False) -> tuple[datetime, str] | None:
    """Where a newest-first list goes on: (created_at, key) of the last row shown; None for the first page."""
    values = decode(cursor, str, str)
    if values is None:
        return None
    try:
        if uuid_key:
            row_id(str(values[1]))
        return datetime.fromisoformat(str(values[0])), str(values[1])
    except ValueError:
        raise _bad() from None


def row_id(text: str) -> str:
    """An id that stood in a cursor. Raises ``invalid_cursor``."""
    try:
        return str(uuid.UUID(text))
    except ValueError:
        raise _bad() from None


def below(cursor: str | None) -> str | None:
    """The id at which a list that is sorted by nothing else goes on; None for the first page. Raises ``invalid_cursor``."""
    values = decode(cursor, str)
    return None if values is None else row_id(str(values[0]))


def cut(rows: Sequence[R], limit: int, position: Callable[[R], tuple[datetime, str]]) -> tuple[Sequence[R], str | None]:
    """The rows of one page and the cursor of the next, from up to ``limit`` + 1 rows of a newest-first list."""
    if len(rows) <= limit:
        return rows, None
    created_at, key = position(rows[limit - 1])
    return rows[:limit], encode([created_at.isoformat(), key])


def _bad() -> NovaError:
    return NovaError("invalid_cursor", "take the cursor from next_cursor of the page before")
