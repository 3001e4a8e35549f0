"""A directory of its own for each process that runs instances: several may stand on one data directory."""

import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from nova.errors import NovaError

MOST = 64


@dataclass(slots=True)
class Home:
    """``path`` belongs to this process until :meth:`release`; ``place`` is its number. The lock is the kernel's: it ends
    with the process, so whoever takes the place next finds, and cleans up, what a killed process left."""

    path: Path
    place: int
    _lock: IO[str]

    def release(self) -> None:
        self._lock.close()


def take_home(data_dir: Path, place: int | None = None) -> Home:
    """The first place under ``data_dir`` that nobody has, or the one that is named. Raises NovaError ``capacity`` when there
    is none."""
    for number in range(MOST) if place is None else (place,):
        path = data_dir / "nodes" / str(number)
        path.mkdir(parents=True, exist_ok=True, mode=0o711)
        lock = (path / "lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        return Home(path, number, lock)
    if place is not None:
        raise NovaError("capacity", f"another process has place {place} of {data_dir}")
    raise NovaError("capacity", f"{MOST} processes run instances on {data_dir} already")
