"""The keeper of the embedded database."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from nova.store.embedded import EmbeddedPostgres
from nova.store.keeper import Keeper

pytestmark = pytest.mark.anyio


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path)
    keeper = Keeper(server)
    await keeper.start()
    try:
        yield server
    finally:
        await keeper.close()
        assert server.pid is None


async def kill(server: EmbeddedPostgres) -> int:
    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


async def back(server: EmbeddedPostgres, *former: int) -> int:
    """The pid of the next server, once it answers with what was committed."""
    async with asyncio.timeout(30):
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(server.dsn, connect_timeout=2) as conn:
                    row = await (await conn.execute("SELECT n FROM kept")).fetchone()
                    pid = server.pid
                    if pid is not None and pid not in former:
                        assert row == (42,)
                        return pid
            except psycopg.OperationalError:
                pass
            await asyncio.sleep(0.05)


async def commit(server: EmbeddedPostgres) -> None:
    async with await psycopg.AsyncConnection.connect(server.dsn) as conn:
        await conn.execute("CREATE TABLE kept AS SELECT 42 AS n")


async def test_a_killed_server_comes_back_each_time(kept: EmbeddedPostgres) -> None:
    await commit(kept)
    first = await kill(kept)
    second = await back(kept, first)
    await kill(kept)
    await back(kept, first, second)


async def test_an_adopted_server_is_watched_too(tmp_path: Path) -> None:
    former = EmbeddedPostgres(tmp_path)
    former.start()
    assert former._users is not None
    former._users.close()  # as the kernel does for a daemon that was killed
    server = EmbeddedPostgres(tmp_path)
    keeper = Keeper(server)
    await keeper.start()
    try:
        assert server.pid == former.pid
        await commit(server)
        killed = await kill(server)
        assert former._process is not None
        await asyncio.to_thread(former._process.wait)
        await back(server, killed)
    finally:
        await keeper.close()


async def test_a_server_that_cannot_start_is_tried_again(kept: EmbeddedPostgres) -> None:
    await commit(kept)
    settings = kept._data / "postgresql.conf"
    good = settings.read_text()
    settings.write_text(good + "\nno_such_setting = 1\n")
    first = await kill(kept)
    async with asyncio.timeout(30):
        while "no_such_setting" not in (kept._data.parent / "postgres.log").read_text():
            await asyncio.sleep(0.05)
    settings.write_text(good)
    await back(kept, first)
