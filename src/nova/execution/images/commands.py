"""Running the programs that make images: mmdebstrap, tar, mkfs.ext4. What they say is kept for the error, not shown."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from nova.errors import NovaError

PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
PACKAGES: Final = {"mmdebstrap": "mmdebstrap", "mkfs.ext4": "e2fsprogs", "dpkg-deb": "dpkg", "apt-get": "apt"}
"""Which Debian package has a program that may be missing."""
_LINES: Final = 5


def missing(*programs: str) -> list[str]:
    """The packages to install for those of ``programs`` that are not here."""
    return [PACKAGES.get(name, name) for name in programs if shutil.which(name, path=PATH) is None]


def run(*argv: str, timeout_s: float, cwd: Path | None = None) -> str:
    """Stdout of a command. Raises NovaError ``dependency_unavailable`` with the end of what it said when it fails."""
    program = shutil.which(argv[0], path=PATH)
    if program is None:
        package = PACKAGES.get(argv[0], argv[0])
        raise NovaError("dependency_unavailable", f"{argv[0]} is not installed here: apt-get install {package}")
    environment = {
        **os.environ,
        "PATH": PATH,
        "LC_ALL": "C",
        "SOURCE_DATE_EPOCH": "0",
        "DEBIAN_FRONTEND": "noninteractive",
    }
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NovaError("dependency_unavailable", f"{argv[0]} took longer than {timeout_s:g} s") from None
    if done.returncode != 0:
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LINES:])
        raise NovaError("dependency_unavailable", f"{argv[0]} failed with exit code {done.returncode}: {said}")
    return done.stdout


def as_root(*argv: str) -> tuple[str, ...]:
    """The same command; for another user with files that look like root's."""
    return argv if os.geteuid() == 0 else ("unshare", "--map-root-user", "--", *argv)
