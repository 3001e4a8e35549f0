"""orbit prewarm and orbit windows, against the real handlers on a real socket."""

import json
from functools import partial

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova.api import prewarm as api
from nova.cli import prewarming, session
from nova.clock import SYSTEM_CLOCK
from nova.domain.identity import Scope
from nova.domain.ports import Warmth
from nova.execution.prewarm import PrewarmHandlers
from nova.scheduling.windows import WindowHandlers
from nova.store.db import Database
from tests.control.support import HELLO, control
from tests.http.harness import management, serve

pytestmark = pytest.mark.anyio
WINDOW = {"cron": "0 8 * * *", "duration_s": 60, "replicas": 4, "name": "rush"}


class Asked:
    """The scaler: half of what is asked for is there."""

    def __init__(self) -> None:
        self.wishes: list[tuple[str, int, str | None, float]] = []

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        raise AssertionError("only prewarm is asked for")

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        self.wishes.append((function, replicas, qualifier, ttl_s))
        return Warmth(replicas // 2, replicas - replicas // 2)


async def test_instances_are_asked_for_and_windows_shown(database: Database) -> None:
    asked, app = Asked(), typer.Typer()
    app.callback()(session.root)
    prewarming.register(app)
    async with control(database) as plane:
        await plane.client.put("/functions/hello", json={"runtime": "python", "code": HELLO, "provisioned": [WINDOW]})
    owners = [PrewarmHandlers(asked), WindowHandlers(plane.functions, SYSTEM_CLOCK)]
    async with management(database, owners, api.ROUTES) as served, serve(served.app) as port:

        async def orbit(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", *arguments]
            call = partial(CliRunner().invoke, app, command, catch_exceptions=False)
            return (await anyio.to_thread.run_sync(call)).output

        assert "2 of 4 ready, 2 starting" in await orbit("prewarm", "hello", "4", "--qualifier", "live", "--ttl", "60")
        assert json.loads(await orbit("prewarm", "hello", "0", "-o", "json")) == {
            "target": 0,
            "ready": 0,
            "starting": 0,
        }
        assert asked.wishes == [("hello", 4, "live", 60), ("hello", 0, None, 300)]
        shown = await orbit("windows", "hello", "--count", "1")
        assert "rush" in shown
        assert "4" in shown
        assert len(json.loads(await orbit("windows", "hello", "-o", "json"))["windows"]) == 10
