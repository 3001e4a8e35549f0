"""A bounded file store for call records that the database cannot take now; they are replayed when it can.

Records lie in segments: each a file of length-prefixed rows, written by one process and deleted when it is in the
database. The name of a segment carries the layout of its rows. A segment that was cut off by a crash is good up to its
last whole row. Methods block; run them in a thread.
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)
_length = struct.Struct("!I")


class Spill:
    """Segments in ``directory``, together at most ``max_bytes``."""

    def __init__(self, directory: Path, layout: str, *, max_bytes: int) -> None:
        self._directory = directory
        self._layout = layout
        self._max = max_bytes
        self._lock = threading.Lock()
        self._sizes: dict[Path, int] = {}
        self._current: Path | None = None
        self._next = 1

    def open(self) -> int:
        """Find what a predecessor left. Returns the number of rows that cannot be used because their layout is another."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        unusable = 0
        for path in sorted(self._directory.glob("*.rows")):
            number, _, layout = path.stem.partition("-")
            if layout == self._layout and number.isdigit():
                self._sizes[path] = path.stat().st_size
                self._next = max(self._next, int(number) + 1)
            else:
                unusable += sum(1 for _ in _rows(path))
                path.unlink()
        return unusable

    @property
    def empty(self) -> bool:
        return not self._sizes

    def put(self, rows: Sequence[bytes]) -> int:
        """Append rows; returns how many found room. Raises OSError when the disk refuses them: none of them is kept."""
        with self._lock:
            room = self._max - sum(self._sizes.values())
            taken: list[bytes] = []
            for row in rows:
                room -= len(row) + _length.size
                if room < 0:
                    break
                taken += (_length.pack(len(row)), row)
            if not taken:
                return 0
            path = self._segment()
            try:
                with path.open("ab") as file:
                    file.write(b"".join(taken))
            except OSError:
                self._abandon(path)
                raise
            self._sizes[path] = path.stat().st_size
            return len(taken) // 2

    def segments(self) -> list[Path]:
        """Every segment, oldest first; what is put from now on goes into a new one."""
        with self._lock:
            self._current = None
            return sorted(self._sizes)

    def read(self, segment: Path) -> Iterator[bytes]:
        """The rows of a segment, in order."""
        return _rows(segment)

    def done(self, segment: Path) -> None:
        """Forget a segment: its rows are in the database."""
        with self._lock:
            segment.unlink(missing_ok=True)
            self._sizes.pop(segment, None)

    def leave(self, segment: Path) -> None:
        """Stop counting on a segment that cannot be read, without deleting it."""
        with self._lock:
            self._sizes.pop(segment, None)

    def _segment(self) -> Path:
        if self._current is None:
            self._current = self._directory / f"{self._next:010d}-{self._layout}.rows"
            self._next += 1
        return self._current

    def _abandon(self, path: Path) -> None:
        """After a failed write a segment may end in half a row: cut it back, and go on in a new one."""
        self._current = None
        kept = self._sizes.get(path, 0)
        try:
            with path.open("ab") as file:
                file.truncate(kept)
        except OSError as exc:
            log.error("a spill segment keeps half a record at its end", path=str(path), error=str(exc))


def _rows(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while len(head := file.read(_length.size)) == _length.size:
            row = file.read(_length.unpack(head)[0])
            if len(row) < _length.unpack(head)[0]:
                return
            yield row
