"""orbit nodes, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova import client as client_module
from nova.api import cluster as api
from nova.api.table import routes
from nova.cli import nodes, session
from nova.cli.session import CliError
from nova.client import ApiError
from nova.scheduling.nodes import ClusterHandlers
from nova.store.db import Database
from nova.store.leases import LeaseSession
from nova.store.nodes import NodeStore
from tests.http.harness import management, serve

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]
INFO = {"cpu_cores": 4, "memory_mb": 8000, "version": "1.0"}
LOAD = {"cpu_usage": 0.25, "memory_usage": 0.5, "active_vms": 3, "max_vms": 64, "queue_depth": 0, "inflight": 2}


@pytest.fixture
async def orbit(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Orbit]:
    """``await orbit("list")``: what ``orbit nodes list`` prints. Two nodes, one of them gone, and a worker beside the first."""
    table = {route.op: route for route in (*routes(), *api.ROUTES)}
    monkeypatch.setattr(client_module, "operations", lambda: table)
    monkeypatch.setenv("COLUMNS", "250")
    store = NodeStore(database)
    for node_id, plane, name in (("1", "comet", "east"), ("2", "comet", "west"), ("3", "corona", "east")):
        await store.register(node_id, plane, name, "10.0.0.1:9090", info=INFO, load=LOAD, labels={})
    await database.run("UPDATE cluster_nodes SET lease_until = now() WHERE id = '2'")
    leases = LeaseSession(database.dsn, "process", "east")
    await leases.claim(["schedules"], 60)
    await leases.close()
    app = typer.Typer()
    app.callback()(session.root)
    nodes.register(app)
    async with management(database, [ClusterHandlers(database, store)], api.ROUTES) as plane, serve(plane.app) as port:

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", "nodes", *arguments]
            result = await anyio.to_thread.run_sync(partial(CliRunner().invoke, app, command))
            if result.exception is not None:
                raise result.exception
            return result.stdout

        yield run


async def test_nodes_are_shown_as_a_table_and_as_data(orbit: Orbit) -> None:
    lines = (await orbit("list")).splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["east", "corona", "active"],
        ["west", "comet", "gone"],
        ["east", "comet", "active"],
    ]
    assert "1.0 of 4" in lines[3]
    assert "4000 of 8000 MiB" in lines[3]
    assert "3 of 64" in lines[3]
    gone = json.loads(await orbit("list", "--state", "gone", "-o", "json"))
    assert [node["id"] for node in gone["items"]] == ["2"]
    assert (await orbit("list", "--plane", "corona", "-o", "name")).split() == ["3"]
    assert json.loads(await orbit("get", "1", "-o", "json"))["load"]["inflight"] == 2


async def test_a_node_is_drained_by_name_or_id_and_comes_back(orbit: Orbit) -> None:
    assert "east (comet) is draining" in await orbit("drain", "1")
    assert "is cordoned" in await orbit("cordon", "1")
    assert json.loads(await orbit("activate", "1", "-o", "json"))["state"] == "active"
    with pytest.raises(CliError, match="several"):
        await orbit("drain", "east")
    with pytest.raises(CliError, match="no node"):
        await orbit("drain", "north")
    with pytest.raises(ApiError, match="alive"):
        await orbit("delete", "1")
    assert "deleted 2" in await orbit("delete", "west")
    assert (await orbit("list", "-o", "name")).split() == ["3", "1"]


async def test_leaders_are_named(orbit: Orbit) -> None:
    assert (await orbit("leaders")).splitlines()[1].split()[:3] == ["schedules", "east", "1"]
