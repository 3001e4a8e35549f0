"""How many connections each of the processes has that accept on the same sockets: counts in memory that they share.

Who has more than another leaves the next connection to it for a moment. How busy a process is says less: the first that is
awake would take them all, and serve them long after the others have become idle.
"""

import mmap
from typing import Final

_ABSENT: Final = (1 << 64) - 1


class Shares:
    """Made before the processes are forked; :meth:`of` gives one its own view."""

    def __init__(self, count: int) -> None:
        self._cells = memoryview(mmap.mmap(-1, 8 * count)).cast("Q")
        for number in range(count):
            self.leave(number)

    def of(self, number: int) -> "Share":
        return Share(self._cells, number)

    def leave(self, number: int) -> None:
        """That process accepts nothing: nobody waits for it."""
        self._cells[number] = _ABSENT


class Share:
    """One process's view. Only it writes in its place."""

    def __init__(self, cells: "memoryview[int]", number: int) -> None:
        self._cells = cells
        self._number = number

    def tell(self, connections: int) -> None:
        self._cells[self._number] = connections

    def leave(self) -> None:
        """Accept nothing any more."""
        self._cells[self._number] = _ABSENT

    @property
    def above_others(self) -> bool:
        """Does another accepting process have fewer?"""
        return self._cells[self._number] > min(self._cells)
