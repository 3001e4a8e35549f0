from collections.abc import Iterator

from nova.cli.watching import changes


def test_a_change_counts_once_it_stands_still() -> None:
    states: Iterator[int] = iter([1, 1, 2, 3, 3, 3, 3, 4, 4])
    looks: list[float] = []
    seen = changes(lambda: next(states), sleep=looks.append)
    next(seen)
    assert looks == []
    next(seen)
    assert len(looks) == 4  # 1, then 2 and 3 while it is being written, then 3 again
    next(seen)
    assert len(looks) == 8
