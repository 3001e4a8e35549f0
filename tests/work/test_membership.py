"""A process in the list of nodes: from its start to its end, drained and forgotten."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.nodes import NodeRecord, NodeStore
from nova.work import membership
from nova.work.membership import Membership, advertised, node_name

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def member(db: Database, name: str = "n", plane: str = "comet", **more: Any) -> AsyncIterator[Membership]:
    listener = Listener(db.dsn)
    await listener.start()
    joined = Membership(
        NodeStore(db), listener, plane=plane, name=name, address="127.0.0.1:9090", info={"cpu_cores": 2}, **more
    )
    await joined.start()
    try:
        yield joined
    finally:
        await joined.close()
        await listener.close()


async def found(db: Database, node_id: str) -> NodeRecord:
    record = await NodeStore(db).get(node_id)
    assert record is not None
    return record


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not await condition():
            await asyncio.sleep(0.02)


async def test_a_process_is_listed_while_it_lives(database: Database) -> None:
    store = NodeStore(database)
    async with member(database, "a", labels={"zone": "x"}) as a, member(database, "b", plane="corona") as b:
        assert a.id != b.id
        (record,) = await store.alive("comet")
        assert (record.id, record.name, record.address, record.state) == (a.id, "a", "127.0.0.1:9090", "active")
        assert (record.labels, record.info) == ({"zone": "x"}, {"cpu_cores": 2})
        assert (record.lease_until - record.last_heartbeat).total_seconds() == membership.RENEW_S * 3
        assert await store.counts() == {("comet", "active"): 1, ("corona", "active"): 1}
    assert await store.alive("comet") == []
    assert await store.get(a.id) is None


async def test_it_renews_with_its_load_and_comes_back_when_its_row_was_lost(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "RENEW_S", 0.02)
    load = {"inflight": 0}

    def current() -> Mapping[str, Any]:
        return load

    async with member(database, load=current) as joined:
        first = await found(database, joined.id)
        load["inflight"] = 7

        async def renewed() -> bool:
            now = await NodeStore(database).get(joined.id)
            return now is not None and now.load == load and now.lease_until > first.lease_until

        await until(renewed)
        await database.run("DELETE FROM cluster_nodes")
        await until(renewed)


async def test_an_operators_word_reaches_the_process_at_once(database: Database) -> None:
    """The renewal (every five seconds) has no part in it: the change is announced."""
    states: asyncio.Queue[str] = asyncio.Queue()
    store = NodeStore(database)
    async with member(database, changed=states.put_nowait) as joined:
        for state in ("draining", "cordoned", "active"):
            async with database.transaction() as conn:
                await store.change(conn, joined.id, state=state, labels={"zone": state})  # type: ignore[arg-type]
            async with asyncio.timeout(3):
                assert await states.get() == state
            assert (joined.state, joined.labels) == (state, {"zone": state})


async def test_rows_of_the_dead_are_kept_for_an_hour(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """DB6: `cluster_nodes` does not grow with every restart."""
    monkeypatch.setattr(membership, "RENEW_S", 0.01)
    store = NodeStore(database)
    for name, minutes in (("old", 61), ("recent", 59)):
        await store.register(name, "comet", name, "x:1", info={}, load={}, labels={})
        await database.run(
            "UPDATE cluster_nodes SET lease_until = now() - make_interval(mins => %(m)s) WHERE id = %(id)s",
            m=minutes,
            id=name,
        )
    async with member(database) as joined:

        async def swept() -> bool:
            return await store.get("old") is None

        await until(swept)
        assert (await found(database, "recent")).gone
        assert [record.id for record in await store.alive("comet")] == [joined.id]


def test_the_address_is_one_that_others_can_dial() -> None:
    """SC9: a wildcard is no address; what the socket listens on, or what was configured, is."""
    assert advertised("comet-1.internal:9090", "0.0.0.0", 1) == "comet-1.internal:9090"
    assert advertised("", "192.0.2.7", 9090) == "192.0.2.7:9090"
    assert advertised("", "2001:db8::5", 9090) == "[2001:db8::5]:9090"
    for wildcard in ("", "0.0.0.0", "::"):
        host, _, port = advertised("", wildcard, 9090).rpartition(":")
        assert port == "9090"
        assert host.strip("[]") not in ("", "0.0.0.0", "::")
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        host, _, port = advertised("", "0.0.0.0", listening.getsockname()[1]).rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()


def test_a_node_is_called_after_its_host_unless_it_has_a_name() -> None:
    assert node_name("rack-1") == "rack-1"
    assert node_name("") == socket.gethostname()
