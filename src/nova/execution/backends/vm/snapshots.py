"""Machines kept on disk with a function loaded: any number of others go on from one.

Nothing of it outlives the daemon, because the token that a kept agent expects is in this process's memory only. A snapshot is
used as long as everything that it was made with is the same: ``fingerprint`` stands for that, and the files must be the very
files that were written.
"""

import hashlib
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.ids import new_id

log = structlog.get_logger(__name__)

UNUSED_S: Final = 24 * 3600.0
"""A snapshot that nothing came from for so long goes."""
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Kept:
    """``name`` and ``token`` are what the agent inside takes for its own until it is thawed."""

    folder: Path
    name: str
    token: bytes
    fingerprint: str
    stamps: tuple[tuple[str, int, int, int], ...]
    used: float

    @property
    def files(self) -> list[Path]:
        return [self.folder / name for name, *_ in self.stamps]


class KeptMachines:
    """Those of one daemon, below ``folder``. Blocking: call it in threads, any number at once."""

    def __init__(self, folder: Path, most_mb: int, clock: Clock = SYSTEM_CLOCK) -> None:
        """``most_mb``: what all of them may take on disk; those used longest ago go first."""
        self._folder = folder
        self._most = most_mb * _MIB
        self._clock = clock
        self._kept: dict[str, Kept] = {}
        """by key, used longest ago first"""
        self._turn = threading.RLock()

    def sweep(self) -> list[str]:
        """Remove what a killed daemon left; returns the names."""
        found = sorted(path.name for path in self._folder.glob("*")) if self._folder.is_dir() else []
        shutil.rmtree(self._folder, ignore_errors=True)
        return found

    def workshop(self) -> Path:
        """A new folder for one that is being made; the caller removes it if nothing comes of it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self._folder / f"new-{new_id()}"
        folder.mkdir(mode=0o700)
        return folder

    def keep(self, key: str, work: Path, *, name: str, token: bytes, fingerprint: str) -> None:
        """Take over the files in ``work`` in place of an older snapshot of this key. Others go when there is no room."""
        folder = self._folder / hashlib.sha256(f"{key} {name}".encode()).hexdigest()[:32]
        with self._turn:
            self.drop(key)
            work.rename(folder)
            self._kept[key] = Kept(folder, name, token, fingerprint, _stamps(folder), self._clock.monotonic())
            self._forget(key)

    def find(self, key: str, fingerprint: str) -> Kept | None:
        """None when there is none that is whole and made with the same."""
        with self._turn:
            kept = self._kept.get(key)
            if kept is None:
                return None
            if kept.fingerprint != fingerprint or not kept.folder.is_dir() or _stamps(kept.folder) != kept.stamps:
                log.warning("a snapshot was made with something else or its files have changed; it is dropped")
                self.drop(key)
                return None
            del self._kept[key]
            self._kept[key] = kept = replace(kept, used=self._clock.monotonic())
            return kept

    def drop(self, key: str) -> None:
        """Machines that came from it live on: they have its files open."""
        with self._turn:
            kept = self._kept.pop(key, None)
        if kept is not None:
            shutil.rmtree(kept.folder, ignore_errors=True)

    def size(self, key: str) -> int:
        """Bytes on disk; 0 when there is none."""
        with self._turn:
            kept = self._kept.get(key)
        return _size(kept.files) if kept is not None else 0

    def close(self) -> None:
        with self._turn:
            self._kept.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _forget(self, newest: str) -> None:
        now = self._clock.monotonic()
        sizes = {key: _size(kept.files) for key, kept in self._kept.items()}
        for key in [key for key in self._kept if key != newest]:
            if now - self._kept[key].used > UNUSED_S or sum(sizes.values()) > self._most:
                del sizes[key]
                self.drop(key)


def _stamps(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    found = ((path.name, path.stat()) for path in sorted(folder.iterdir()))
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _size(files: Sequence[Path]) -> int:
    """Files have holes where a machine never wrote."""
    return sum(path.stat().st_blocks * 512 for path in files if path.exists())
