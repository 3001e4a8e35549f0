"""QEMU in the conformance suite, without KVM: machines that any host can run, slowly."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from nova.execution.backends.base import Backend
from tests.backends.harness import write_code
from tests.backends.qemu import ground


class Case:
    name = "qemu"
    runtime = "python"
    runtime_version = ""
    cycles = 10
    handler = "main.handler"

    def __init__(self, *, templates: bool = True) -> None:
        self._folder: Path | None = None
        self._templates = templates

    def missing(self) -> str:
        return ground.missing()

    @asynccontextmanager
    async def backend(self, folder: Path, node: str = "conf") -> AsyncIterator[Backend]:
        self._folder = folder
        made = ground.backend(folder, node, templates=self._templates)
        await made.start()
        try:
            yield made
        finally:
            await made.close()

    def artifact(self, code: str, folder: Path) -> Path:
        return write_code(code, folder)

    def leftovers(self, node: str) -> list[str]:
        files = ground.files(self._folder) if self._folder else []
        return ground.processes(node) + ground.groups(node) + files
