"""Receivers that let everybody wait for nothing: they do not answer, or hang up after a while, or fail slowly. One alone would
take every place that a tenant's deliveries have, half a minute each."""

from dataclasses import dataclass
from typing import Final

SLOW_S = 5.0
"""An attempt that failed after so long has kept a place from others."""
_SILENT: Final = 2
"""So many of them in a row, and a receiver counts as silent."""
_KNOWN: Final = 10_000

Key = tuple[str, str]
"""A tenant, and the address that it wants events at."""


@dataclass(slots=True)
class _Silence:
    times: int = 0
    tried: bool = False


class SilentReceivers:
    """What this process has met. Of a silent receiver's deliveries one at a time tries whether it is back."""

    def __init__(self) -> None:
        self._known: dict[Key, _Silence] = {}

    def may_try(self, key: Key) -> bool:
        """Is a delivery to be sent now? Then :meth:`heard` or :meth:`left` follows."""
        silence = self._known.get(key)
        if silence is None or silence.times < _SILENT:
            return True
        if silence.tried:
            return False
        silence.tried = True
        return True

    def heard(self, key: Key, *, failed: bool, took_s: float) -> None:
        """What came of it, and after how long."""
        if not failed or took_s < SLOW_S:
            self._known.pop(key, None)
            return
        if key not in self._known and len(self._known) >= _KNOWN:
            del self._known[next(iter(self._known))]
        silence = self._known.setdefault(key, _Silence())
        silence.times += 1
        silence.tried = False

    def left(self, key: Key) -> None:
        """It was given up before anything came of it."""
        if (silence := self._known.get(key)) is not None:
            silence.tried = False
