"""Forks that have their memory beforehand."""

import os
import subprocess
import sys

import pytest

from nova.agent.pages import mappings, of_fork, touched

LEARNS_AND_SPARES = """
import mmap, os, resource
from nova.agent.pages import of_fork

PAGES = 64
memory = mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def write(numbers):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for number in numbers:
        memory[number * mmap.PAGESIZE] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


write(range(PAGES))
seen = of_fork(lambda: write(range(PAGES // 2)))
assert sum(seen.written[1::2]) >= PAGES // 2 * mmap.PAGESIZE
assert sum(seen.used[1::2]) > 0
if os.fork() == 0:
    seen.have()
    print(write(range(PAGES // 2)), write(range(PAGES // 2, PAGES)), flush=True)
    os._exit(0)
os.wait()
"""


def test_what_a_fork_wrote_to_is_seen_and_had_by_the_next_without_a_fault() -> None:
    """In a process of its own: only so many pages are looked at, and the heap of a long run of tests may be that many."""
    found = subprocess.run([sys.executable, "-c", LEARNS_AND_SPARES], capture_output=True, text=True, check=True)
    spared, shared = map(int, found.stdout.split())
    assert spared < 16 <= shared


def test_a_fork_that_fails_teaches_nothing() -> None:
    def fail() -> None:
        raise ValueError

    assert not of_fork(fail).written


def test_a_process_that_is_gone_is_an_error() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError):
        touched(pid, mappings())
