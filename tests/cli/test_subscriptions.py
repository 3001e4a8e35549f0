"""orbit subscriptions and orbit deliveries, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova.cli import session, subscriptions
from nova.cli.session import CliError
from nova.errors import FunctionError
from nova.events.bus.dispatch import DUTIES
from nova.store.db import Database
from tests.events.bus.dispatching import data
from tests.events.bus.test_subscriptions import Desk, desk_of
from tests.events.support import Calls, failing
from tests.http.harness import serve

pytestmark = pytest.mark.anyio
Run = Callable[..., Awaitable[str]]


@dataclass
class Orbit:
    run: Run
    desk: Desk

    async def data(self, *arguments: str) -> Any:
        return json.loads(await self.run(*arguments, "-o", "json"))


@pytest.fixture
async def orbit(database: Database) -> AsyncIterator[Orbit]:
    """``await orbit.run("subscriptions", "list", "orders")``: what that prints."""
    app = typer.Typer()
    app.callback()(session.root)
    subscriptions.register(app)
    broken = FunctionError("ValueError", "no")
    async with desk_of(database, Calls(failing(broken, broken, broken))) as desk, serve(desk.api.app) as port:

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", "--yes", *arguments]
            result = await anyio.to_thread.run_sync(partial(CliRunner().invoke, app, command))
            if result.exception is not None:
                raise result.exception
            return result.stdout

        await desk.bus.until(lambda: desk.bus.dispatcher.in_charge == DUTIES)  # it says so on standard output
        yield Orbit(run, desk)


async def test_a_subscription_from_its_creation_to_its_end(orbit: Orbit) -> None:
    run, bus = orbit.run, orbit.desk.bus
    fit = '{"prefix":{"type":"a"}}'
    told = await run(
        "subscriptions", "create", "orders", "s", "--function", "f", "--filter", fit, "--set", "max_attempts=1"
    )
    assert "created orders/s" in told
    made = await orbit.data("subscriptions", "get", "orders/s")
    assert (made["filters"], made["max_attempts"], made["function_name"]) == ([json.loads(fit)], 1, "f")
    await bus.publish(1, 2, 3, type="a")
    await bus.settled(made["id"], 3)
    listed = await run("subscriptions", "list", "orders")
    assert made["id"] in listed
    dead = await orbit.data("deliveries", "dead", "orders")
    ids = [item["id"] for item in dead["items"]]
    assert "ValueError: no" in await run("deliveries", "list", "orders/s", "--status", "dlq")
    assert (await orbit.data("deliveries", "get", ids[0]))["attempts"] == 1
    await run("deliveries", "retry", ids[0])
    await run("deliveries", "skip", ids[1])
    assert "tries 1 deliveries again" in await run("deliveries", "retry-all", "orders/s")
    await bus.settled(made["id"], 2, "succeeded")
    assert "forgot 0" in await run("deliveries", "purge", "orders/s")
    assert "3 deliveries, generation 1" in await run("subscriptions", "replay", "orders/s", "--from", "1", "--to", "3")
    await bus.settled(made["id"], 5, "succeeded")
    await run("subscriptions", "seek", "orders/s", "3")
    await bus.settled(made["id"], 6, "succeeded")
    assert [data(call) for call in bus.calls.seen][-1] == 3
    await run("subscriptions", "pause", "orders/s")
    assert "paused" in await run("subscriptions", "list", "orders")
    await run("subscriptions", "resume", made["id"])
    await run("subscriptions", "update", "orders/s", "--set", "max_inflight=3", "--set", "max_attempts=null")
    changed = await orbit.data("subscriptions", "get", "orders/s")
    assert (changed["max_inflight"], changed["max_attempts"]) == (3, 3)
    await run("subscriptions", "delete", "orders/s")
    with pytest.raises(CliError):
        await run("subscriptions", "get", "orders/s")


async def test_what_was_forgotten_is_said_before_anything_is_sent(orbit: Orbit) -> None:
    for arguments, text in (
        (("create", "orders", "s"), "one of --function"),
        (("create", "orders", "s", "--function", "f", "--filter", "{"), "not JSON"),
        (("create", "orders", "s", "--function", "f", "--set", "colour=red"), "--set"),
        (("update", "orders/s"), "say what to change"),
    ):
        with pytest.raises(CliError, match=text):
            await orbit.run("subscriptions", *arguments)
    hook = await orbit.data("subscriptions", "create", "orders", "h", "--webhook", "https://example.com/")
    assert "…" not in hook["webhook_signing_secret"]
