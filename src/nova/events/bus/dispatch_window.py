"""What one subscription has read of its topic: how far, what of it has no row yet, and what is known to be done already."""

from collections import OrderedDict

from nova.store.bus_deliveries import Queued
from nova.store.messages import MessageRow

WINDOW = 1024
"""Messages that are read and not recorded yet, at most."""
WINDOW_BYTES = 16 << 20
"""Or so many bytes of them, beyond the last that were read."""


class Window:
    """Reads on after ``cursor``. ``ahead``: what is beyond it and done.

    Up to ``careful_to`` a message may have taken its process down with it: its attempt is written before it begins.
    """

    def __init__(self, cursor: int, ahead: set[int], careful_to: int) -> None:
        self.read_to = cursor
        self.ahead = ahead
        self.careful_to = careful_to
        self.deferred: dict[int, Queued] = {}
        """rows beyond what is read: before them there may be messages of the same key"""
        self._open: OrderedDict[int, int] = OrderedDict()
        """sequences that are read and have no row yet, with their bytes"""
        self._held = 0
        self._expired = 0

    @property
    def room(self) -> int:
        """So many messages more may be read."""
        return WINDOW - len(self._open) if self._held < WINDOW_BYTES else 0

    @property
    def half_empty(self) -> bool:
        return len(self._open) < WINDOW // 2 and self._held < WINDOW_BYTES

    @property
    def cursor(self) -> int:
        """Everything up to here has a row, or needs none."""
        return next(iter(self._open)) - 1 if self._open else self.read_to

    def take_expired(self) -> int:
        """How many messages were past their retention when it came to them, since this was asked last."""
        expired, self._expired = self._expired, 0
        return expired

    def reach(self, sequence: int) -> None:
        """It is read; those between it and the one before are gone."""
        self._expired += sequence - self.read_to - 1
        self.read_to = sequence

    def was_done(self, sequence: int) -> bool:
        """Does it have a row already? Asked once for each."""
        if sequence not in self.ahead:
            return False
        self.ahead.discard(sequence)
        return True

    def open(self, message: MessageRow) -> None:
        """It is on its way, and holds the cursor."""
        self._open[message.sequence] = message.size
        self._held += message.size

    def recorded(self, sequence: int) -> bool:
        """It has a row; False: it has not held the cursor."""
        size = self._open.pop(sequence, None)
        if size is None:
            return False
        self._held -= size
        return True

    def defer(self, row: Queued) -> None:
        """Its turn comes when everything before it is read."""
        self.deferred[row.sequence] = row
        self.ahead.add(row.sequence)

    def reached(self, upto: int | None) -> list[Queued]:
        """Deferred rows up to there, in order. None: all of them, because there is nothing more to read."""
        ready = sorted(sequence for sequence in self.deferred if upto is None or sequence <= upto)
        rows = [self.deferred.pop(sequence) for sequence in ready]
        if upto is None and rows:
            self.read_to = max(self.read_to, rows[-1].sequence)
        return rows
