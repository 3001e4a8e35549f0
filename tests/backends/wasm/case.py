"""WebAssembly in the conformance suite. The suite's function is Python; see :meth:`Case.artifact`."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nova.agent.config import WorkerLaunch
from nova.execution.backends.base import Backend
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from nova.execution.backends.wasm.backend import WasmBackend, WasmOptions
from nova.execution.launch import launch_for
from tests.backends.cases import NotTranslated
from tests.backends.sandbox.case import Case as SandboxCase
from tests.backends.wasm.harness import RUNTIME


class Toolchain:
    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        return launch_for(RUNTIME), RUNTIME.host_paths


@asynccontextmanager
async def backend(folder: Path, node: str) -> AsyncIterator[WasmBackend]:
    """In a sandbox of its own, with a template or two."""
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    sandbox = SandboxBackend(
        SandboxOptions(run_dir=run_dir, node=node, templates={(RUNTIME.runtime, RUNTIME.version): 1}), Toolchain()
    )
    await sandbox.start()
    try:
        yield WasmBackend(WasmOptions(), sandbox)
    finally:
        await sandbox.close()


class Case:
    name = "wasm"
    runtime = RUNTIME.runtime
    runtime_version = RUNTIME.version
    cycles = 50

    def missing(self) -> str:
        return "" if os.geteuid() == 0 else "the suite's sandbox needs root"

    @asynccontextmanager
    async def backend(self, folder: Path, node: str = "conf") -> AsyncIterator[Backend]:
        async with backend(folder, node) as made:
            yield made

    def artifact(self, code: str, folder: Path) -> Path:
        raise NotTranslated("a module")

    def leftovers(self, node: str) -> list[str]:
        return SandboxCase().leftovers(node)
