"""Schema versions. ``migrations/NNNN_name.sql`` run once each, in order, each in a transaction of its own, under a lock.

A migration may only add what code of the version before can live with; what takes away waits for the next release. So code
works on its own schema and on the next one: processes of two releases run side by side while they are replaced one by one. A
migration that older code can live with too says so in a line ``-- min_code: NNNN``.
"""

import re
from dataclasses import dataclass
from importlib import resources

import psycopg
import structlog

log = structlog.get_logger(__name__)
_FILE = re.compile(r"(\d{4})_(\w+)\.sql")
_LOCK = 0x6E6F7661  # "nova"
_MIN_CODE = re.compile(r"^-- min_code: (\d{4})$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Migration:
    version: int
    name: str
    sql: str

    @property
    def min_code(self) -> int:
        """The oldest code that works on the schema after this migration, as the newest version it knows."""
        said = _MIN_CODE.search(self.sql)
        return int(said[1]) if said else self.version - 1


def available() -> list[Migration]:
    """Every migration this code knows, oldest first."""
    found = []
    for file in resources.files("nova.store").joinpath("migrations").iterdir():
        if match := _FILE.fullmatch(file.name):
            found.append(Migration(int(match[1]), match[2], file.read_text()))
    return sorted(found, key=lambda m: m.version)


async def migrate(dsn: str) -> list[Migration]:
    """Bring the schema up to date and return what was applied.

    Raises RuntimeError when the database was written by code so much newer that this one cannot work on it.
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
            await conn.execute("ALTER TABLE schema_migrations ADD COLUMN IF NOT EXISTS min_code int NOT NULL DEFAULT 0")
            done: dict[int, int] = dict(
                await (await conn.execute("SELECT version, min_code FROM schema_migrations")).fetchall()
            )
            ahead = done.keys() - {m.version for m in known}
            if any(done[version] > known[-1].version for version in ahead):
                raise RuntimeError(
                    f"the database has schema version {max(ahead)}, this code knows {known[-1].version}: use newer code"
                )
            if ahead:
                log.warning("the schema is ahead of this code, which can work on it", schema=max(ahead))
            for migration in known:
                if migration.version in done:
                    continue
                async with conn.transaction():
                    await conn.execute(migration.sql.encode())
                    await conn.execute(
                        "INSERT INTO schema_migrations (version, name, min_code) VALUES (%s, %s, %s)",
                        (migration.version, migration.name, migration.min_code),
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
