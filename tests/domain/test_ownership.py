"""Who owns a function, and each worker's part of its instances."""

from collections import Counter

import pytest

from nova.domain.ownership import Ownership

FUNCTIONS = [("default", "default", f"function-{number}") for number in range(3000)]


def test_every_worker_names_the_same_owner_and_each_owns_its_share() -> None:
    workers = [Ownership(number, 3) for number in range(3)]
    owners = [workers[0].owner(function) for function in FUNCTIONS]
    assert all([worker.owner(function) for function in FUNCTIONS] == owners for worker in workers[1:])
    assert all(900 < count < 1100 for count in Counter(owners).values())
    assert all([worker.here(f) for worker in workers].count(True) == 1 for f in FUNCTIONS)


def test_one_more_worker_takes_only_what_it_will_own() -> None:
    three, four = Ownership(0, 3), Ownership(0, 4)
    moved = [function for function in FUNCTIONS if three.owner(function) != four.owner(function)]
    assert {four.owner(function) for function in moved} == {3}
    assert 600 < len(moved) < 900


@pytest.mark.parametrize("total", [0, 1, 2, 3, 4, 5, 100])
def test_the_parts_of_a_function_that_is_spread_are_the_whole(total: int) -> None:
    workers = [Ownership(number, 3) for number in range(3)]
    function = FUNCTIONS[7]
    assert [worker.part(function, total) for worker in workers] == [total] * 3, "only its owner has any"
    for worker in workers:
        worker.spread.add(function)
        assert worker.here(function)
    parts = [worker.part(function, total) for worker in workers]
    assert sum(parts) == total
    assert max(parts) - min(parts) <= 1
    assert parts[workers[0].owner(function)] == max(parts)
    assert workers[0].may_spread(total) is (total == 0 or total >= 3)
