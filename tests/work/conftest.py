import uuid
from collections.abc import AsyncIterator, Callable

import psycopg
import pytest

from nova.domain.identity import Scope
from nova.service import Background
from nova.store.db import Database
from nova.work.queue import enqueue


class Ears:
    """A real LISTEN connection. ``deaf`` drops what arrives, as a cut connection would."""

    def __init__(self, conn: psycopg.AsyncConnection) -> None:
        self._conn = conn
        self._callbacks: list[tuple[str, Callable[[str], None]]] = []
        self.deaf = False

    def on(self, channel: str, callback: Callable[[str], None]) -> None:
        self._callbacks.append((channel, callback))

    def on_reconnect(self, callback: Callable[[], None]) -> None:
        pass

    async def listen(self) -> None:
        async for notify in self._conn.notifies():
            for channel, callback in self._callbacks:
                if channel == notify.channel and not self.deaf:
                    callback(notify.payload)


@pytest.fixture
async def ears(pg_dsn: str) -> AsyncIterator[Ears]:
    async with await psycopg.AsyncConnection.connect(pg_dsn, autocommit=True) as conn:
        await conn.execute("LISTEN nova_work")
        ears, tasks = Ears(conn), Background("test")
        tasks.spawn("listen", ears.listen())
        yield ears
        await tasks.close()


async def add(
    db: Database, *, kind: str = "thing", tenant: str = "default", delay_s: float = 0, **payload: object
) -> str:
    """Enqueue one item; returns its subject."""
    subject = str(uuid.uuid4())
    async with db.transaction() as conn:
        await enqueue(conn, kind, Scope(tenant), subject, payload, delay_s=delay_s)
    return subject
