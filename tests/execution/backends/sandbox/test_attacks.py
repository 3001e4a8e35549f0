"""The same attacks as root and as an ordinary user: each ends at its limit, with the error that names it."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from nova.execution.backends.sandbox.backend import SandboxBackend
from tests.execution.backends.sandbox import attacks, harness
from tests.execution.backends.sandbox.attacks import ATTACKS, REFUSED, Attack

pytestmark = [pytest.mark.anyio, pytest.mark.root]

REPOSITORY = Path(__file__).parents[4]


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
async def test_as_root(sandbox: SandboxBackend, tmp_path: Path, attack: Attack) -> None:
    """BE4: every limit holds for the instance as a whole."""
    seen = await attacks.outcome(sandbox, tmp_path, attack)
    assert attack.expects(True, seen), seen


@pytest.mark.parametrize("name", ["heap", "child", "processes", "disk", "elsewhere", "descriptors", "network"])
async def test_restored(sandbox: SandboxBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """BE4: the same for an instance that came from a snapshot."""
    monkeypatch.setattr(harness, "FROM_SNAPSHOT", True)
    seen = await attacks.outcome(sandbox, tmp_path, _named(name))
    assert _named(name).expects(True, seen), seen


async def test_as_an_ordinary_user() -> None:
    """BE4, BE6: without root each limit holds as far as the table of limits says, and the rest is refused by name."""
    folder = Path("/tmp") / f"nova-attacks-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            attacks.__name__,
            str(folder),
            stdout=subprocess.PIPE,
            cwd=REPOSITORY,
            user=65534,
            group=65534,
            extra_groups=[],
            env={"PATH": "/usr/bin", "HOME": "/tmp", "PYTHONDONTWRITEBYTECODE": "1"},
        )
        async with asyncio.timeout(60):
            output, _ = await process.communicate()
    finally:
        shutil.rmtree(folder)
    report = json.loads(output)
    assert report["available"]
    hard = report["enforces"]["memory"] == "hard"
    outcomes = report["outcomes"]
    assert {name: seen for name, seen in outcomes.items() if not _named(name).expects(hard, seen)} == {}
    assert outcomes.keys() == {attack.name for attack in ATTACKS}
    if not hard:
        assert report["enforces"]["net_io"] == report["enforces"]["network_rules"] == "no"
        assert report["refusals"] == [word for word, _, _ in REFUSED]


def _named(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)
