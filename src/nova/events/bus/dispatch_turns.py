"""Whose turn it is: deliveries of one ordering key one after the other, each not before its time."""

from collections import deque
from collections.abc import Callable, Collection
from heapq import heappop, heappush

from nova.events.bus.dispatch_items import Item, Lane

_SOONER_S = 0.05


class Turns:
    """``ready`` are those that may begin. ``now`` is the event loop's time.

    ``hold`` is told of a delivery that comes to wait behind one that waits: it becomes a row, because in memory it would hold
    the cursor.
    """

    def __init__(self, now: Callable[[], float], hold: Callable[[Item], None]) -> None:
        self.ready: deque[Item] = deque()
        self._now = now
        self._hold = hold
        self._timers: list[tuple[float, int, Item]] = []
        self._lanes: dict[str, Lane] = {}

    def start_blocked(self, keys: Collection[str]) -> None:
        """Each of these keys has a dead delivery that holds the others."""
        self._lanes |= {key: Lane(blocked=True) for key in keys}

    def enter(self, item: Item) -> None:
        """One more, after those of its key that are before it in the topic."""
        if item.key is None:
            self._turn(item)
            return
        lane = self._lanes.get(item.key)
        if lane is None:
            self._lanes[item.key] = Lane(head=item)
            self._turn(item)
            return
        lane.push(item)
        if (lane.stuck or lane.blocked) and not item.row:
            self._hold(item)

    def ended(self, item: Item) -> None:
        """It is done, or dead: its successor is next."""
        lane = self._lane_of(item)
        if lane is not None and lane.head is item:
            self._step(item.key or "", lane)

    def wait(self, item: Item) -> None:
        """It is to be tried again when it is due."""
        item.waits = True
        heappush(self._timers, (item.due, id(item), item))

    def stick(self, item: Item) -> None:
        """It will wait: the others of its key wait behind it, as rows."""
        lane = self._lane_of(item)
        if lane is None:
            return
        lane.stuck = True
        for *_, follower in lane.waiting:
            if not follower.row and not follower.gone:
                self._hold(follower)

    def block(self, item: Item) -> None:
        """It is dead and holds its successors."""
        lane = self._lane_of(item)
        if lane is not None:
            lane.blocked = True
            self.stick(item)

    def unblock(self, item: Item) -> None:
        """It is dead, and nobody wants that to hold others any more."""
        lane = self._lane_of(item)
        if lane is not None:
            lane.blocked = False

    def unblock_but(self, keys: Collection[str], since: float) -> None:
        """Only these keys had a dead delivery at ``since``; one that died later is not among them yet."""
        for key, lane in list(self._lanes.items()):
            if lane.blocked and lane.head is None and lane.blocked_at < since and key not in keys:
                lane.blocked = False
                self._step(key, lane)

    def hasten(self, item: Item, attempts: int, due: float) -> None:
        """A user wants it tried now."""
        if item.waits and due < item.due - _SOONER_S:
            item.attempts = attempts
            item.due = due
            heappush(self._timers, (due, id(item), item))

    def forget(self, item: Item) -> None:
        """It has ended without us."""
        item.gone = True
        self.ended(item)

    def drop_unrecorded(self) -> None:
        """Those that are no rows are not wanted any more."""
        for item in self.ready:
            item.gone = item.gone or not item.row
        for key, lane in list(self._lanes.items()):
            for *_, item in lane.waiting:
                item.gone = item.gone or not item.row
            head = lane.head
            if head is not None and head.gone and not head.flying:
                self._step(key, lane)

    def due(self, now: float) -> None:
        """Let those begin whose time has come."""
        while self._timers and self._timers[0][0] <= now:
            item = heappop(self._timers)[2]
            if item.waits and not item.gone and item.due <= now:
                item.waits = False
                item.since = now
                self.ready.append(item)

    @property
    def next_at(self) -> float | None:
        """When :meth:`due` has something to do."""
        return self._timers[0][0] if self._timers else None

    def _lane_of(self, item: Item) -> Lane | None:
        return self._lanes.get(item.key) if item.key is not None else None

    def _turn(self, item: Item) -> None:
        now = self._now()
        if item.due <= now:
            item.since = now
            self.ready.append(item)
            return
        self.wait(item)
        self.stick(item)

    def _step(self, key: str, lane: Lane) -> None:
        lane.head, lane.stuck = None, False
        if lane.blocked:
            lane.blocked_at = self._now()
            return
        item = lane.next()
        if item is None:
            del self._lanes[key]
        else:
            self._turn(item)
