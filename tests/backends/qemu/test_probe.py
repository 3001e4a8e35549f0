"""Which accelerator is taken: what a guest has run with, not what a device node promises."""

import os
from pathlib import Path

import pytest

from nova.execution.backends.qemu import options as options_module
from nova.execution.backends.qemu import probe
from nova.execution.backends.qemu.options import missing
from nova.execution.images.kernel import Kernels
from tests.backends.qemu import ground

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(bool(ground.missing()), reason=ground.missing()),
]


def emulator(path: Path, says: str) -> str:
    """A program in QEMU's place that writes down that it ran."""
    path.write_text(f"#!/bin/sh\necho run >> {path}.runs\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


def runs(path: Path) -> int:
    return len(Path(f"{path}.runs").read_text().split()) if os.path.exists(f"{path}.runs") else 0


async def test_kvm_is_taken_where_a_guest_runs_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options_module, "KVM", tmp_path / "kvm")
    binary = tmp_path / "qemu"
    found = ground.options(
        tmp_path, "p", binary=emulator(binary, "nova-guest-runs-programs"), accel="auto", home=tmp_path
    )
    assert (await probe.best_accelerator(found), runs(binary)) == ("tcg", 0), "no device, no question"
    (tmp_path / "kvm").touch()
    for _ in range(2):
        assert (await probe.best_accelerator(found), runs(binary)) == ("kvm", 1)
    emulator(binary, "error: failed to set MSR")
    for _ in range(2):
        assert (await probe.best_accelerator(found), runs(binary)) == ("tcg", 2), "another program is asked anew"


async def test_a_guest_really_runs(tmp_path: Path) -> None:
    """The probe's guest, emulated: what it waits for is what such a guest says."""
    assert await probe.runs(ground.options(tmp_path, "p"), "tcg", limit_s=60)


async def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """BE11: and nothing is raised."""
    assert "not-there is not installed" in missing(ground.options(tmp_path, "p", binary="not-there"))
    without_kernel = ground.options(tmp_path, "p", kernels=Kernels(tmp_path))
    assert "nova setup kernel" in missing(without_kernel)
    backend = ground.backend(tmp_path, "p", kernels=Kernels(tmp_path))
    await backend.start()
    capabilities = await backend.capabilities()
    assert (capabilities.available, capabilities.runtimes) == (False, frozenset())
    assert "nova setup kernel" in capabilities.reason
    await backend.close()
