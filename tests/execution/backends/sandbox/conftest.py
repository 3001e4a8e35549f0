from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.execution.backends.sandbox.backend import SandboxBackend
from tests.execution.backends.sandbox.harness import PythonOnly, options


@pytest.fixture(scope="module")
async def sandbox(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SandboxBackend]:
    """A backend without templates: every instance is booted when it is asked for."""
    folder: Path = tmp_path_factory.mktemp("sandbox")
    backend = SandboxBackend(options(folder), PythonOnly())
    await backend.start()
    assert (await backend.capabilities()).available
    yield backend
    await backend.close()
