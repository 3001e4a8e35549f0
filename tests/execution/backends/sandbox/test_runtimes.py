"""Each runtime of this host answers a call from inside a template of its own kind."""

import asyncio
import json
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from nova.agent.config import WorkerLaunch
from nova.domain.function import Limits
from nova.execution.backends.base import InitSpec, Instance, InstanceSpec, WorkerCall, WorkerResult
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


async def call(
    backend: SandboxBackend, folder: Path, runtime: str, code: tuple[str, str, str], payload: bytes, limits: Limits
) -> tuple[Instance, WorkerResult]:
    """A fresh instance and what it answered."""
    version = RUNTIMES.resolve(runtime).version
    entry, handler, source = code
    tree = write_code(folder, source, entry)
    (tree / entry).chmod(0o755)
    instance = await backend.create(InstanceSpec(uuid.uuid4().hex, runtime, version, tree, limits, OFFLINE))
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
            memory_mb=limits.memory_mb,
            timeout_s=30,
            concurrency=1,
            open_files=limits.open_files,
        )
    )
    request = WorkerCall("r", payload, b'{"request_id": "r"}', time.monotonic() + 20)
    return instance, await instance.channel.call(request)


@pytest.mark.parametrize("runtime", CODE)
async def test_a_call(backend: SandboxBackend, tmp_path: Path, runtime: str) -> None:
    for expected in ("boot", "template"):
        instance, result = await call(backend, tmp_path, runtime, CODE[runtime], b"[1]", ROOMY)
        assert instance.source == expected
        assert result.error is None, result.error
        assert result.output is not None
        assert json.loads(result.output) == {"got": [1]}
        await backend.stop(instance, reason="test")
        async with asyncio.timeout(20):
            while not any(
                kind.runtime == runtime and ready for kind, (ready, _) in backend._templates.counts().items()
            ):
                await asyncio.sleep(0.01)


GREEDY = {
    "node": (
        "index.js",
        "index.handler",
        """
        const { spawn } = require("child_process");
        const started = () => new Promise((done) => {
            const child = spawn("/bin/sleep", ["600"], { stdio: "ignore" });
            child.on("spawn", () => done(true));
            child.on("error", () => done(false));
        });
        exports.handler = async (what) => {
            const held = [];
            for (let i = 0; what === "memory" && i < 300; i++) held.push(Buffer.alloc(1 << 20, 1));
            for (let i = 0; what === "prints" && i < 100; i++) console.error("x".repeat(65535));
            let made = 0;
            if (what === "processes") while (made < 200 && await started()) made++;
            return made;
        };
        """,
    ),
    "custom": (
        "bootstrap",
        "bootstrap",
        """\
        #!/bin/sh
        while read -r line; do
            case "$line" in
            *memory*) head -c 300000000 /dev/zero | tail > /dev/null || sleep 30 ;;
            *prints*) head -c 6000000 /dev/zero | tr "\\0" x >&2 ;;
            *processes*) for i in $(seq 200); do sleep 600 & done ;;
            esac
            echo '{"output": 0}'
        done
        """,
    ),
}


@pytest.mark.parametrize("runtime", GREEDY)
async def test_limits_are_the_same_for_every_runtime(backend: SandboxBackend, tmp_path: Path, runtime: str) -> None:
    """BE4: memory, processes and prints of programs that no helper of ours runs in."""
    entry, handler, source = GREEDY[runtime]
    code = (entry, handler, textwrap.dedent(source))
    limits = Limits(memory_mb=192, vcpus=2, pids=48)

    async def greedy(what: str) -> tuple[WorkerResult, int]:
        instance, result = await call(backend, tmp_path, runtime, code, json.dumps(what).encode(), limits)
        pids = (await backend.stats(instance)).pids
        await backend.stop(instance, reason="test")
        return result, pids

    memory, _ = await greedy("memory")
    assert memory.error is not None
    assert memory.error.type == "Nova.OutOfMemory"
    prints, _ = await greedy("prints")
    assert prints.output == b"0"
    assert 200 << 10 < len(prints.stderr) < (256 << 10) + 200
    bomb, pids = await greedy("processes")
    assert pids <= limits.pids
    if runtime == "node":
        assert 20 < json.loads(bomb.output or b"0") < limits.pids
