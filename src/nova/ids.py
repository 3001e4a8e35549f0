"""Identifiers. Every id of the platform is a UUIDv7 (RFC 9562) in text form: sortable by time, unique without a server."""

import secrets
from datetime import datetime
from uuid import UUID

from uuid_utils import uuid7


def new_id() -> str:
    """A fresh UUIDv7 as 36 characters of text."""
    return str(uuid7())


def first_id(at: datetime) -> str:
    """Below every id that was made in the millisecond of ``at`` or later, and above those made before."""
    return str(UUID(int=int(at.timestamp() * 1000) << 80))


def new_token(nbytes: int = 32) -> str:
    """A URL-safe random secret with ``nbytes`` bytes of entropy."""
    return secrets.token_urlsafe(nbytes)
