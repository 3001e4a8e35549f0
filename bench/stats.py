"""The little statistics the tables need."""

from collections.abc import Sequence
from math import ceil
from statistics import median


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: always a value that was really measured. ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    if not 0 < percent <= 100:
        raise ValueError("percent must be above 0 and at most 100")
    return sorted(samples)[ceil(len(samples) * percent / 100) - 1]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value: how far the rounds of one run lie apart."""
    return min(values), max(values)


def middle(values: Sequence[float]) -> float:
    """The median of a few rounds; one bad round on a busy machine does not move it."""
    return median(values)
