"""Identifiers. Every id of the platform is a UUIDv7 (RFC 9562) in text form: sortable by time, unique without a server."""

import secrets

from uuid_utils import uuid7


def new_id() -> str:
    """A fresh UUIDv7 as 36 characters of text."""
    return str(uuid7())


def new_token(nbytes: int = 32) -> str:
    """A URL-safe random secret with ``nbytes`` bytes of entropy."""
    return secrets.token_urlsafe(nbytes)
