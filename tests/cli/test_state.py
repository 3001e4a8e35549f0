"""orbit state, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova.cli import session, state
from nova.cli.session import CliError
from nova.client import ApiError
from nova.store.db import Database
from tests.control.support import control
from tests.http.harness import serve

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]


@pytest.fixture
async def orbit(database: Database) -> AsyncIterator[Orbit]:
    """``await orbit("list", "hello")``: what ``orbit state list hello`` prints."""
    app = typer.Typer()
    app.callback()(session.root)
    state.register(app)
    async with control(database) as plane, serve(plane.api.app) as port:
        await plane.create()

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", "state", *arguments]
            call = partial(CliRunner().invoke, app, command, catch_exceptions=False)
            return (await anyio.to_thread.run_sync(call)).output

        yield run


async def test_state_is_written_read_counted_and_deleted(orbit: Orbit) -> None:
    assert "version 1" in await orbit("put", "hello", "u/1", '{"a": 1}', "--ttl", "60")
    assert "version 1" in await orbit("put", "hello", "u/2", "plain text")
    assert json.loads(await orbit("get", "hello", "u/1")) == {"a": 1}
    assert json.loads(await orbit("get", "hello", "u/2")) == "plain text"
    with pytest.raises(ApiError, match="version_conflict"):
        await orbit("put", "hello", "u/1", "null", "--expected-version", "0")
    assert (await orbit("incr", "hello", "n", "--by", "3")).strip() == "3"
    listed = await orbit("list", "hello", "--prefix", "u/")
    assert "u/1" in listed
    assert "u/2" in listed
    entry = json.loads(await orbit("get", "hello", "n", "--output", "json"))
    assert (entry["value"], entry["version"]) == (3, 1)
    await orbit("delete", "hello", "--prefix", "u/")
    with pytest.raises(ApiError, match="not_found"):
        await orbit("get", "hello", "u/1")
    with pytest.raises(CliError, match="give a key or --prefix"):
        await orbit("delete", "hello")
