"""WebAssembly in the conformance suite, whose function :mod:`tests.backends.wasm.guest` translates."""

import os
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from nova.agent.config import WorkerLaunch
from nova.execution.backends.base import Backend, Instance, InstanceSpec, WorkerCall, WorkerResult
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from nova.execution.backends.wasm.backend import WasmBackend, WasmOptions
from nova.execution.launch import launch_for
from nova.runtimes.wasm.engine import compile_module, compiled_name, make_engine
from tests.backends.harness import GUEST, write_code
from tests.backends.sandbox.case import Case as SandboxCase
from tests.backends.wasm import guest
from tests.backends.wasm.harness import RUNTIME


class Toolchain:
    def launch(self, runtime: str, version: str) -> tuple[WorkerLaunch, Sequence[Path]]:
        return launch_for(RUNTIME), RUNTIME.host_paths


@asynccontextmanager
async def backend(folder: Path, node: str, *, translated: bool = False) -> AsyncIterator[WasmBackend]:
    """In a sandbox of its own, with a template or two."""
    run_dir = folder / "run"
    run_dir.mkdir(exist_ok=True)
    sandbox = SandboxBackend(
        SandboxOptions(run_dir=run_dir, node=node, templates={(RUNTIME.runtime, RUNTIME.version): 1}), Toolchain()
    )
    await sandbox.start()
    try:
        yield Translated(WasmOptions(), sandbox) if translated else WasmBackend(WasmOptions(), sandbox)
    finally:
        await sandbox.close()


class Translated(WasmBackend):
    """Skips a test that asks for what a module cannot even try, and gives calls the context that the platform gives them:
    this worker tells calls apart, and answers in pieces where somebody takes them."""

    async def create(self, spec: InstanceSpec) -> Instance:
        instance = await super().create(spec)
        instance.channel = Channel(instance.channel)
        return instance


class Channel:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def call(self, call: WorkerCall) -> WorkerResult:
        streaming = b', "streaming": true, "stream_credit": 65536' if call.sink is not None else b""
        context = b'{"request_id": "%b"%b}' % (call.request_id.encode(), streaming)
        called: Awaitable[WorkerResult] = self._inner.call(replace(call, context=context))
        result = await called
        if result.error is not None and result.error.type == "NotTranslated":
            pytest.skip(f"wasm: {result.error.message}")
        return result


class Case:
    name = "wasm"
    runtime = RUNTIME.runtime
    runtime_version = RUNTIME.version
    cycles = 50

    def missing(self) -> str:
        return "" if os.geteuid() == 0 else "the suite's sandbox needs root"

    @asynccontextmanager
    async def backend(self, folder: Path, node: str = "conf") -> AsyncIterator[Backend]:
        async with backend(folder, node, translated=True) as made:
            yield made

    def artifact(self, code: str, folder: Path) -> Path:
        """``main.py`` holds the module, so that the suite need not know: what a file is called means nothing here. It is compiled
        as a build does it."""
        broken = '(module (import "not today" "lookup" (func)) (func (export "_start")))'
        if code != GUEST:
            return write_code(broken, folder)
        source = guest.program()
        tree = write_code(source, folder)
        compiled = tree / compiled_name("main.py", RUNTIME.toolchain.version)
        compiled.parent.mkdir(mode=0o755)
        compiled.write_bytes(compile_module(make_engine(), source.encode()).serialize())
        return tree

    def leftovers(self, node: str) -> list[str]:
        return SandboxCase().leftovers(node)
