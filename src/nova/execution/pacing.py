"""How many calls of a function run at once when each is over in a moment.

Thirty callers of a function that works for 50 µs are served sooner by a few warm processes, one call after the other, than
by thirty that push one another off the cores: half of a call's time is then the change of processes and cold caches. What
waits for something else than a core must not be held up by that, so a function is paced only while some of its calls are
so quick that they cannot wait for anything, and not for a while after calls came to a standstill.
"""

import os
from typing import Final

UNPACED: Final = 1 << 60
QUICK_S: Final = 0.0004
"""A call that took no longer did nothing but compute: so few of them at a time keep all cores busy."""
WIDTH: Final = 2 * len(os.sched_getaffinity(0))
"""Calls at once: one at work on each core, and one on its way to or from it."""
_WINDOW: Final = 1000
"""calls in which one must be quick"""


class Pace:
    """The width of one pool: how many of its calls run at once."""

    __slots__ = ("_allowed", "_best_s", "_left", "width")

    def __init__(self) -> None:
        self.width = UNPACED
        self._allowed = False
        self._best_s = 1.0
        self._left = _WINDOW

    def allow(self, allowed: bool) -> None:
        """Whether this function may be paced at all."""
        self._allowed = allowed
        if not allowed:
            self.width = UNPACED

    def took(self, service_s: float) -> None:
        """A call ended, ``service_s`` after it was sent."""
        if service_s < self._best_s:
            self._best_s = service_s
        self._left -= 1
        if not self._left:
            self.width = WIDTH if self._allowed and self._best_s < QUICK_S else UNPACED
            self._best_s, self._left = 1.0, _WINDOW

    def give_up(self) -> None:
        """Calls wait for one another: no more of that, until another so many have ended."""
        self.width = UNPACED
        self._best_s, self._left = 1.0, _WINDOW
