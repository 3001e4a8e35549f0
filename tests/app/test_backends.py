"""Every backend that is wired can be named, and nothing else can."""

from pathlib import Path
from typing import get_args

import pytest
from tests.execution.fakes import FakeBackend

from nova.api.functions import Backend as Named
from nova.app.backends import ENTRIES, WASM, Ground, candidates
from nova.config import ExecutionSettings, Settings
from nova.execution.backends.base import STRENGTH
from nova.execution.images import Images
from nova.runtimes.registry import Runtimes

pytestmark = pytest.mark.anyio


def test_names() -> None:
    assert set(get_args(Named)) == {"auto", "sandbox", *ENTRIES}
    default = ExecutionSettings.model_fields["backend"].annotation
    assert set(get_args(default)) == set(get_args(Named)) - {WASM}
    assert set(ENTRIES) <= set(STRENGTH)


async def test_what_is_missing_is_said_at_once(tmp_path: Path) -> None:
    """BE11: an engine that is not there makes its backend unavailable with a reason, and nothing is imported for it."""
    settings = Settings()
    settings.docker.host = f"unix://{tmp_path}/nobody.sock"
    runtimes = Runtimes()
    ground = Ground(settings, runtimes, Images(tmp_path, runtimes), FakeBackend(), tmp_path, "node", 0)
    docker = next(each for each in candidates(ground) if each.name == "docker")
    found = await docker.look()
    assert (found.available, found.isolation) == (False, "container")
    assert "nobody.sock" in found.reason
    assert docker.backend is None
    settings.docker.host = ""
    another = next(each for each in candidates(ground) if each.name == "docker")
    assert (await another.look()).reason == "docker.host is empty"
