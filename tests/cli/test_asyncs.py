"""orbit async, orbit dlq and orbit invoke --async, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova import client as client_module
from nova.api import asyncs as contract
from nova.api.table import routes
from nova.cli import asyncs, calls, session
from nova.cli.session import CliError
from nova.client import ApiError
from nova.errors import FunctionError
from nova.store.db import Database
from tests.events.support import Calls, failing
from tests.events.test_asyncs import serving
from tests.http.harness import serve

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]


@pytest.fixture
async def orbit(database: Database, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Orbit]:
    """``await orbit("async", "list")``: what it prints. The first call of the function fails."""
    table = {route.op: route for route in (*routes(), *contract.ROUTES)}
    monkeypatch.setattr(client_module, "operations", lambda: table)
    app = typer.Typer()
    app.callback()(session.root)
    asyncs.register(app)
    calls.register(app)
    first = failing(FunctionError("ValueError", "no good"))
    async with serving(database, Calls(first)) as plane, serve(plane.api.app) as port:

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", *arguments]
            result = await anyio.to_thread.run_sync(partial(CliRunner().invoke, app, command))
            if result.exception is not None:
                raise result.exception
            return result.stdout

        yield run


async def data(orbit: Orbit, *arguments: str) -> Any:
    return json.loads(await orbit(*arguments, "-o", "json"))


async def test_a_job_from_its_call_to_its_end(orbit: Orbit) -> None:
    failed = (await orbit("invoke", "f", "--async", "-d", '{"n": 1}', "--max-attempts", "1")).split()[0]
    job = await data(orbit, "async", "get", failed, "--wait", "20")
    assert (job["status"], job["payload"]) == ("dlq", {"n": 1})
    assert failed in await orbit("dlq", "list", "--function", "f", "--since", "1h")
    assert "dlq" in await orbit("async", "list", "--status", "dlq,cancelled")
    assert "queued 1 of 1 again" in await orbit("dlq", "retry-all", "--error", "ValueError", "--max-attempts", "3")
    job = await data(orbit, "async", "get", failed, "--wait", "20")
    assert (job["status"], job["max_attempts"]) == ("succeeded", 3)
    with pytest.raises(ApiError, match="invalid_state"):
        await orbit("async", "retry", failed)
    assert "deleted" in await orbit("async", "delete", failed, "--yes")
    assert (await orbit("async", "list", "-o", "name")) == ""
    assert "deleted 0" in await orbit("dlq", "purge", "--yes")


async def test_jobs_are_steered_in_bulk_and_watched(orbit: Orbit) -> None:
    key = ("--delay", "600", "--concurrency-key", "k", "--priority", "low")
    waiting = [(await orbit("invoke", "f", "--async", *key)).split()[0] for _ in range(2)]
    assert (await data(orbit, "async", "get", waiting[0]))["priority"] == "low"
    assert "cancelled 0" in await orbit("async", "cancel-all", "--function", "f", "--concurrency-key", "no", "--yes")
    assert "cancelled 2" in await orbit("async", "cancel-all", "--concurrency-key", "k", "--yes")
    assert await data(orbit, "async", "retry-all", "--status", "dlq") == {"retried": 0}
    assert "queued 2 again" in await orbit("async", "retry-all", "--function", "f", "--max-attempts", "1")
    shown = (await orbit("async", "watch", waiting[1])).splitlines()
    assert shown[-1].startswith(("succeeded (attempt 1)", "dlq (attempt 1)"))
    with pytest.raises(CliError, match="--debounce, --callback: needs --async"):
        await orbit("invoke", "f", "--debounce", "2", "--callback", "http://127.0.0.1/")


async def test_jobs_are_held_and_cancelled(orbit: Orbit) -> None:
    waiting = (await data(orbit, "invoke", "f", "--async", "--delay", "600", "--idempotency-key", "k"))["invocation_id"]
    assert (await data(orbit, "invoke", "f", "--async", "--delay", "600", "--idempotency-key", "k"))[
        "invocation_id"
    ] == waiting
    assert "paused" in await orbit("async", "pause", waiting)
    assert (await data(orbit, "async", "summary"))["held"] == 1
    assert "enqueued per second, 1m" in await orbit("async", "summary")
    assert "resumed" in await orbit("async", "resume", waiting)
    assert await data(orbit, "async", "pause", "--function", "f") == {"changed": 1}
    assert "1 jobs" in await orbit("async", "resume", "--function", "f")
    assert "stands still" in await orbit("async", "pause-all", "--reason", "moving")
    assert (await data(orbit, "async", "resume-all"))["paused"] is False
    assert "cancelled" in await orbit("async", "cancel", waiting)
    assert (await data(orbit, "async", "retry", waiting))["status"] in ("queued", "running")


@pytest.mark.parametrize(
    "arguments",
    [
        ("async", "pause"),
        ("async", "resume", "x", "--function", "f"),
        ("async", "list", "--since", "yesterday"),
        ("invoke", "f", "--async", "-d", "{"),
        ("invoke", "f", "--async", "--tail"),
        ("invoke", "f", "--delay", "1"),
    ],
)
async def test_what_does_not_go_together_is_wrong_usage(orbit: Orbit, arguments: tuple[str, ...]) -> None:
    with pytest.raises(CliError) as wrong:
        await orbit(*arguments)
    assert wrong.value.exit_code == 2
