"""``GET /backends`` and ``orbit backends``, on a real socket."""

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova.api import backends as api
from nova.cli import backends, session
from nova.execution.backends.listing import BackendHandlers
from nova.execution.backends.probing import Candidate
from nova.execution.backends.router import BackendRouter
from nova.store.db import Database
from tests.execution.backends.test_router import Host
from tests.http.harness import management, serve

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]


@pytest.fixture
async def orbit(database: Database) -> AsyncIterator[Orbit]:
    strong = Host("sandbox", strength=30, enforces={"memory": "soft", "net_io": "no"}, template=True, layers=True)
    weak = Host("docker", strength=20, runtimes=frozenset({"python", "node"}), reload=True)
    absent = Candidate("qemu", Host, lambda: "no program qemu-system-x86_64")
    router = BackendRouter([weak, strong], later=[absent])
    await router.start()
    app = typer.Typer()
    app.callback()(session.root)
    backends.register(app)
    async with management(database, [BackendHandlers(router)], api.ROUTES) as plane, serve(plane.app) as port:

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", "backends", *arguments]
            result = await anyio.to_thread.run_sync(partial(CliRunner().invoke, app, command))
            if result.exception is not None:
                raise result.exception
            return result.stdout

        yield run
    await router.close()


async def test_backends_are_listed_strongest_first(orbit: Orbit, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody asked for yet is looked at; one that is not available says why and has no rank."""
    monkeypatch.setenv("COLUMNS", "200")
    lines = [line.split() for line in (await orbit("list")).splitlines()]
    assert lines[0][:4] == ["NAME", "AVAILABLE", "RANK", "ISOLATION"]
    assert lines[1][:8] == ["sandbox", "yes", "1", "process", "template", "layers", "mem", "bandwidth"]
    assert lines[2][:5] == ["docker", "yes", "2", "process", "reload"]
    assert lines[3][:2] == ["qemu", "no"]
    assert lines[3][-3:] == ["no", "program", "qemu-system-x86_64"]
    assert lines[4][-1] == "auto"
    found = await orbit("list", "-o", "json")
    assert '"default_backend": "auto"' in found
