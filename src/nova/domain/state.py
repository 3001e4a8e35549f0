"""State: what a function keeps between its calls, and the rules of its keys and values."""

from dataclasses import dataclass
from datetime import datetime

from nova.domain.identity import Scope
from nova.errors import NovaError, invalid

MAX_KEY = 512
"""Bytes."""
MAX_VALUE = 256 << 10
"""Bytes of the value as JSON."""
MAX_TTL_S = 365 * 86_400
MAX_COUNT = 2**53 - 1
"""Counters stay where every language can read them exactly."""
MAX_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose state: a function with all its versions."""

    scope: Scope
    function_id: str


@dataclass(frozen=True, slots=True)
class StateItem:
    """A key without its value. ``size`` is the value's, in bytes of JSON."""

    key: str
    size: int
    version: int
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class StateValue:
    """``value`` is checked JSON."""

    key: str
    value: bytes
    version: int
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime

    @property
    def is_new(self) -> bool:
        """The write that gave this found no such key."""
        return self.created_at == self.updated_at


def check_key(key: str) -> str:
    """Raise ``validation_failed`` unless this can be a key: 1 to 512 bytes of UTF-8 without control characters."""
    if not _is_text(key) or not 0 < len(key.encode()) <= MAX_KEY:
        raise invalid("key", f"1 to {MAX_KEY} bytes without control characters")
    return key


def check_prefix(prefix: str) -> str:
    if not _is_text(prefix) or len(prefix.encode()) > MAX_KEY:
        raise invalid("prefix", f"at most {MAX_KEY} bytes without control characters")
    return prefix


def check_ttl(ttl_s: int | None) -> None:
    if ttl_s is not None and not 1 <= ttl_s <= MAX_TTL_S:
        raise invalid("ttl_s", f"from 1 to {MAX_TTL_S}")


def check_version(expected: int | None) -> None:
    if expected is not None and not 0 <= expected < 2**63:
        raise invalid("expected_version", "the version that was read, or 0: the key is not there")


def check_by(by: int) -> None:
    if abs(by) > MAX_COUNT:
        raise invalid("by", f"from {-MAX_COUNT} to {MAX_COUNT}")


def no_key(key: str) -> NovaError:
    return NovaError("not_found", f"key {key!r} does not exist")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return not any(character < " " or character == "\x7f" for character in text)
