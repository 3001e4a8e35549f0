"""orbit topics and orbit outbox, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova.cli import session, topics
from nova.cli.session import CliError
from nova.client import ApiError
from nova.store.db import Database
from tests.events.bus.topics import bus
from tests.http.harness import serve

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]


@pytest.fixture
async def orbit(database: Database) -> AsyncIterator[Orbit]:
    """``await orbit("topics", "list")``: what it prints."""
    app = typer.Typer()
    app.callback()(session.root)
    topics.register(app)
    async with bus(database) as plane, serve(plane.api.app) as port:

        async def run(*arguments: str, stdin: str | None = None) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", *arguments]
            result = await anyio.to_thread.run_sync(partial(CliRunner().invoke, app, command, input=stdin))
            if result.exception is not None:
                raise result.exception
            return result.stdout

        yield run


async def data(orbit: Orbit, *arguments: str) -> Any:
    return json.loads(await orbit(*arguments, "-o", "json"))


async def test_a_topic_from_its_creation_to_its_end(orbit: Orbit, tmp_path: Path) -> None:
    assert "created orders" in await orbit("topics", "create", "orders", "--retention-hours", "24", "--max-mb", "5")
    assert (await data(orbit, "topics", "get", "orders"))["max_retained_mb"] == 5
    changed = await orbit("topics", "update", "orders", "--unset", "max_retained_mb", "--dedup-window", "60")
    assert "changed orders" in changed
    shown = await data(orbit, "topics", "get", "orders")
    assert (shown["max_retained_mb"], shown["dedup_window_s"]) == (None, 60)
    first = await orbit("topics", "publish", "orders", '{"n": 1}', "--key", "k", "-H", "a=b", "--dedup-id", "x")
    assert "published message 1" in first
    assert "message 1 of orders stands for it" in await orbit("topics", "publish", "orders", "2", "--dedup-id", "x")
    (tmp_path / "payload.json").write_text("[2]")
    assert "published message 2" in await orbit("topics", "publish", "orders", f"@{tmp_path}/payload.json")
    assert "published 3 messages" in await orbit("topics", "publish", "orders", "--lines", stdin="3\n4\n\n5\n")
    listed = await data(orbit, "topics", "messages", "orders", "--key", "k")
    assert [(item["payload"], item["headers"]) for item in listed["items"]] == [({"n": 1}, {"a": "b"})]
    last = await data(orbit, "topics", "messages", "orders", "--last", "2")
    assert [item["payload"] for item in last["items"]] == [4, 5]
    assert len((await data(orbit, "topics", "messages", "orders", "--since", "1h"))["items"]) == 5
    tailed = (await orbit("topics", "tail", "orders", "--from", "4", "-n", "2")).splitlines()
    assert [line.split()[0] for line in tailed] == ["4", "5"]
    assert "orders" in await orbit("topics", "list", "--search", "ord")
    await orbit("topics", "delete", "orders", "--cascade", "--yes")
    with pytest.raises(ApiError, match="does not exist"):
        await orbit("topics", "get", "orders")


async def test_the_outbox_and_mistakes(orbit: Orbit) -> None:
    await orbit("topics", "create", "orders")
    held = (await orbit("topics", "publish", "orders", "1", "--hold")).split()[-1]
    assert (await data(orbit, "outbox", "get", held))["status"] == "held"
    assert "waits as" in await orbit("topics", "publish", "orders", "2", "--delay", "3600")
    assert held in await orbit("topics", "outbox", "orders", "--status", "held")
    assert "released" in await orbit("outbox", "release", held)
    assert "took" in await orbit("outbox", "cancel", held)
    assert len((await data(orbit, "topics", "outbox", "orders"))["items"]) == 1
    for wrong, says in (
        (("topics", "update", "orders"), "say what to change"),
        (("topics", "publish", "orders", "{"), "not JSON"),
        (("topics", "publish", "orders", "1", "-H", "a"), "NAME=VALUE"),
        (("topics", "publish", "orders", "1", "--lines", "--hold"), "--lines"),
        (("topics", "messages", "orders", "--last", "1", "--from", "1"), "--last"),
        (("topics", "publish", "orders", "@/nowhere/at/all"), "nowhere"),
    ):
        with pytest.raises(CliError, match=says):
            await orbit(*wrong)
