"""orbit triggers, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova.cli import session, triggers
from nova.cli.session import CliError
from nova.client import ApiError
from nova.store.db import Database
from tests.events.triggers.support import planed, settings_for
from tests.http.harness import serve

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]


@pytest.fixture
async def orbit(database: Database, tmp_path: Path) -> AsyncIterator[Orbit]:
    """``await orbit("list")``: what ``orbit triggers list`` prints."""
    app = typer.Typer()
    app.callback()(session.root)
    triggers.register(app)
    async with planed(database, settings_for(tmp_path)) as plane, serve(plane.api.app) as port:

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", "triggers", *arguments]
            result = await anyio.to_thread.run_sync(partial(CliRunner().invoke, app, command))
            if result.exception is not None:
                raise result.exception
            return result.stdout

        yield run


async def data(orbit: Orbit, *arguments: str) -> Any:
    return json.loads(await orbit(*arguments, "-o", "json"))


async def test_a_trigger_from_its_creation_to_its_end(orbit: Orbit, tmp_path: Path) -> None:
    made = await orbit("create", "files", "filesystem", "--function", "f", "--set", f"path={tmp_path}", "--paused")
    assert "made the trigger files" in made
    assert "checked" in await orbit("create", "x", "webhook", "--topic", "t", "--set", "scheme=none", "--dry-run")
    config = tmp_path / "config.json"
    config.write_text('{"scheme": "hmac", "secret": "s"}')
    told = await orbit(
        "create", "hook", "webhook", "--topic", "orders.eu", "--config", f"@{config}", "--set", "header=X-Own"
    )
    assert "/hooks/hook" in told
    hook = await data(orbit, "get", "hook")
    assert (hook["target_type"], hook["target"]) == ("topic", "orders.eu")
    assert hook["config"] == {"scheme": "hmac", "secret": "***", "header": "x-own"}
    assert "running" in await orbit("list", "--type", "webhook", "--target", "orders.eu", "--enabled")
    assert [one["name"] for one in (await data(orbit, "list", "--paused"))["items"]] == ["files"]
    changed = await data(
        orbit,
        *(
            "update",
            "files",
            "--set",
            "settle_ms=10",
            "--batch-size",
            "5",
            "--batch-window",
            "50",
            "--on-error",
            "drop",
        ),
        *("--max-attempts", "2", "--max-inflight", "4", "--filters", '[{"exact": {"type": "x"}}]', "--name", "new"),
    )
    assert changed["config"] == {"path": str(tmp_path), "settle_ms": 10}
    assert (changed["batch"], changed["on_error"], changed["max_inflight"]) == ({"size": 5, "window_ms": 50}, "drop", 4)
    assert (await data(orbit, "update", "new", "--unset", "filters", "--unset", "batch"))["filters"] == []
    assert (await data(orbit, "resume", "new"))["enabled"] is True
    assert "paused" in await orbit("pause", changed["id"])
    assert "stopped" in await orbit("status", "new")
    assert "can be reached" in await orbit("test", "new")
    await orbit("delete", "new", "--yes")
    with pytest.raises(CliError, match="no trigger 'new'"):
        await orbit("get", "new")


async def test_what_is_wrong_is_said(orbit: Orbit, tmp_path: Path) -> None:
    await orbit("create", "lost", "filesystem", "--function", "f", "--set", "path=/nowhere")
    with pytest.raises(CliError, match="cannot be reached: '/nowhere' is not below"):
        await orbit("test", "lost")
    for arguments, why in (
        (("create", "a", "webhook"), "who gets the events"),
        (("create", "a", "webhook", "--function", "f", "--topic", "t"), "one of"),
        (("create", "a", "webhook", "--function", "f", "--config", "[1]"), "an object"),
        (("create", "a", "webhook", "--function", "f", "--config", "{"), "--config"),
        (("create", "a", "webhook", "--function", "f", "--set", "scheme"), "KEY=VALUE"),
        (("update", "lost"), "say what to change"),
    ):
        with pytest.raises(CliError, match=why):
            await orbit(*arguments)
    with pytest.raises(ApiError, match=r"config\.path"):
        await orbit("create", "a", "filesystem", "--function", "f")
