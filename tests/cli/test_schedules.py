"""orbit schedules, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova import client as client_module
from nova.api import schedules as api
from nova.api.table import routes
from nova.cli import schedules, session
from nova.cli.session import CliError
from nova.client import ApiError
from nova.store.db import Database
from tests.events.workflows.support import chain, node, workflow
from tests.http.harness import serve
from tests.scheduling.support import HandClock, Stage, function, planed

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]


@pytest.fixture
async def orbit(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Orbit]:
    """``await orbit("list")``: what ``orbit schedules list`` prints."""
    table = {route.op: route for route in (*routes(), *api.ROUTES)}
    monkeypatch.setattr(client_module, "operations", lambda: table)
    app = typer.Typer()
    app.callback()(session.root)
    schedules.register(app)
    hand = HandClock()
    stage = Stage(database, hand, hand, await function(database))
    async with planed(stage) as plane, serve(plane.api.app) as port:

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", "schedules", *arguments]
            result = await anyio.to_thread.run_sync(partial(CliRunner().invoke, app, command))
            if result.exception is not None:
                raise result.exception
            return result.stdout

        yield run


async def data(orbit: Orbit, *arguments: str) -> Any:
    return json.loads(await orbit(*arguments, "-o", "json"))


async def test_a_schedule_from_its_creation_to_its_end(orbit: Orbit) -> None:
    told = await orbit(
        "create", "f", "0 3 * * *", "--name", "nightly", "--timezone", "Europe/Berlin", "--input", '{"a": 1}'
    )
    assert "created f/nightly" in told
    made = await data(orbit, "get", "f/nightly")
    assert (made["timezone"], made["input"], made["next_run_at"]) == ("Europe/Berlin", {"a": 1}, "2026-11-23T02:00:00Z")
    assert "nightly" in await orbit("list", "--function", "f", "--enabled")
    assert (await data(orbit, "list", "--paused"))["items"] == []
    await orbit(
        "update", made["id"], "--cron", "@hourly", "--overlap", "queue", "--unset", "input", "--unset", "timezone"
    )
    changed = await data(orbit, "get", made["id"])
    assert (changed["cron_expression"], changed["overlap_policy"], changed["input"]) == ("@hourly", "queue", None)
    assert changed["timezone"] == "UTC"
    await orbit("pause", "f/nightly")
    assert "paused" in await orbit("list")
    assert "fired: invocation" in await orbit("run", "f/nightly")
    assert "run by operator" in await orbit("runs", "f/nightly")
    assert (await data(orbit, "runs", "f/nightly", "--status", "missed"))["items"] == []
    assert (await data(orbit, "resume", "f/nightly"))["enabled"] is True
    await orbit("delete", "f/nightly", "--yes")
    with pytest.raises(CliError, match="with a schedule 'nightly'"):
        await orbit("get", "f/nightly")


async def test_a_schedule_of_a_workflow(orbit: Orbit, database: Database) -> None:
    await workflow(database, "f", chain(node("done", "pass")))
    await orbit("create", "f", "@daily", "--name", "calls")
    told = await orbit("create", "f", "@daily", "--name", "runs", "--workflow", "--run-timeout", "60")
    assert "created f/runs" in told
    shown = await data(orbit, "list", "--workflow", "f")
    assert [(one["name"], one["target_type"], one["timeout_s"]) for one in shown["items"]] == [("runs", "workflow", 60)]
    assert "fired: run" in await orbit("run", "f/runs")
    (run,) = (await data(orbit, "runs", "f/runs"))["items"]
    assert run["run_id"] in await orbit("runs", "f/runs")
    await orbit("create", "f", "@daily", "--name", "calls", "--workflow")
    with pytest.raises(CliError, match="give its id"):
        await orbit("get", "f/calls")
    with pytest.raises(CliError, match="not both"):
        await orbit("list", "--workflow", "f", "--function", "f")


async def test_preview_and_mistakes(orbit: Orbit) -> None:
    found = await data(
        orbit, "preview", "30 2 * * *", "--timezone", "Europe/Berlin", "-n", "1", "--after", "2026-03-28T12:00Z"
    )
    assert found["instants"] == ["2026-03-29T01:00:00Z"]
    assert len((await orbit("preview", "@daily")).splitlines()) == 10
    with pytest.raises(ApiError, match="at character 3"):
        await orbit("create", "f", "0 99 * * *")
    with pytest.raises(CliError, match="--input"):
        await orbit("create", "f", "@daily", "--input", "{")
    with pytest.raises(CliError, match="say what to change"):
        await orbit("update", "x")
