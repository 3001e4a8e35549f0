"""Noticing that this process stood still: stopped by a signal, suspended with its machine, or kept off the processor.

Whoever made a call as part of its work (a delivery, a job, a run) may be taken for dead meanwhile, and another process does that
work again and goes on to the next. A call of the first that still lay in a socket or in a queue here must not begin after that:
it would be an effect out of its turn. The one who made it, if it is alive, makes it again.
"""

import asyncio

import structlog

from nova.clock import SYSTEM_CLOCK, BootClock, Clock
from nova.errors import NovaError

log = structlog.get_logger(__name__)
STILL_S = 1.5
"""A shorter standstill costs nobody a lease: those of duties last 3 s and are renewed each second, those of work last longer."""
DOUBT_S = 1.0
"""So long after it, what is received may have lain in a socket since before."""
_LOOK_S = 0.5


class Standstill:
    """Looks at the clock again and again, from :meth:`start` to :meth:`close`."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK, boot: Clock | None = None) -> None:
        """``clock``: what times of calls are told by; ``boot``: what goes on while the machine is suspended."""
        self._clock = clock
        self._boot = boot or BootClock()
        self._seen = self._boot.monotonic()
        self._over = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        self._seen = self._boot.monotonic()
        self._tick()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def doubts(self, received: float) -> bool:
        """Whether a call that this process received, or made, at that time (monotonic) may be somebody else's by now."""
        if self._timer is not None:
            self._look()
        return received < self._over + DOUBT_S

    def _tick(self) -> None:
        self._look()
        self._timer = asyncio.get_running_loop().call_later(_LOOK_S, self._tick)

    def _look(self) -> None:
        now = self._boot.monotonic()
        still_s, self._seen = now - self._seen, now
        if still_s > STILL_S:
            self._over = self._clock.monotonic()
            log.warning("this process stood still; what came before is not begun any more", seconds=round(still_s, 1))


def stood_still() -> NovaError:
    """Why a call is refused that :meth:`Standstill.doubts` doubts. It certainly did not begin."""
    return NovaError(
        "dependency_unavailable",
        "this process stood still; what asked for the call may have been taken over",
        retry_after_s=1,
    )
