"""Messages on their way through one subscription, and the lanes in which those of one ordering key wait."""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from nova.store.messages import MessageRow

Place = tuple[int, int]
"""Sequence and generation: the order within a lane."""


@dataclass(slots=True, eq=False)
class Item:
    """One delivery that has not ended. Times are the event loop's.

    ``row``: it is, or is about to be, a row of the database; then its attempts are counted there before they begin.
    ``message`` None: to be read when its turn comes. ``saved``: since when the row is known to be committed. ``gone``: it has
    ended without us, by a user's hand or a seek.
    """

    sequence: int
    generation: int
    key: str | None
    replay: bool
    message: MessageRow | None = None
    attempts: int = 0
    row: bool = False
    saved: float | None = None
    due: float = 0.0
    since: float = 0.0
    waits: bool = False
    flying: bool = False
    gone: bool = False

    @property
    def place(self) -> Place:
        return self.sequence, self.generation


@dataclass(slots=True)
class Lane:
    """Deliveries of one ordering key: ``head`` is under way, or waits for its time (``stuck``); the others come after it.

    ``blocked``: a dead delivery holds them all.
    """

    head: Item | None = None
    stuck: bool = False
    blocked: bool = False
    waiting: list[tuple[int, int, int, Item]] = field(default_factory=list)

    def push(self, item: Item) -> None:
        heappush(self.waiting, (*item.place, id(item), item))

    def next(self) -> Item | None:
        """The next that is still to be done; it becomes the head."""
        self.head, self.stuck = None, False
        while self.waiting:
            item = heappop(self.waiting)[3]
            if not item.gone:
                self.head = item
                return item
        return None
