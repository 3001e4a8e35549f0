"""Machines that were saved with a function loaded, on disk: any number of others go on from one.

What a machine had as drives is kept with its state, because its memory knows what it has read of them. Nothing of it outlives
the daemon: the token that the saved agent expects is in this process's memory only.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from nova.ids import new_id

log = structlog.get_logger(__name__)

STATE: Final = "state"
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """``name`` and ``token`` are what the agent inside takes for its own until it is thawed. ``drives``: the root first;
    ``stamps`` are what the files were, so that no machine goes on from others."""

    folder: Path
    name: str
    token: bytes
    command_line: str
    drives: tuple[Path, ...]
    stamps: tuple[tuple[int, int, int], ...]

    @property
    def state(self) -> Path:
        return self.folder / STATE

    @property
    def usable(self) -> bool:
        """Every file is the one it was."""
        try:
            return self.stamps == stamps([*self.drives, self.state])
        except OSError:
            return False


def stamps(files: Iterable[Path]) -> tuple[tuple[int, int, int], ...]:
    """Raises OSError."""
    found = [file.stat() for file in files]
    return tuple((stat.st_ino, stat.st_size, stat.st_mtime_ns) for stat in found)


class Snapshots:
    """Those of one daemon, below ``folder``. Blocking."""

    def __init__(self, folder: Path, most_mb: int) -> None:
        self._folder = folder
        self._most = most_mb * _MIB
        self._saved: dict[str, Saved] = {}
        """by key, used longest ago first"""

    def sweep(self) -> list[str]:
        """Remove what a killed daemon left; returns the names."""
        found = [path.name for path in self._folder.glob("*")] if self._folder.is_dir() else []
        shutil.rmtree(self._folder, ignore_errors=True)
        return found

    def workshop(self) -> Path:
        """A new folder for one that is being made; the caller removes it if nothing comes of it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = self._folder / f".{new_id()}"
        folder.mkdir(mode=0o700)
        return folder

    def keep(self, key: str, work: Path, *, name: str, token: bytes, command_line: str, drives: Sequence[Path]) -> None:
        """Take over what was made in ``work``, in place of an older one of this key. Others go when there is no room."""
        self.drop(key)
        folder = self._folder / hashlib.sha256(f"{key} {name}".encode()).hexdigest()[:32]
        os.rename(work, folder)
        moved = tuple(folder / path.name if path.parent == work else path for path in drives)
        files = [*moved, folder / STATE]
        self._saved[key] = Saved(folder, name, token, command_line, moved, stamps(files))
        self._make_room(key)

    def find(self, key: str) -> Saved | None:
        """None when there is none that is whole."""
        saved = self._saved.pop(key, None)
        if saved is None:
            return None
        self._saved[key] = saved
        if saved.usable:
            return saved
        log.warning("the files of a snapshot have changed; it is dropped", snapshot=saved.folder.name)
        self.drop(key)
        return None

    def drop(self, key: str) -> None:
        """Machines that came from it live on: they have its files open."""
        saved = self._saved.pop(key, None)
        if saved is not None:
            shutil.rmtree(saved.folder, ignore_errors=True)

    def size(self, key: str) -> int:
        """Bytes on disk of its state; 0 when there is none."""
        saved = self._saved.get(key)
        return saved.state.stat().st_blocks * 512 if saved is not None and saved.usable else 0

    def close(self) -> None:
        self._saved.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_room(self, newest: str) -> None:
        sizes = {key: _size(saved.folder) for key, saved in self._saved.items()}
        for key in [key for key in self._saved if key != newest]:
            if sum(sizes.values()) <= self._most:
                return
            del sizes[key]
            self.drop(key)


def _size(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())
