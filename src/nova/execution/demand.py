"""How busy a process is, as the scheduler sees its main thread."""

from pathlib import Path

from nova.clock import Clock

_SCHEDSTAT = Path("/proc/self/schedstat")


class Demand:
    """How much of the time the main thread wanted to run."""

    def __init__(self, clock: Clock, schedstat: Path = _SCHEDSTAT) -> None:
        self._clock = clock
        self._schedstat = schedstat
        self._at, self._wanted = clock.monotonic(), self._read()

    def share(self) -> float:
        """0 to 1, since this was last asked."""
        now, wanted = self._clock.monotonic(), self._read()
        share = (wanted - self._wanted) / 1e9 / (now - self._at) if now > self._at else 0.0
        self._at, self._wanted = now, wanted
        return min(1.0, share)

    def _read(self) -> int:
        """Nanoseconds that the thread ran, and that it stood ready while others ran."""
        ran, waited, _ = self._schedstat.read_text().split()
        return int(ran) + int(waited)
