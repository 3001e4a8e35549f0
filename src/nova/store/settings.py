"""The ``config`` table: settings that an administrator changed while the platform runs."""

from collections.abc import Mapping
from typing import Any

from psycopg.types.json import Jsonb

from nova.store.db import Connection, Database, Queries
from nova.store.listen import Channel

_sql = Queries("settings")


class SettingsStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def all(self) -> dict[str, Any]:
        """Every key that has a row, with its value as JSON data."""
        return {row["key"]: row["value"] for row in await self._db.fetch(_sql.all_settings)}

    async def put(self, conn: Connection, values: Mapping[str, Any], by: str) -> None:
        for key, value in values.items():
            await conn.run(_sql.put_setting, key=key, value=Jsonb(value), by=by)
        await conn.notify(Channel.CONFIG, ",".join(values)[:4000])

    async def delete(self, conn: Connection, key: str) -> bool:
        """False when the key had no row."""
        gone = await conn.run(_sql.delete_setting, key=key)
        await conn.notify(Channel.CONFIG, key)
        return gone > 0
