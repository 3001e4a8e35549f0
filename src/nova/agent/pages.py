"""Memory that a fork will write to or run, known beforehand and had in one go.

A fork shares every page with the process it comes from until it writes to it. Each first write is a fault of its own, and
those are most of what the start of an agent or a worker costs. What they touch is nearly the same each time: a zygote
watches one practice run, and its later forks ask the kernel for those pages at once, before anybody waits for them.
Guest-side code: standard library only.
"""

import contextlib
import ctypes
import mmap
import os
import re
import signal
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

MOST: Final = 1 << 16
"""Pages that are looked at in one process; what lies above is left to faults."""
_POPULATE_READ, _POPULATE_WRITE = 22, 23
_PRESENT, _OF_FILE, _EXCLUSIVE = 0x80, 0x20, 0x01
"""Bits of the highest byte of what ``/proc/…/pagemap`` says about a page."""


def _kind(flags: int) -> bytes:
    if not flags & _PRESENT:
        return b"-"
    return b"u" if flags & _OF_FILE else b"w" if flags & _EXCLUSIVE else b"-"


_KINDS: Final = b"".join(map(_kind, range(256)))
_USED, _WRITTEN = re.compile(b"u+"), re.compile(b"w+")

_madvise: Final = ctypes.CDLL(None).madvise
_madvise.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int]


def _empty() -> "array[int]":
    return array("Q")


@dataclass(slots=True)
class Pages:
    """Runs of pages, each as its first address and its bytes in turn: in arrays, so that to read them copies no memory."""

    used: "array[int]" = field(default_factory=_empty)
    """of files: code and constants of the interpreter"""
    written: "array[int]" = field(default_factory=_empty)

    def have(self) -> None:
        """Map and copy them. What this kernel cannot do beforehand (before Linux 5.14 nothing) comes by faults as ever."""
        for runs, advice in ((self.used, _POPULATE_READ), (self.written, _POPULATE_WRITE)):
            for at in range(0, len(runs), 2):
                _madvise(runs[at], runs[at + 1], advice)


def less(written: "array[int]", before: "array[int]") -> "array[int]":
    """The pages of the first that are not in the second."""
    had, left = set(_each(before)), array("Q")
    for page in _each(written):
        if page in had:
            continue
        if left and left[-2] + left[-1] == page:
            left[-1] += mmap.PAGESIZE
        else:
            left.extend((page, mmap.PAGESIZE))
    return left


def _each(runs: "array[int]") -> Iterator[int]:
    for at in range(0, len(runs), 2):
        yield from range(runs[at], runs[at] + runs[at + 1], mmap.PAGESIZE)


def of_fork(work: Callable[[], None]) -> Pages:
    """What a fork of this process writes to when it does ``work``. Nothing where it cannot be looked into, or fails."""
    known = mappings()
    done, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            work()
            os.write(tell, b"x")
            signal.pause()
        os._exit(0)
    os.close(tell)
    try:
        return touched(pid, known) if os.read(done, 1) else Pages()
    except OSError:
        return Pages()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(done)


def mappings(pid: int | str = "self") -> list[tuple[int, int, bool]]:
    """Private memory of a process: first address and end of each mapping, and whether it may be written to; at most
    :data:`MOST` pages in all."""
    found, left = [], MOST
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            span, modes, *rest = line.split()
            if modes.endswith("p") and not modes.startswith("---") and not rest[-1].startswith("[v"):
                first, end = (int(text, 16) for text in span.split("-"))
                size = (end - first) // mmap.PAGESIZE
                if size <= left:
                    left -= size
                    found.append((first, end, modes[1] == "w"))
    return found


def touched(pid: int | str, known: Iterable[tuple[int, int, bool]]) -> Pages:
    """What a process has to itself of the memory ``known``, and the pages of files that it has mapped where it cannot write:
    where it can, they came with the fork.

    Raises OSError when it is gone or may not be looked into.
    """
    pages = Pages()
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as file:
        for first, end, writable in known:
            file.seek(first // mmap.PAGESIZE * 8)
            flags = file.read((end - first) // mmap.PAGESIZE * 8)[7::8]
            kinds = flags.translate(_KINDS)
            if not writable:
                pages.used.extend(_runs(first, _USED, kinds))
            pages.written.extend(_runs(first, _WRITTEN, kinds))
    return pages


def _runs(first: int, wanted: re.Pattern[bytes], kinds: bytes) -> Iterator[int]:
    """Address and bytes of each run of wanted pages."""
    for run in wanted.finditer(kinds):
        yield first + run.start() * mmap.PAGESIZE
        yield (run.end() - run.start()) * mmap.PAGESIZE
