"""What processes of a node say of the images that they make, so that any of them can tell."""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from nova.execution.images.images import Form


@dataclass(frozen=True, slots=True)
class Progress:
    """``detail``: the step, or why it failed."""

    runtime: str
    form: Form
    digest: str
    status: Literal["building", "failed"]
    detail: str


class ProgressFile:
    """One small file per runtime and form, below ``folder``. Who makes an image holds a lock on it, so that a process that
    was killed is not believed for ever."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "progress"

    @contextlib.contextmanager
    def of(self, progress: Progress) -> Iterator[Callable[[str], None]]:
        """While it is being made; the caller is given what to tell the steps. Nothing is left at the end."""
        path = self._path(progress)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.keep(progress)
        with open(path.with_suffix(".lock"), "wb") as lock:
            with contextlib.suppress(BlockingIOError):  # another process makes the same: either's steps will do
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield lambda step: self.keep(replace(progress, detail=step))
        path.unlink(missing_ok=True)

    def keep(self, progress: Progress) -> None:
        path = self._path(progress)
        beside = path.with_suffix(f".{os.getpid()}.new")
        beside.write_text(json.dumps(asdict(progress)))
        beside.rename(path)

    def all(self) -> list[Progress]:
        return [self._read(path) for path in sorted(self._folder.glob("*.json"))]

    def _read(self, path: Path) -> Progress:
        told = Progress(**json.loads(path.read_text()))
        if told.status == "building" and not _held(path.with_suffix(".lock")):
            return replace(told, status="failed", detail=f"its process ended while it was {told.detail}")
        return told

    def _path(self, progress: Progress) -> Path:
        return self._folder / f"{progress.runtime}-{progress.form}.json"


def _held(path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
