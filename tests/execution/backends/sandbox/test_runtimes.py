"""Each runtime of this host answers a call from inside a template of its own kind."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from nova.agent.config import WorkerLaunch
from nova.execution.backends.base import InitSpec, InstanceSpec, WorkerCall
from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.execution.launch import launch_for
from nova.runtimes.registry import Runtimes
from tests.execution.backends.sandbox.harness import BOOTSTRAP, OFFLINE, ROOMY, options, write_code

pytestmark = [pytest.mark.anyio, pytest.mark.root]

RUNTIMES = Runtimes()
CODE = {
    "python": ("main.py", "main.handler", "def handler(event):\n    return {'got': event}\n"),
    "node": ("index.js", "index.handler", "exports.handler = async (event) => ({ got: event });\n"),
    "custom": (
        "bootstrap",
        "bootstrap",
        '#!/bin/sh\nwhile read -r line; do echo \'{"output": {"got": [1]}}\'; done\n',
    ),
}


class Toolchains:
    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        resolved = RUNTIMES.resolve(runtime)
        return launch_for(resolved), resolved.host_paths


@pytest.fixture(scope="module")
async def backend(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SandboxBackend]:
    made = SandboxBackend(options(tmp_path_factory.mktemp("runtimes"), modules=(BOOTSTRAP,)), Toolchains())
    await made.start()
    yield made
    await made.close()


@pytest.mark.parametrize("runtime", CODE)
async def test_a_call(backend: SandboxBackend, tmp_path: Path, runtime: str) -> None:
    version = RUNTIMES.resolve(runtime).version
    entry, handler, source = CODE[runtime]
    code = write_code(tmp_path, source, entry)
    (code / entry).chmod(0o755)
    for expected in ("boot", "template"):
        instance = await backend.create(
            InstanceSpec(uuid.uuid4().hex, runtime, version, code, ROOMY, OFFLINE),
        )
        assert instance.source == expected
        await instance.channel.init(
            InitSpec(
                function_id="f",
                name="test",
                version=1,
                tenant="default",
                namespace="default",
                runtime=runtime,
                runtime_version=version,
                mode="persistent",
                handler=handler,
                entry=entry,
                entry_kind="handler",
                env={},
                memory_mb=256,
                timeout_s=30,
                concurrency=1,
                open_files=1024,
            )
        )
        call = WorkerCall("r", b"[1]", b'{"request_id": "r"}', time.monotonic() + 20)
        result = await instance.channel.call(call)
        assert result.error is None, result.error
        assert result.output is not None
        assert json.loads(result.output) == {"got": [1]}
        await backend.stop(instance, reason="test")
        async with asyncio.timeout(20):
            while not any(
                kind.runtime == runtime and ready for kind, (ready, _) in backend._templates.counts().items()
            ):
                await asyncio.sleep(0.01)
