"""Noticing that something was saved."""

import time
from collections.abc import Callable, Iterator

_LOOK_EVERY_S = 0.3


def changes(state: Callable[[], object], *, sleep: Callable[[float], None] = time.sleep) -> Iterator[None]:
    """Yields at once, and then each time ``state()`` has become another and has stood still for one look."""
    known = state()
    yield
    while True:
        sleep(_LOOK_EVERY_S)
        now = state()
        if now == known:
            continue
        while True:  # an editor writes in steps
            sleep(_LOOK_EVERY_S)
            later = state()
            if later == now:
                break
            now = later
        known = now
        yield
