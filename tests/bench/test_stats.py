import pytest
from bench.stats import middle, percentile, spread


def test_percentile_is_a_value_that_was_measured() -> None:
    samples = [float(n) for n in range(1, 101)]
    assert percentile(samples, 50) == 50
    assert percentile(samples, 99) == 99
    assert percentile([3.0, 1.0, 2.0], 50) == 2
    assert percentile([7.0], 99) == 7


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_refuses_what_has_no_answer(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError):
        percentile(samples, percent)


def test_one_bad_round_does_not_move_the_middle() -> None:
    assert middle([100, 101, 900]) == 101
    assert spread([100, 101, 900]) == (100, 900)
