"""Forks that have their memory beforehand."""

import mmap
import os
import resource
import signal

import pytest

from nova.agent.pages import mappings, touched, warm

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


def in_fork(memory: mmap.mmap) -> tuple[int, int]:
    """A fork that has written to the first half of ``memory`` and lives: its pid, and where it says that it has."""
    read, done = os.pipe()
    pid = os.fork()
    if pid == 0:
        write(memory, range(PAGES // 2))
        os.write(done, b"x")
        signal.pause()
    os.close(done)
    return pid, read


def test_what_a_fork_wrote_to_is_seen_and_had_by_the_next_without_a_fault(memory: mmap.mmap) -> None:
    write(memory, range(PAGES))
    known = mappings()
    pid, read = in_fork(memory)
    try:
        assert os.read(read, 1) == b"x"
        seen = touched(pid, known)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
    assert sum(seen.written[1::2]) >= PAGES // 2 * mmap.PAGESIZE
    assert sum(seen.used[1::2]) > 0

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            warm(seen, lambda: os._exit(2))
            before = faults()
            write(memory, range(PAGES // 2))
            spared = faults() - before
            write(memory, range(PAGES // 2, PAGES))
            shared = faults() - before - spared
            code = 0 if spared < PAGES // 4 <= shared else 3
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_without_knowledge_it_is_found_out_by_doing() -> None:
    done: list[str] = []
    warm(None, lambda: done.append("rehearsed"))
    assert done == ["rehearsed"]


def test_a_process_that_is_gone_is_an_error() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(OSError):
        touched(pid, mappings())
