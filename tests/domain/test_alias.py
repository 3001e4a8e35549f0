"""Traffic splits."""

from collections import Counter

import pytest

from nova.domain.alias import choose, split_of


def test_a_split_gives_the_shares_it_promises() -> None:
    """EX5: a 90/10 alias gives 90 ± 1 % over 10 000 calls."""
    split = split_of({3: 9000, 4: 1000})
    by_key = Counter(choose(split, f"user-{i}") for i in range(10_000))
    assert abs(by_key[3] - 9000) <= 100


def test_a_sticky_caller_stays_on_the_new_arm_while_it_grows() -> None:
    """EX5: a sticky key always gets the same side."""
    keys = [f"user-{i}" for i in range(500)]
    on_new: set[str] = set()
    for weight in (100, 1000, 5000, 9999):
        split = split_of({3: 10_000 - weight, 4: weight})
        now = {key for key in keys if choose(split, key) == 4}
        assert now == {key for key in keys if choose(split, key) == 4}
        assert on_new <= now
        on_new = now
    assert on_new


def test_one_version_needs_no_luck() -> None:
    assert choose(split_of({7: 10_000}), "x") == 7
    assert choose(split_of({7: 10_000}), "\ud800") == 7
    assert choose(split_of({1: 5000, 2: 5000}), "\ud800") in (1, 2)


@pytest.mark.parametrize("weights", [{}, {1: 9999}, {1: 10_001}, {1: 10_000, 2: 0}, dict.fromkeys(range(1, 12), 909)])
def test_splits_that_do_not_add_up_are_refused(weights: dict[int, int]) -> None:
    with pytest.raises(ValueError):
        split_of(weights)
