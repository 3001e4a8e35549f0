"""Numbers that several daemons on one host must not use twice: addresses and CIDs, in a table under a file lock.

The table lies where a reboot empties it, as a reboot ends the machines. Each number is written down with the node that has
it; a node gives back what its killed predecessor of the same name had, and never what another node has.
"""

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nova.errors import NovaError

DEFAULT_FOLDER: Final = Path("/run/lock/nova-vm")

Table = dict[str, dict[str, str]]
"""kind → number → node"""


class Leases:
    """What ``node`` has of the table in ``folder``. Blocking for as long as others hold the lock: microseconds."""

    def __init__(self, folder: Path, node: str) -> None:
        self._folder = folder
        self._node = node

    def take(self, kind: str, first: int, last: int) -> int:
        """The lowest number of ``kind`` from ``first`` to ``last`` that nobody has. Raises NovaError ``capacity``."""
        with self._changing() as table:
            taken = table.setdefault(kind, {})
            for number in range(first, last + 1):
                if str(number) not in taken:
                    taken[str(number)] = self._node
                    return number
        raise NovaError("capacity", f"every {kind} from {first} to {last} is in use on this host", retry_after_s=1)

    def release(self, kind: str, number: int) -> None:
        """Give it back; nothing happens when this node does not have it."""
        with self._changing() as table:
            taken = table.get(kind, {})
            if taken.get(str(number)) == self._node:
                del taken[str(number)]

    def held(self, kind: str) -> list[int]:
        """What this node has."""
        with self._locked():
            taken = self._read().get(kind, {})
        return sorted(int(number) for number, node in taken.items() if node == self._node)

    def release_all(self) -> list[str]:
        """Give back everything this node has; returns it as ``kind number``."""
        released = []
        with self._changing() as table:
            for kind, taken in table.items():
                mine = [number for number, node in taken.items() if node == self._node]
                for number in mine:
                    del taken[number]
                released += [f"{kind} {number}" for number in mine]
        return released

    @contextlib.contextmanager
    def joining(self, kind: str) -> Iterator[int]:
        """Be one of those that use something together, such as a bridge; the number is for :meth:`leaving`. The block makes
        sure that it is there; nobody else joins or leaves meanwhile, and when it fails this node has not joined."""
        with self._changing() as table:
            taken = table.setdefault(kind, {})
            number = next(number for number in itertools.count(1) if str(number) not in taken)
            taken[str(number)] = self._node
            yield number

    @contextlib.contextmanager
    def leaving(self, kind: str, number: int) -> Iterator[bool]:
        """The opposite: true for who was the last, and then the block removes it."""
        with self._changing() as table:
            taken = table.get(kind, {})
            taken.pop(str(number), None)
            yield not taken

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Table]:
        with self._locked():
            table = self._read()
            yield table
            beside = self._folder / "table.new"
            beside.write_text(json.dumps(table))
            beside.replace(self._folder / "table")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _read(self) -> Table:
        try:
            table: Table = json.loads((self._folder / "table").read_text())
        except FileNotFoundError:
            return {}
        return table
