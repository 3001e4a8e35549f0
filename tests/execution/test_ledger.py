"""Counts that several processes keep together."""

import os
from collections.abc import Callable

import pytest

from nova.execution.ledger import Ledger


def in_child(work: Callable[[], int]) -> int:
    """What ``work`` returns in a forked process, 0 to 255."""
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_bounds_hold_over_all_workers() -> None:
    ledger = Ledger(2)

    def worker(number: int) -> int:
        mine = ledger.of(number)
        return sum(mine.claim("acme", 5, 3) is None for _ in range(10))

    assert in_child(lambda: worker(0)) == 3
    assert in_child(lambda: worker(1)) == 0
    assert ledger.total("acme") == ledger.total() == 3
    assert ledger.of(1).claim("acme", 5, 3) == "tenant"
    assert [ledger.claim("other", 5, 3) for _ in range(3)] == [None, None, "node"]
    assert [ledger.claim("other", 0, 0) for _ in range(3)] == [None] * 3


def test_many_at_once_never_go_beyond_the_bound() -> None:
    ledger = Ledger(4)
    pids = []
    for number in range(4):
        pid = os.fork()
        if pid == 0:
            mine = ledger.of(number)
            os._exit(sum(mine.claim("acme", 100, 0) is None for _ in range(60)))
        pids.append(pid)
    claimed = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert sum(claimed) == ledger.total() == 100


def test_what_a_worker_that_died_had_is_free_again() -> None:
    ledger = Ledger(2)
    ledger.of(0).claim("acme", 0, 0)
    ledger.want("acme", "tenant", 4)
    ledger.of(1).claim("acme", 0, 0)
    assert ledger.wanted("acme") == 4
    ledger.clear(0)
    assert (ledger.total("acme"), ledger.total(), ledger.wanted("acme")) == (1, 1, 0)
    ledger.release("acme")
    ledger.release("acme")  # never below nothing
    assert (ledger.total("acme"), ledger.total()) == (0, 0)


def test_rows_of_tenants_without_instances_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova.execution.ledger.ROWS", 4)
    ledger = Ledger(1)
    for number in range(50):
        assert ledger.claim(f"tenant-{number}", 0, 1) is None
        assert ledger.claim(f"tenant-{number}", 0, 1) == "tenant"
        ledger.release(f"tenant-{number}")
    assert ledger.total() == 0
