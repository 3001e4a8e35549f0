"""A command of the platform under a clock that jumps: ``python entry.py OFFSET_FILE COMMAND ARGUMENTS…``.

OFFSET_FILE holds seconds as eight bytes of a float; whoever writes them moves this process's wall clock at once. Monotonic
time goes on as it does: that is what a clock that is set does to a machine. It is here, and not in a setting, because nobody
but a test may want it.
"""

import mmap
import struct
import sys
from datetime import UTC, datetime, timedelta
from importlib.metadata import entry_points
from pathlib import Path

from nova.clock import SystemClock

_FORMAT = struct.Struct("d")


def install(path: Path) -> None:
    """From now on every clock of this process is off by what the file says."""
    with path.open("rb") as file:
        offset = mmap.mmap(file.fileno(), _FORMAT.size, prot=mmap.PROT_READ)

    def now(_self: SystemClock) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=_FORMAT.unpack_from(offset)[0])

    SystemClock.now = now  # type: ignore[assignment, method-assign]


def jump(path: Path, seconds: float) -> None:
    """Set the file; it is made when it is not there."""
    data = _FORMAT.pack(seconds)
    if not path.exists():
        path.write_bytes(data)
    else:
        with path.open("r+b") as file:
            file.write(data)


def main() -> None:
    path, command, *arguments = sys.argv[1:]
    install(Path(path))
    (script,) = entry_points(group="console_scripts", name=command)
    sys.argv = [command, *arguments]
    sys.exit(script.load()())


if __name__ == "__main__":
    main()
