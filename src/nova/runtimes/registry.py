"""The runtimes of this host, by the ids that users write: ``python``, ``python3.11``, ``node``, ``node20``, ``custom``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nova.errors import NovaError, invalid
from nova.runtimes import manifest, toolchains
from nova.runtimes.manifest import Manifest
from nova.runtimes.toolchains import Toolchain, ToolchainMissing

_FOLDER: Final = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Runtime:
    """A language and what of it is here: ``toolchain``, or ``reason`` why there is none."""

    manifest: Manifest
    folder: Path
    toolchain: Toolchain | None
    reason: str

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def version(self) -> str:
        """What really runs here, like ``3.11``; empty for runtimes without a toolchain of their own."""
        return _minor(self.toolchain.version) if self.toolchain else ""

    def ids(self) -> list[str]:
        """Every id that means this runtime here, the plain one first."""
        names = [self.id, *self.manifest.aliases]
        if not self.toolchain or not self.toolchain.version:
            return names
        major, minor = self.toolchain.version.split(".")[:2]
        versions = [f"{major}.{minor}", major, f"{major}.x"]
        return [*names, *(f"{name}{version}" for name in names for version in versions)]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A runtime id that can run here. ``host_paths`` must be visible read-only inside, at the same absolute path."""

    runtime: str
    version: str
    manifest: Manifest
    toolchain: Toolchain
    folder: Path

    @property
    def bootstrap(self) -> Path | None:
        """The worker's program in the language's own form, where it has one."""
        return self.folder / self.manifest.worker.bootstrap if self.manifest.worker.bootstrap else None

    @property
    def host_paths(self) -> tuple[Path, ...]:
        own = (self.folder,) if self.bootstrap else ()
        return (*self.toolchain.host_paths, *own)


class Runtimes:
    """Every runtime of the package, looked up once. Making one runs each toolchain's version check."""

    def __init__(self) -> None:
        self._runtimes = {runtime.id: runtime for runtime in _discover()}
        self._by_id = {name: runtime for runtime in self._runtimes.values() for name in runtime.ids()}

    def list(self) -> Sequence[Runtime]:
        return [self._runtimes[name] for name in sorted(self._runtimes)]

    def get(self, runtime_id: str) -> Runtime:
        """The runtime that an id means. Raises ``validation_failed`` with what exists."""
        runtime = self._by_id.get(runtime_id)
        if runtime is None:
            known = ", ".join(sorted(self._by_id))
            raise invalid("runtime", f"{runtime_id!r} does not exist here; known are {known}")
        return runtime

    def resolve(self, runtime_id: str) -> Resolved:
        """Raises ``validation_failed`` for an unknown id, ``runtime_unavailable`` when its toolchain is missing."""
        runtime = self.get(runtime_id)
        if runtime.toolchain is None:
            usable = ", ".join(other.id for other in self.list() if other.toolchain)
            raise NovaError(
                "runtime_unavailable", f"runtime {runtime.id!r} cannot run here: {runtime.reason}; available: {usable}"
            )
        return Resolved(runtime.id, runtime.version, runtime.manifest, runtime.toolchain, runtime.folder)


def _discover() -> Iterator[Runtime]:
    for file in sorted(_FOLDER.glob("*/runtime.toml")):
        described = manifest.load(file.parent)
        try:
            yield Runtime(described, file.parent, toolchains.find(described.toolchain), "")
        except ToolchainMissing as missing:
            yield Runtime(described, file.parent, None, str(missing))


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
