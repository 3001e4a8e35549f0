"""orbit layers and orbit volumes, against the real handlers on a real socket."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import anyio.to_thread
import pytest
import typer
from typer.testing import CliRunner

from nova.cli import layers, session, volumes
from nova.cli.session import CliError
from nova.client import ApiError
from nova.store.db import Database
from tests.control.support import control, zip_of
from tests.http.harness import serve

pytestmark = pytest.mark.anyio
Orbit = Callable[..., Awaitable[str]]


@pytest.fixture
async def orbit(database: Database) -> AsyncIterator[Orbit]:
    """``await orbit("layers", "list")``: what that prints."""
    app = typer.Typer()
    app.callback()(session.root)
    layers.register(app)
    volumes.register(app)
    async with control(database) as plane, serve(plane.api.app) as port:
        await plane.create()

        async def run(*arguments: str) -> str:
            command = ["--server", f"http://127.0.0.1:{port}", "--yes", *arguments]
            call = partial(CliRunner().invoke, app, command, catch_exceptions=False)
            return (await anyio.to_thread.run_sync(call)).output

        yield run


async def test_a_folder_and_an_archive_become_layers_of_a_function(orbit: Orbit, tmp_path: Path) -> None:
    module = tmp_path / "layer" / "nodejs" / "node_modules" / "greeting"
    module.mkdir(parents=True)
    (module / "index.js").write_text("exports.text = 'hi'")
    (tmp_path / "layer" / "__pycache__").mkdir()
    (tmp_path / "layer" / "__pycache__" / "x.pyc").write_bytes(b"x")
    assert "deps@1: 1 files" in await orbit("layers", "publish", "deps", str(tmp_path / "layer"), "--runtime", "python")
    assert "deps@1" in await orbit("layers", "publish", "deps", str(tmp_path / "layer"), "--runtime", "python")
    (tmp_path / "more.zip").write_bytes(zip_of({"python/x.py": "x = 1"}))
    assert "more@1" in await orbit("layers", "publish", "more", str(tmp_path / "more.zip"), "--description", "of x")
    listed = await orbit("layers", "list")
    assert "python" in listed
    assert "every" in listed
    shown = json.loads(await orbit("layers", "get", "more", "--version", "1", "-o", "json"))
    assert (shown["description"], shown["files"]) == ("of x", 1)
    assert json.loads(await orbit("layers", "get", "deps", "-o", "json"))["versions"] == [1]
    assert "version 2 mounts 2 layers" in await orbit("layers", "mount", "hello", "deps", "more@1")
    assert "/layers/1" in await orbit("layers", "mounted", "hello")
    assert "hello" in await orbit("layers", "functions", "deps")
    with pytest.raises(ApiError, match="in_use"):
        await orbit("layers", "delete", "deps")
    unmounted = json.loads(await orbit("layers", "mount", "hello", "--publish", "-o", "json"))
    assert unmounted == {"version": 3, "layers": []}
    await orbit("layers", "publish", "spare", str(tmp_path / "more.zip"))
    assert "deleted spare@1" in await orbit("layers", "delete", "spare", "--version", "1")
    with pytest.raises(CliError, match="neither a folder nor an archive"):
        await orbit("layers", "publish", "x", str(tmp_path / "nothing"))


async def test_volumes_are_made_mounted_and_deleted(orbit: Orbit) -> None:
    assert "created data: 16 MiB" in await orbit("volumes", "create", "data", "--size", "16", "--shared")
    assert "32" in await orbit("volumes", "update", "data", "--size", "32", "--description", "of all")
    assert "version 2 mounts 1 volumes" in await orbit("volumes", "mount", "hello", "data:/mnt/data:ro")
    mounted = json.loads(await orbit("volumes", "mounted", "hello", "-o", "json"))
    assert mounted["mounts"] == [{"volume": "data", "path": "/mnt/data", "read_only": True}]
    assert "/mnt/data" in await orbit("volumes", "mounted", "hello")
    assert "hello" in await orbit("volumes", "list")
    with pytest.raises(ApiError, match="in_use"):
        await orbit("volumes", "delete", "data")
    with pytest.raises(CliError, match="VOLUME:PATH"):
        await orbit("volumes", "mount", "hello", "data")
    await orbit("volumes", "create", "spare", "--size", "1")
    assert json.loads(await orbit("volumes", "get", "spare", "-o", "json"))["shared"] is False
    assert "deleted spare" in await orbit("volumes", "delete", "spare")
