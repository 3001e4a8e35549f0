"""Forks that have their memory beforehand."""

import mmap
import os
import resource

import pytest

from nova.agent.pages import mappings, of_fork, touched

PAGES = 64


@pytest.fixture
def memory() -> mmap.mmap:
    """Private memory that is all there."""
    return mmap.mmap(-1, PAGES * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def write(memory: mmap.mmap, numbers: range) -> None:
    for number in numbers:
        memory[number * mmap.PAGESIZE] = 1


def faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def test_what_a_fork_wrote_to_is_seen_and_had_by_the_next_without_a_fault(memory: mmap.mmap) -> None:
    write(memory, range(PAGES))
    seen = of_fork(lambda: write(memory, range(PAGES // 2)))
    assert sum(seen.written[1::2]) >= PAGES // 2 * mmap.PAGESIZE
    assert sum(seen.used[1::2]) > 0

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            seen.have()
            before = faults()
            write(memory, range(PAGES // 2))
            spared = faults() - before
            write(memory, range(PAGES // 2, PAGES))
            shared = faults() - before - spared
            code = 0 if spared < PAGES // 4 <= shared else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


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
