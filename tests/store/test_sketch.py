"""Percentiles of counted cells against those of the values themselves."""

import random
from collections import Counter
from collections.abc import Callable
from statistics import quantiles

import pytest

from nova.store import sketch


def _cells(values: list[float]) -> list[tuple[int, int]]:
    """Cells as width_bucket numbers them."""
    return sorted(Counter(sum(bound <= value for bound in sketch.BOUNDS) for value in values).items())


@pytest.mark.parametrize("spread", ["even", "long tail", "two humps"])
def test_every_percentile_is_within_five_percent(spread: str) -> None:
    dice = random.Random(4)
    draw: Callable[[], float] = {
        "even": lambda: dice.uniform(0.2, 900_000),
        "long tail": lambda: dice.lognormvariate(2, 2) + 0.1,
        "two humps": lambda: dice.gauss(5, 0.5) if dice.random() < 0.6 else dice.gauss(4000, 100),
    }[spread]
    values = [draw() for _ in range(4000)]
    exact = quantiles(values, n=100, method="inclusive")
    cells = _cells(values)
    for percent in (1, 25, 50, 75, 95, 99):
        assert sketch.percentile(cells, percent / 100) == pytest.approx(exact[percent - 1], rel=0.05)


def test_the_ends_of_the_range_and_nothing_at_all() -> None:
    assert sketch.percentile([], 0.5) is None
    assert sketch.percentile(_cells([0.001]), 0.5) == sketch.LOWEST_MS
    beyond = sketch.percentile(_cells([5_000_000.0]), 0.5)
    assert beyond == pytest.approx(1_000_000, rel=0.1)
