"""Schema versions: applied once, in order, refused when newer."""

import asyncio

import psycopg
import pytest

from nova.store import migrate

pytestmark = pytest.mark.anyio


async def test_fresh_database_gets_every_migration_once(empty_dsn: str) -> None:
    applied = await migrate.migrate(empty_dsn)
    assert [m.version for m in applied] == [m.version for m in migrate.available()]
    assert await migrate.migrate(empty_dsn) == []
    assert await migrate.pending(empty_dsn) == []


async def test_six_processes_at_once_apply_each_migration_once(empty_dsn: str) -> None:
    """DB4: each migration runs once, however many start together."""
    results = await asyncio.gather(*(migrate.migrate(empty_dsn) for _ in range(6)))
    assert sorted(len(applied) for applied in results) == [0, 0, 0, 0, 0, len(migrate.available())]


async def test_pending_names_what_is_missing(empty_dsn: str) -> None:
    assert [m.version for m in await migrate.pending(empty_dsn)] == [m.version for m in migrate.available()]


async def test_code_works_on_the_next_schema_and_refuses_the_one_after(pg_dsn: str) -> None:
    newest = migrate.available()[-1].version

    async def ahead(version: int) -> None:
        async with await psycopg.AsyncConnection.connect(pg_dsn, autocommit=True) as conn:
            await conn.execute(
                "INSERT INTO schema_migrations (version, name, min_code) VALUES (%s, 'later', %s)",
                (version, version - 1),
            )

    await ahead(newest + 1)
    assert await migrate.migrate(pg_dsn) == []
    await ahead(newest + 2)
    with pytest.raises(RuntimeError, match=f"schema version {newest + 2}.*use newer code"):
        await migrate.migrate(pg_dsn)


async def test_every_unique_key_of_a_scoped_table_starts_with_the_tenant(pg_dsn: str) -> None:
    """DB5: uniqueness never crosses tenants."""
    exceptions = {"api_keys": {"key_hash", "previous_hash"}, "blobs": {"sha256"}}
    with psycopg.connect(pg_dsn) as conn:
        rows = conn.execute(
            """SELECT t.relname, array_agg(a.attname ORDER BY k.ord)
               FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
               JOIN pg_namespace n ON n.oid = t.relnamespace AND n.nspname = 'public'
               CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, ord)
               JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.attnum
               WHERE i.indisunique AND NOT i.indisprimary
               AND EXISTS (SELECT 1 FROM pg_attribute x WHERE x.attrelid = t.oid AND x.attname = 'tenant_id')
               GROUP BY t.relname, i.indexrelid"""
        ).fetchall()
    assert rows
    for table, columns in rows:
        if set(columns) <= exceptions.get(table, set()):
            continue
        assert columns[0] == "tenant_id", f"{table}{columns}"
