"""Messages on their way through one subscription, and the lanes in which those of one ordering key wait."""

from dataclasses import dataclass, field
from heapq import heappop, heappush

from nova import payload
from nova.clock import rfc3339
from nova.events.bus.delivering import Verdict
from nova.store.bus_deliveries import Ended, Status
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

    ``blocked``: a dead delivery holds them all, since ``blocked_at``.
    """

    head: Item | None = None
    stuck: bool = False
    blocked: bool = False
    blocked_at: float = 0.0
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


def row_of(
    subscription_id: str,
    item: Item,
    status: Status,
    verdict: Verdict,
    *,
    attempts: int | None = None,
    delay_s: float = 0.0,
    tried: bool = False,
) -> Ended:
    """What is to be written of a delivery. ``tried``: the verdict is an attempt's; one that failed is kept in its history."""
    story = None
    if tried and status != "succeeded" and verdict.outcome != "later":
        entry = {
            "no": item.attempts,
            "started_at": rfc3339(verdict.started_at),
            "request_id": verdict.request_id,
            "error": verdict.error,
            "duration_ms": round(verdict.duration_ms, 3),
        }
        story = payload.encode([entry]).decode()
    return Ended(
        subscription_id=subscription_id,
        sequence=item.sequence,
        generation=item.generation,
        status=status,
        attempts=item.attempts if attempts is None else attempts,
        replay=item.replay,
        ordering_key=item.key,
        delay_s=delay_s,
        started_at=verdict.started_at if tried else None,
        duration_ms=verdict.duration_ms if tried else None,
        request_id=verdict.request_id,
        error=verdict.error,
        failed=story,
    )
