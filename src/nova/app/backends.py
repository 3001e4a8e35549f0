"""The backends that this host may have beside the sandbox, one entry each."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from nova.config import Settings
from nova.execution.backends.base import Backend
from nova.execution.backends.probing import Candidate, Proofs
from nova.runtimes.registry import Runtimes


@dataclass(frozen=True, slots=True)
class Ground:
    """What backends are made of. ``home`` belongs to this process alone; ``node`` is a name no other process of the host
    has."""

    settings: Settings
    runtimes: Runtimes
    home: Path
    node: str
    place: int


@dataclass(frozen=True, slots=True)
class Entry:
    """``missing`` says at once what the host lacks, empty when the backend is worth a try; ``make`` imports what it needs.
    ``depends`` are the files without which, or with others, what has booted before may not boot again."""

    make: Callable[[Ground], Backend]
    missing: Callable[[Settings], str] = lambda _settings: ""
    depends: Callable[[Settings], Iterable[Path]] = lambda _settings: ()


ENTRIES: dict[str, Entry] = {}


def candidates(ground: Ground) -> list[Candidate]:
    return [_candidate(name, entry, ground) for name, entry in ENTRIES.items()]


def _candidate(name: str, entry: Entry, ground: Ground) -> Candidate:
    return Candidate(name, lambda: entry.make(ground), lambda: entry.missing(ground.settings))


def proofs(ground: Ground) -> Proofs:
    """Kept beside what else this process keeps."""
    return Proofs(ground.home / "backends.json", {name: _depends(entry, ground) for name, entry in ENTRIES.items()})


def _depends(entry: Entry, ground: Ground) -> Callable[[], Iterable[Path]]:
    return lambda: entry.depends(ground.settings)
