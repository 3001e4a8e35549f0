"""A PostgreSQL database as a source of events: notifications, and tables that are read without passing anything over."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from nova.events.triggers import postgres
from nova.events.triggers.base import SourceError
from nova.events.triggers.postgres import Config
from nova.store.db import Database
from tests.events.triggers.sources import Kept, running
from tests.events.triggers.support import Tcp, context, over_tcp

pytestmark = pytest.mark.anyio


@pytest.fixture
async def tcp(pg_dsn: str) -> AsyncIterator[Tcp]:
    async with over_tcp(pg_dsn) as opened:
        yield opened


def reading(tcp: Tcp, **config: Any) -> postgres.Postgres:
    if "channel" not in config:
        config = {"table": "orders", "cursor_column": "id", "poll_s": 0.1, **config}
    return postgres.make(Config(dsn=tcp.dsn, **config), context())


def rows(sink: Kept) -> list[Any]:
    return [data["row"]["n"] for data in sink.data]


async def test_notifications_arrive_as_they_are_sent(tcp: Tcp, database: Database) -> None:
    sink = Kept()
    async with running(lambda: reading(tcp, channel='My "Channel"'), sink):
        for text in ('{"a": 1}', "plain"):
            await database.run("SELECT pg_notify('My \"Channel\"', %(text)s)", text=text)
        await sink.have(2)
    assert sink.data == [
        {"channel": 'My "Channel"', "op": "notify", "row": {"a": 1}},
        {"channel": 'My "Channel"', "op": "notify", "row": {"b64": "cGxhaW4="}},
    ]
    assert len({event.id for event in sink.events}) == 2


async def test_a_table_is_read_from_now_on_across_restarts_and_lost_connections(tcp: Tcp, database: Database) -> None:
    await database.run("CREATE TABLE orders (id serial PRIMARY KEY, n int)")
    await database.run("INSERT INTO orders (n) VALUES (-1)")
    sink = Kept(lambda _event: asyncio.sleep(0.001))
    async with running(lambda: reading(tcp), sink):
        await database.run("INSERT INTO orders (n) SELECT generate_series(1, 30)")
        await sink.have(30)
        tcp.cut()
        await database.run("INSERT INTO orders (n) VALUES (31)")
        await sink.until(lambda: 31 in rows(sink))
    await database.run("INSERT INTO orders (n) VALUES (32)")
    async with running(lambda: reading(tcp), sink):
        await sink.until(lambda: 32 in rows(sink))
        await database.run("UPDATE orders SET n = n + 0")  # not a new row: its key and its place are the same
        await database.run("INSERT INTO orders (n) VALUES (33)")
        await sink.until(lambda: 33 in rows(sink))
    # what was delivered right before the end, and not yet remembered, may come again under the same id
    once = {event.id: data["row"]["n"] for event, data in zip(sink.events, sink.data, strict=True)}
    assert sorted(once.values()) == list(range(1, 34))
    assert sink.data[0] == {"table": "orders", "op": "upsert", "row": {"id": 2, "n": 1}}
    assert sink.most_at_once == 10


async def test_a_row_that_is_committed_late_is_not_passed_over(tcp: Tcp, database: Database, pg_dsn: str) -> None:
    """Its number is smaller than that of rows that were there before it."""
    await database.run("CREATE TABLE orders (id serial PRIMARY KEY, n int)")
    sink = Kept()
    async with running(lambda: reading(tcp, start="earliest"), sink):
        async with await psycopg.AsyncConnection.connect(pg_dsn) as slow:
            await slow.execute("INSERT INTO orders (n) VALUES (1)")
            await database.run("INSERT INTO orders (n) VALUES (2), (3)")
            await asyncio.sleep(0.3)
            assert rows(sink) == []
            await slow.commit()
        await sink.have(3)
        # drawn early, written late: nothing of it was there when its successor was delivered
        drawn = await database.one("SELECT nextval('orders_id_seq') AS id")
        assert drawn is not None
        await database.run("INSERT INTO orders (n) VALUES (5)")
        await sink.have(4)
        await database.run("INSERT INTO orders (id, n) VALUES (%(id)s, 4)", id=drawn["id"])
        await sink.have(5)
    assert rows(sink) == [1, 2, 3, 5, 4]


async def test_times_as_a_cursor_tell_of_new_and_changed_rows(
    tcp: Tcp, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many rows have one time, and what is remembered is bounded."""
    monkeypatch.setattr(postgres, "_READ", 7)
    monkeypatch.setattr(postgres, "MAX_REMEMBERED", 12)
    await database.run("CREATE SCHEMA shop")
    await database.run("CREATE TABLE shop.orders (n int, changed_at timestamptz NOT NULL)")
    await database.run("INSERT INTO shop.orders SELECT n, '2026-01-01Z' FROM generate_series(1, 20) n")
    sink = Kept()
    config = {"table": "shop.orders", "cursor_column": "changed_at", "start": "earliest"}
    async with running(lambda: reading(tcp, **config), sink):
        await sink.have(20)
        await database.run(
            "INSERT INTO shop.orders SELECT n, '2026-01-02Z'::timestamptz + n * interval '1 s' FROM generate_series(21, 60) n"
        )
        await sink.have(60)
        await database.run("UPDATE shop.orders SET changed_at = '2026-02-01Z' WHERE n = 5")
        await sink.have(61)
        await asyncio.sleep(0.3)
    assert sorted(rows(sink)[:20]) == list(range(1, 21))
    assert rows(sink)[20:] == [*range(21, 61), 5]


async def test_what_cannot_be_read_says_why_without_the_password(tcp: Tcp, database: Database) -> None:
    await database.run("CREATE TABLE orders (n int)")
    with pytest.raises(SourceError, match="id") as failure:
        await reading(tcp).check()
    assert "hidden" not in str(failure.value)
    with pytest.raises(SourceError, match="missing"):
        await reading(tcp, table="missing").check()
    for dsn, why in (
        ("postgresql:///db", "host"),
        ("host=/run/postgresql dbname=x", "host"),
        ("postgresql://h/db?sslkey=/etc/key", "sslkey"),
        ("postgresql://h/db?service=x", "service"),
        ("what", "PostgreSQL URL"),
    ):
        with pytest.raises(ValueError, match=why):
            Config(dsn=dsn, channel="c")
    for config in (
        {},
        {"channel": "c", "table": "t", "cursor_column": "n"},
        {"table": "t"},
        {"channel": "c", "poll_s": 1},
    ):
        with pytest.raises(ValueError, match=r"channel|cursor_column"):
            Config.model_validate({"dsn": tcp.dsn, **config})
