"""Docker in the conformance suite, on a real engine of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nova.execution.backends.base import Backend
from tests.backends.docker import ground
from tests.backends.harness import write_code


class Case:
    name = "docker"
    runtime = "python"
    runtime_version = "3.11"
    handler = "main.handler"
    entry = "main.py"
    lacks: frozenset[str] = frozenset()
    cycles = 50

    def missing(self) -> str:
        return ground.missing()

    @asynccontextmanager
    async def backend(self, folder: Path, node: str = "conf") -> AsyncIterator[Backend]:
        made = ground.backend(folder, node)
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    def artifact(self, code: str, folder: Path) -> Path:
        return write_code(code, folder)

    def leftovers(self, node: str) -> list[str]:
        return [item["Names"][0] for item in ground.containers(node)]
