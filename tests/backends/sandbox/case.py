"""The sandbox in the conformance suite."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nova.execution.backends.base import Backend
from nova.execution.backends.sandbox.backend import SandboxBackend, SandboxOptions
from tests.backends.harness import write_code
from tests.execution.backends.sandbox.harness import BOOTSTRAP, PythonOnly

_GROUPS = Path("/sys/fs/cgroup")


class Case:
    name = "sandbox"
    runtime = "python"
    runtime_version = "3.11"
    cycles = 50

    def missing(self) -> str:
        return "" if os.geteuid() == 0 else "the suite's sandbox needs root"

    @asynccontextmanager
    async def backend(self, folder: Path, node: str = "conf") -> AsyncIterator[Backend]:
        run_dir = folder / "run"
        run_dir.mkdir(exist_ok=True)
        templates = {(self.runtime, self.runtime_version): 2}
        made = SandboxBackend(
            SandboxOptions(run_dir=run_dir, node=node, modules=(BOOTSTRAP,), templates=templates), PythonOnly()
        )
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    def artifact(self, code: str, folder: Path) -> Path:
        return write_code(code, folder)

    def leftovers(self, node: str) -> list[str]:
        groups = (*_GROUPS.glob(f"*/nova-{node}/*"), *_GROUPS.glob(f"nova-{node}/*"))
        return sorted({path.name for path in groups if path.is_dir()})
