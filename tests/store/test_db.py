"""The pool of connections through an outage."""

import asyncio
from pathlib import Path

import psycopg
import pytest

from nova.store.db import Database
from nova.store.embedded import EmbeddedPostgres
from nova.store.listen import Listener

pytestmark = pytest.mark.anyio


async def end_connections(dsn: str) -> None:
    """Do to every connection of the platform what a restart of the server does."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
        await admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'nova%'"
        )


async def test_dead_connections_are_replaced_before_anybody_gets_one(pg_dsn: str) -> None:
    """GW12: when the listener is back, no request meets a connection that the outage left behind."""
    async with Database(pg_dsn, min_conns=4, max_conns=4) as db:
        listener, refreshed = Listener(pg_dsn), asyncio.Event()
        await listener.start()
        listener.on_reconnect(db.refresh)
        listener.on_reconnect(refreshed.set)
        try:
            await end_connections(pg_dsn)
            async with asyncio.timeout(10):
                await refreshed.wait()
            await asyncio.gather(*(db.one("SELECT pg_sleep(0.05)") for _ in range(8)))
        finally:
            await listener.close()


async def test_who_waits_is_served_as_soon_as_the_server_is_back(tmp_path: Path) -> None:
    """A request that came in the outage needs no second one to be noticed."""
    server = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(server.start)
    async with Database(server.dsn, min_conns=1, max_conns=1) as db:
        await asyncio.to_thread(server.stop)
        assert not await db.ping(), "the connection it had is dead"
        waiting = asyncio.create_task(db.one("SELECT 1 AS n"))
        while not db._pool.get_stats()["requests_waiting"]:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(server.start)
        db.refresh()
        assert await waiting == {"n": 1}
    await asyncio.to_thread(server.stop)
