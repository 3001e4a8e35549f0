"""Firecracker, its jailer and a kernel of our own, for tests: found on this host or fetched once into the user's cache."""

import fcntl
import functools
import os
import shutil
import subprocess
from pathlib import Path

from nova.errors import NovaError
from nova.execution.backends.firecracker.jail import Programs
from nova.execution.images.programs import obtain

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
    except (OSError, NovaError) as error:
        return f"firecracker is not here and could not be fetched: {error}"
    return ""


@functools.cache
def programs() -> Programs:
    """Raises NovaError, OSError."""
    given = Path(os.environ.get("NOVA_TEST_FIRECRACKER", "/opt/nova/bin"))
    found = Programs(given / "firecracker", given / "jailer")
    if found.firecracker.exists() and found.jailer.exists():
        return found
    folder = cache("nova-test-firecracker")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        obtain(folder / "firecracker", folder / "jailer", lambda _step: None)
    return Programs(folder / "firecracker", folder / "jailer")


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
