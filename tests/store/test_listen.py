"""LISTEN: notifications arrive, also after the connection was cut."""

import asyncio

import pytest

from nova.store.db import Database
from nova.store.listen import Channel, Listener

pytestmark = pytest.mark.anyio


class Ear:
    def __init__(self) -> None:
        self.heard: list[str] = []
        self._news = asyncio.Event()

    def __call__(self, payload: str = "back") -> None:
        self.heard.append(payload)
        self._news.set()

    async def until(self, payload: str) -> None:
        async with asyncio.timeout(10):
            while payload not in self.heard:
                self._news.clear()
                await self._news.wait()


async def notify(database: Database, channel: str, payload: str) -> None:
    async with database.transaction() as conn:
        await conn.notify(channel, payload)


async def test_each_channel_reaches_its_own_callbacks(database: Database) -> None:
    listener, functions, keys = Listener(database.dsn), Ear(), Ear()
    listener.on(Channel.FUNCTIONS, functions)
    await listener.start()
    listener.on(Channel.KEYS, keys)
    try:
        assert listener.connected
        await notify(database, Channel.FUNCTIONS, "f")
        await notify(database, Channel.KEYS, "k")
        await functions.until("f")
        await keys.until("k")
        assert (functions.heard, keys.heard) == (["f"], ["k"])
    finally:
        await listener.close()
    assert not listener.connected


async def test_a_callback_that_fails_does_not_silence_the_others(database: Database) -> None:
    listener, ear = Listener(database.dsn), Ear()

    def broken(payload: str) -> None:
        raise RuntimeError(payload)

    listener.on(Channel.WORK, broken)
    listener.on(Channel.WORK, ear)
    await listener.start()
    try:
        await notify(database, Channel.WORK, "1")
        await notify(database, Channel.WORK, "2")
        await ear.until("2")
        assert ear.heard == ["1", "2"]
    finally:
        await listener.close()


async def test_a_cut_connection_comes_back_and_says_so(database: Database) -> None:
    """DB1: a change acts on every node also after the listener's connection was cut."""
    listener, ear, back = Listener(database.dsn), Ear(), Ear()
    listener.on(Channel.FUNCTIONS, ear)
    listener.on_reconnect(back)
    await listener.start()
    try:
        for round_ in ("1", "2"):
            back.heard.clear()
            killed = await database.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'nova listener' AND datname = current_database()"
            )
            assert len(killed) == 1
            await back.until("back")
            assert listener.connected
            await notify(database, Channel.FUNCTIONS, round_)
            await ear.until(round_)
    finally:
        await listener.close()


def test_unknown_channels_are_a_mistake(pg_dsn: str) -> None:
    with pytest.raises(ValueError):
        Listener(pg_dsn).on("nova_typo", lambda _: None)
