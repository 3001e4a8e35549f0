"""Aliases in PostgreSQL."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb

from nova.domain.alias import Alias, Match, Sticky, split_of
from nova.ids import new_token
from nova.store.db import Connection, Database, Queries, Row

_sql = Queries("aliases")


@dataclass(frozen=True, slots=True)
class AliasRecord:
    alias: Alias
    etag: str
    created_at: datetime
    updated_at: datetime


class AliasStore:
    """Every method takes the connection of a running transaction, or one of its own. Writers hold the function's lock."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, function_id: str, name: str, conn: Connection | None = None) -> AliasRecord | None:
        row = await (conn or self._db).one(_sql.get, id=function_id, name=name)
        return None if row is None else _record(row)

    async def page(self, function_id: str, *, after: str | None, limit: int) -> list[AliasRecord]:
        """By name, beginning after ``after``."""
        return [_record(row) for row in await self._db.fetch(_sql.list, id=function_id, after=after, limit=limit)]

    async def insert(self, conn: Connection, function_id: str, alias: Alias) -> bool:
        """False when the name is taken."""
        return await conn.run(_sql.insert, **_values(function_id, alias)) > 0

    async def save(self, conn: Connection, function_id: str, alias: Alias) -> None:
        await conn.run(_sql.save, **_values(function_id, alias))

    async def delete(self, conn: Connection, function_id: str, name: str) -> bool:
        return await conn.run(_sql.delete, id=function_id, name=name) > 0


def alias_of(name: str, data: Mapping[str, Any]) -> Alias:
    """An alias from its row's ``data``."""
    split = split_of({int(version): int(weight) for version, weight in data["split"].items()})
    return Alias(
        name,
        split,
        data.get("description", ""),
        Sticky(**data.get("sticky", {})),
        tuple(Match(**rule) for rule in data.get("match", ())),
    )


def _record(row: Row) -> AliasRecord:
    return AliasRecord(alias_of(row["name"], row["data"]), row["etag"], row["created_at"], row["updated_at"])


def _values(function_id: str, alias: Alias) -> dict[str, Any]:
    data = {
        "split": {str(version): weight for version, weight in alias.split},
        "description": alias.description,
        "sticky": asdict(alias.sticky),
        "match": [asdict(rule) for rule in alias.match],
    }
    return {"id": function_id, "name": alias.name, "data": Jsonb(data), "etag": new_token(9)}
