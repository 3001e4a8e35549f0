"""Durations counted in cells that grow by a constant factor, so that any percentile can be told within 5 %.

The idea is DDSketch's (Masson, Rim, Lee, 2019) with a fixed range: counts of the same cell may be added, over versions, minutes
and processes, and the error of a percentile stays the same. Cell 0 is everything up to :data:`LOWEST_MS`; cell *i* ends at
``LOWEST_MS · GROWTH^i``; the last cell has no end.
"""

from collections.abc import Sequence
from math import ceil, log

_ERROR = 0.04
"""Of a percentile, relative; leaves a margin to the 5 % that are promised."""
GROWTH = (1 + _ERROR) / (1 - _ERROR)
LOWEST_MS = 0.1
_HIGHEST_MS = 1_000_000.0
"""Above the longest time a function may run (900 s)."""
CELLS = ceil(log(_HIGHEST_MS / LOWEST_MS, GROWTH))
BOUNDS: list[float] = [LOWEST_MS * GROWTH**cell for cell in range(CELLS)]
"""The beginnings of the cells from 1 on, in milliseconds: what ``width_bucket`` wants."""


def percentile(counts: Sequence[tuple[int, int]], share: float) -> float | None:
    """The duration in milliseconds that ``share`` (0–1) of the calls did not exceed; None without any call.

    ``counts`` are pairs of cell and calls, in the order of the cells.
    """
    total = sum(count for _, count in counts)
    if not total:
        return None
    wanted = share * total
    seen = 0
    for cell, count in counts:
        seen += count
        if seen >= wanted:
            return _middle(cell)
    return _middle(counts[-1][0])


def _middle(cell: int) -> float:
    """The value whose relative distance to both ends of the cell is the same."""
    if cell == 0:
        return LOWEST_MS
    end: float = LOWEST_MS * GROWTH**cell
    return 2 * end / (GROWTH + 1)
