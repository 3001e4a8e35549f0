"""What the kernel tells of processes and their descendants."""

import os
from collections.abc import Collection, Iterator
from contextlib import suppress


def keep_to(process: int, processors: Collection[int]) -> None:
    """Every thread of a process and of those that it started. One that has ended meanwhile, or is another's, stays."""
    for each in descendants(process):
        for thread in threads(each):
            with suppress(OSError):
                os.sched_setaffinity(thread, processors)


def descendants(process: int) -> Iterator[int]:
    """It and all that came from it."""
    yield process
    for child in children(process):
        yield from descendants(child)


def children(process: int) -> list[int]:
    found: list[int] = []
    for thread in threads(process):
        with suppress(OSError), open(f"/proc/{process}/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found


def threads(process: int) -> list[int]:
    try:
        return [int(name) for name in os.listdir(f"/proc/{process}/task")]
    except OSError:
        return []
