"""Builds in the real sandbox, with the real pip and npm and the registries that they are configured for."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from nova.config import BuildSettings, QueueSettings
from nova.execution.artifacts import Artifacts
from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.execution.builds import Builder
from nova.execution.builds_service import BuildService
from nova.runtimes.registry import Runtimes
from nova.store.blobs import BlobStore
from nova.store.builds import BuildRecord, BuildStore
from nova.store.db import Database
from nova.store.listen import Listener
from tests.execution.builds_support import NODE_CONFIG, SCOPE, Deployer, finished, sandbox

pytestmark = pytest.mark.anyio
MAIN = {"main.py": "def handler(event):\n    return event\n"}
INDEX = {"index.js": "exports.handler = async () => 1;\n"}
Build = Callable[..., Awaitable[BuildRecord]]


@pytest.fixture(scope="module")
async def backend() -> AsyncIterator[SandboxBackend]:
    async with sandbox() as backend:
        capabilities = await backend.capabilities()
        assert capabilities.available, capabilities.reason
        yield backend


@pytest.fixture
async def listener(pg_dsn: str) -> AsyncIterator[Listener]:
    listener = Listener(pg_dsn)
    await listener.start()
    yield listener
    await listener.close()


@pytest.fixture
def settings() -> BuildSettings:
    return BuildSettings()


@pytest.fixture
async def build(
    database: Database, listener: Listener, backend: SandboxBackend, settings: BuildSettings, tmp_path: Path
) -> AsyncIterator[Build]:
    """Deploy files and wait for the end of their build."""
    blobs, deployer = BlobStore(database), Deployer(database)
    builder = Builder(database, blobs, Runtimes(), backend, settings, tmp_path)
    service = BuildService(database, listener, blobs, builder, build=settings, queue=QueueSettings(), grace_s=0.1)
    await service.start()

    async def deploy(name: str, files: dict[str, str], **options: object) -> BuildRecord:
        build_id = await deployer.deploy(name, files, **options)  # type: ignore[arg-type]
        return await finished(listener, BuildStore(database), build_id)

    yield deploy
    await service.close()


@pytest.fixture
async def artifacts(database: Database, tmp_path: Path) -> Artifacts:
    artifacts = Artifacts(BlobStore(database), tmp_path / "artifacts", max_bytes=1 << 30)
    await artifacts.start()
    return artifacts


async def log_of(database: Database, build: BuildRecord) -> str:
    return (await BuildStore(database).read_log(SCOPE, build.id)).text


def run(argv: list[str], cwd: Path | None = None) -> str:
    return subprocess.run(argv, cwd=cwd, check=True, capture_output=True, text=True).stdout.strip()


def run_python(code: Path, text: str) -> str:
    path = f"import sys; sys.path.insert(0, {str(code / 'deps')!r})"
    return run([sys.executable, "-I", "-S", "-c", f"{path}\n{text}"])


async def test_python_dependencies_are_installed(database: Database, build: Build, artifacts: Artifacts) -> None:
    """BU1: pip works in a place without network, through the registry proxy alone."""
    done = await build("thumbnails", {**MAIN, "requirements.txt": "pillow\nsix==1.16.0\n"})
    assert done.status == "succeeded", await log_of(database, done)
    assert done.artifact is not None
    code = await artifacts.materialise(done.artifact)
    found = run_python(code, "from PIL import Image; import six; print(Image.new('RGB', (3, 2)).size, six.__version__)")
    assert found == "(3, 2) 1.16.0"
    assert list((code / "deps" / "__pycache__").glob("six.*.pyc"))
    assert not os.access(code / "main.py", os.W_OK) or os.geteuid() == 0
    assert "Successfully installed" in await log_of(database, done)


async def test_node_dependencies_are_installed(database: Database, build: Build, artifacts: Artifacts) -> None:
    package = json.dumps({"name": "f", "dependencies": {"is-odd": "3.0.1"}})
    done = await build("odd", {**INDEX, "package.json": package}, config=NODE_CONFIG)
    assert done.status == "succeeded", await log_of(database, done)
    assert done.artifact is not None
    code = await artifacts.materialise(done.artifact)
    assert run(["node", "-p", "require('is-odd')(3)"], cwd=code) == "true"


async def test_a_dependency_that_does_not_exist_fails_the_build(database: Database, build: Build) -> None:
    """BU4: the error names the dependency."""
    done = await build("a", {**MAIN, "requirements.txt": "nova-no-such-package-7f3a\n"})
    assert done.status == "failed"
    assert done.error is not None
    assert "nova-no-such-package-7f3a" in done.error
    assert "no wheel of it" in done.error.splitlines()[0]
    package = json.dumps({"dependencies": {"nova-no-such-package-7f3a": "1"}})
    done = await build("b", {**INDEX, "package.json": package}, config=NODE_CONFIG)
    assert done.status == "failed"
    assert done.error is not None
    assert "nova-no-such-package-7f3a" in done.error


async def test_a_build_reaches_no_other_host(database: Database, build: Build) -> None:
    """BU1: an index of the user's own choice is refused, and the log says by whom and why."""
    done = await build("a", {**MAIN, "requirements.txt": "--index-url https://example.org/simple\nsix\n"})
    assert "example.org:443 is not one of the package registries" in await log_of(database, done)


async def test_equal_builds_give_equal_bytes(database: Database, build: Build) -> None:
    first = await build("a", {**MAIN, "requirements.txt": "six==1.16.0\n"})
    await database.run("DELETE FROM build_cache")
    second = await build("b", {**MAIN, "requirements.txt": "six==1.16.0\n"})
    assert (first.status, second.cached) == ("succeeded", False)
    assert first.artifact == second.artifact


class TestOffline:
    @pytest.fixture
    def settings(self) -> BuildSettings:
        return BuildSettings(network="none")

    async def test_no_registry_is_reached(self, build: Build) -> None:
        package = json.dumps({"dependencies": {"is-odd": "3.0.1"}})
        done = await build("odd", {**INDEX, "package.json": package}, config=NODE_CONFIG)
        assert done.status == "failed"


class TestTooLong:
    @pytest.fixture
    def settings(self) -> BuildSettings:
        return BuildSettings(timeout=0.2)

    async def test_an_endless_build_ends(self, build: Build) -> None:
        """BU1: the time limit ends the build, and names itself."""
        done = await build("a", {**MAIN, "requirements.txt": "pillow\n"})
        assert done.status == "failed"
        assert done.error is not None
        assert done.error.startswith("the build took longer than 0.2 s")
