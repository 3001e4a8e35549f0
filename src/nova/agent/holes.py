"""Filling the holes in this process's memory, so that what its forks allocate lies together.

A process that has loaded much and thrown some of it away has room for small objects on nearly every page. A fork would put
its own there, and each page that it writes to is then a copy of its own, where a few fresh ones would do.
"""

import ctypes
from collections.abc import Iterable
from typing import Any, Final

_POOL: Final = 16 << 10
"""Bytes of a pool of CPython's allocator (3.10 and later), which has objects of one size."""
_POOL_HEAD: Final = 48
_SMALL: Final = 512
"""Larger objects come from the C library."""
_MOST: Final = 100_000
"""Objects of one size, at most: if the allocator is another, this does no good and no harm."""
_TOP: Final = 120_000
"""Bytes that no hole has, as a rule, and that are not mapped for themselves either."""

_libc: Final = ctypes.CDLL(None)
_libc.malloc.argtypes, _libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
_libc.free.argtypes, _libc.free.restype = [ctypes.c_void_p], None

_filling: list[Any] = []


def fill() -> None:
    """Call when everything is loaded and the garbage collected. What lies in the holes stays there."""
    empty = b"".__sizeof__()
    _fill_pools(map(float, range(_MOST)))  # 32 bytes with their padding, less than any bytes object has
    for size in range(48, _SMALL + 1, 16):
        _fill_pools(bytes(size - empty) for _ in range(_MOST))
    _fill_heap()


def _fill_pools(fillers: Iterable[Any]) -> None:
    """With objects of one size, until a fresh pool is begun."""
    for filler in fillers:
        if id(filler) % _POOL == _POOL_HEAD:
            return
        _filling.append(filler)


def _fill_heap() -> None:
    """From the largest hole to the smallest: until what is got lies behind all of them."""
    top = _libc.malloc(_TOP)
    behind = [top]
    for size in (*range(60_000, 1_100, -512), *range(1_100, 8, -16)):
        for _ in range(_MOST):
            got = _libc.malloc(size)
            if got is None or got > top:
                behind.append(got)
                break
    for place in behind:
        _libc.free(place)
