"""Schema versions. ``migrations/NNNN_name.sql`` run once each, in order, each in a transaction of its own, under a lock.

A migration may only add what code of the version before can live with; what takes away waits for the next release.
"""

import re
from dataclasses import dataclass
from importlib import resources

import psycopg
import structlog

log = structlog.get_logger(__name__)
_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_LOCK = 0x6E6F7661  # "nova"


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str


def available() -> list[Migration]:
    """Every migration this code knows, oldest first."""
    found = []
    for file in resources.files("nova.store").joinpath("migrations").iterdir():
        if match := _FILE.fullmatch(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text()))
    return sorted(found, key=lambda m: m.version)


async def migrate(dsn: str) -> list[Migration]:
    """Bring the schema up to date and return what was applied.

    Raises RuntimeError when the database was written by newer code: it must not be touched by this one.
    """
    known = available()
    applied: list[Migration] = []
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
        try:
            await conn.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations"
                " (version int PRIMARY KEY, name text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())"
            )
            rows = await (await conn.execute("SELECT version FROM schema_migrations")).fetchall()
            done = {row[0] for row in rows}
            if ahead := done - {m.version for m in known}:
                raise RuntimeError(
                    f"the database has schema version {max(ahead)}, this code knows {known[-1].version}: use newer code"
                )
            for migration in known:
                if migration.version in done:
                    continue
                async with conn.transaction():
                    await conn.execute(migration.sql.encode())
                    await conn.execute(
                        "INSERT INTO schema_migrations (version, name) VALUES (%s, %s)",
                        (migration.version, migration.name),
                    )
                log.info("migration applied", version=migration.version, name=migration.name)
                applied.append(migration)
        finally:
            await conn.execute("SELECT pg_advisory_unlock(%s)", (_LOCK,))
    return applied


async def pending(dsn: str) -> list[Migration]:
    """Migrations this code knows and the database has not seen."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        exists = await (await conn.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")).fetchone()
        if not exists or not exists[0]:
            return available()
        done = {row[0] for row in await (await conn.execute("SELECT version FROM schema_migrations")).fetchall()}
    return [m for m in available() if m.version not in done]
