"""What goes into the image of a runtime, and the digest that stands for it."""

import hashlib
import json
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Final

import nova
from nova.agent.config import WorkerLaunch
from nova.execution.launch import launch_for
from nova.runtimes.manifest import ImageSection
from nova.runtimes.registry import Resolved

REVISION: Final = 2
"""Part of every digest: raised when the same recipe is to make something else."""
COMMON: Final = (
    "base-files",
    "ca-certificates",
    "coreutils",
    "dash",
    "grep",
    "libpython3-stdlib",
    "libstdc++6",
    "python3-minimal",
    "sed",
    "tzdata",
)
"""Packages of every image: the agent's Python, and what small programs expect of a Linux."""
HOME: Final = PurePosixPath("/opt/nova")
LIBRARY: Final = HOME / "lib"
_PACKAGE: Final = Path(nova.__file__).parent
_FALLBACK_SUITE: Final = "bookworm"
_RELEASE: Final = Path("/etc/os-release")


@dataclass(frozen=True)
class Recipe:
    """Everything that the image of ``resolved`` is made of. ``suite`` is the Debian release that its packages come from."""

    resolved: Resolved
    section: ImageSection
    suite: str

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(sorted({*COMMON, *self.section.packages}))

    @cached_property
    def digest(self) -> str:
        """12 hex digits over the recipe, the host's toolchain version, and the sources of agent and runtime."""
        parts = {
            "revision": REVISION,
            "stem": self.stem_digest,
            "section": self.section.model_dump(mode="json"),
            "toolchain": self.resolved.toolchain.version,
            "launch": self.launch().as_dict(),
            "sources": [(name, _hash(path)) for name, path in sorted(self.sources())],
        }
        return _short(parts)

    @property
    def stem_digest(self) -> str:
        """Stands for the packages alone; images with the same packages share their stem."""
        return stem_digest(self.packages, self.suite)

    def launch(self) -> WorkerLaunch:
        """How a worker starts inside: paths are those of the image."""
        tool = Path(self.section.tool) if self.section.tool else None
        inside = Path(LIBRARY) / self.resolved.folder.relative_to(_PACKAGE.parent)
        there = replace(self.resolved, folder=inside, toolchain=replace(self.resolved.toolchain, program=tool))
        return launch_for(there)

    def sources(self) -> Iterator[tuple[str, Path]]:
        """The files of this package that the image holds, by their path below :data:`LIBRARY`: the agent and one runtime."""
        for name in ("__init__.py", "runtimes/__init__.py"):
            yield f"nova/{name}", _PACKAGE / name
        for part in (_PACKAGE / "agent", self.resolved.folder):
            for path in part.rglob("*"):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield f"nova/{path.relative_to(_PACKAGE)}", path


def stem_digest(packages: tuple[str, ...], suite: str) -> str:
    return _short({"revision": REVISION, "packages": packages, "suite": suite, "machine": platform.machine()})


def host_suite() -> str:
    """The Debian release of this host, so that what is built here runs there; elsewhere a fixed one."""
    words = dict(line.split("=", 1) for line in _RELEASE.read_text().splitlines() if "=" in line)
    if words.get("ID") == "debian" and "VERSION_CODENAME" in words:
        return words["VERSION_CODENAME"].strip('"')
    return _FALLBACK_SUITE


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _short(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
