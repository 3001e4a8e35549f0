"""One backend for the tests of this folder."""

import uuid
from collections.abc import AsyncIterator

import pytest

from nova.execution.backends.docker.backend import DockerBackend
from tests.backends.cases import Case as AnyCase
from tests.backends.docker import ground
from tests.backends.docker.case import Case
from tests.backends.harness import Maker


@pytest.fixture(scope="module")
def node() -> str:
    return f"test-{uuid.uuid4().hex[:6]}"


@pytest.fixture(scope="module")
async def docker(
    anyio_backend: str, node: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[DockerBackend]:
    if reason := ground.missing():
        pytest.skip(reason)
    backend = ground.backend(tmp_path_factory.mktemp("docker"), node)
    await backend.start()
    yield backend
    await backend.close()
    assert ground.containers(node) == []


@pytest.fixture(scope="module")
def maker(docker: DockerBackend, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    found: AnyCase = Case()
    folder = tmp_path_factory.mktemp("code")
    folder.chmod(0o755)
    return Maker(found, docker, folder)
