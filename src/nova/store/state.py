"""State of functions in PostgreSQL."""

import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import psycopg

from nova.domain.state import Owner, StateItem, StateValue, no_key
from nova.errors import NovaError, not_found
from nova.store.db import Database, Queries, Row

_sql = Queries("state")
USAGE_AGE_S = 2.0
"""How old the sum of a function's bytes may be when a write is held against the limit; own writes are added at once."""
_MOST_USAGES = 4096


class StateStore:
    """``limit_bytes`` is what keys and values of one function may take together, asked at each write.

    The limit is held against a sum that each process reads again every two seconds, so that writes do not queue behind one
    another; by what others write in that time it may be passed.
    """

    def __init__(self, db: Database, limit_bytes: Callable[[], int]) -> None:
        self._db = db
        self._limit_bytes = limit_bytes
        self._usage: dict[str, tuple[float, int]] = {}

    async def get(self, owner: Owner, key: str) -> StateValue:
        """Raises ``not_found``."""
        row = await self._db.one(_sql.get, **_of(owner), key=key)
        if row is None:
            raise no_key(key)
        return _value(row)

    async def page(self, owner: Owner, prefix: str, *, after: str | None, limit: int) -> list[StateItem]:
        """Keys that begin with ``prefix``, literally, in the order of their bytes, behind ``after``."""
        rows = await self._db.fetch(
            _sql.list, **_of(owner), prefix=prefix, until=_until(prefix), after=after or "", limit=limit
        )
        return [StateItem(**row) for row in rows]

    async def put(
        self, owner: Owner, key: str, value: bytes, *, ttl_s: int | None = None, expected: int | None = None
    ) -> StateValue:
        """Set a key; without ``ttl_s`` it stays. ``expected``: only over that version, 0 only when there is no such key.

        A new key has version 1. Raises ``version_conflict`` (with ``current_version``), ``quota_exceeded``, and
        ``not_found`` when the function has gone.
        """
        size = len(key.encode()) + len(value)
        await self._reserve(owner, size)
        query = _sql.put if expected is None else _sql.create if expected == 0 else _sql.replace
        values = {"key": key, "value": value.decode(), "size": size, "ttl_s": ttl_s, "expected": expected}
        row = await self._write(query, owner, values)
        if row is None:
            raise await self._conflict(owner, key, expected)
        return _value(row)

    async def increment(self, owner: Owner, key: str, by: int, *, ttl_s: int | None = None) -> StateValue:
        """Add to a whole number, 0 when there is none, in one step. ``ttl_s`` None leaves the key's end as it is.

        Raises ``invalid_state`` when the value is no whole number, or the sum above 2⁵³-1.
        """
        await self._reserve(owner, len(key.encode()) + 16)
        row = await self._write(_sql.increment, owner, {"key": key, "by": by, "ttl_s": ttl_s})
        if row is None:
            raise NovaError("invalid_state", f"key {key!r} is no whole number, or would be too large a one")
        return _value(row)

    async def delete(self, owner: Owner, key: str, *, expected: int | None = None) -> None:
        """Raises ``not_found``; ``version_conflict`` when the key has another version than ``expected``."""
        if await self._db.run(_sql.delete, **_of(owner), key=key, expected=expected) == 0:
            if expected is not None:
                raise await self._conflict(owner, key, expected)
            raise no_key(key)
        self._usage.pop(owner.function_id, None)

    async def delete_prefix(self, owner: Owner, prefix: str) -> int:
        """Every key that begins with ``prefix``; how many."""
        self._usage.pop(owner.function_id, None)
        return await self._db.run(_sql.delete_prefix, **_of(owner), prefix=prefix, until=_until(prefix))

    async def sweep(self, before: datetime, limit: int) -> int:
        """Remove rows whose time was up before; how many."""
        return await self._db.run(_sql.sweep, before=before, limit=limit)

    async def _write(self, query: str, owner: Owner, values: dict[str, Any]) -> Row | None:
        try:
            return await self._db.one(query, **_of(owner), **values)
        except psycopg.errors.ForeignKeyViolation:
            raise not_found("function", owner.function_id) from None

    async def _conflict(self, owner: Owner, key: str, expected: int | None) -> NovaError:
        row = await self._db.one(_sql.get, **_of(owner), key=key)
        current = row["version"] if row is not None else 0
        detail = f"key {key!r} has version {current}, not {expected}"
        return NovaError("version_conflict", detail, extra={"current_version": current})

    async def _reserve(self, owner: Owner, size: int) -> None:
        """Count ``size`` bytes more. What was counted since the sum was read may have been overwritten: ask again before
        anything is refused."""
        limit = self._limit_bytes()
        read_at, used = self._usage.get(owner.function_id, (0.0, limit))
        if time.monotonic() - read_at >= USAGE_AGE_S or used + size > limit:
            row = await self._db.one(_sql.usage, function=owner.function_id)
            read_at, used = time.monotonic(), row["bytes"] if row is not None else 0
        if used + size > limit:
            detail = f"the function's state would be larger than {limit} bytes (limits.state_mb)"
            raise NovaError("quota_exceeded", detail, extra={"limit_bytes": limit})
        if len(self._usage) >= _MOST_USAGES:
            self._usage.clear()
        self._usage[owner.function_id] = read_at, used + size


def _of(owner: Owner) -> dict[str, str]:
    return {"tenant": owner.scope.tenant, "namespace": owner.scope.namespace, "function": owner.function_id}


def _until(prefix: str) -> str | None:
    """A text behind every key with this prefix, as its bytes are ordered; None: there is none."""
    for end in range(len(prefix), 0, -1):
        following = ord(prefix[end - 1]) + 1
        if following == 0xD800:
            following = 0xE000
        if following <= 0x10FFFF:
            return prefix[: end - 1] + chr(following)
    return None


def _value(row: Row) -> StateValue:
    return StateValue(**{**row, "value": row["value"].encode()})
