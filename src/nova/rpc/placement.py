"""Which node gets a call: one with a free warm slot, then the one with the least load, then the nearest; within a bound.

Nothing here does I/O. Reports come about once a second; between them a place counts what this process itself sends, so that a
burst is spread before the next report tells of it. What can be known beforehand is computed when a report arrives; placing
a call is one pass over the nodes.
"""

from collections.abc import Collection, Iterable
from typing import Generic, TypeVar
from zlib import crc32

from nova.domain.call import CallRequest
from nova.domain.node import NodeReport

Key = tuple[str, ...]
"""tenant, namespace, function; with a version as fourth where the call asks for one by number"""

SLACK = 1.25
"""No node gets a call that would leave it with more than this many times its share of all calls, plus one, while another
node could take it: warmth must not pile everything onto one node."""
_COLD, _BEYOND, _DOUBTFUL = 1 << 20, 1 << 21, 1 << 22
"""Added to a place's load per core: they order places before load does, the later the more."""


def key_of(call: CallRequest) -> Key:
    scope, qualifier = call.scope, call.qualifier
    if qualifier is not None and qualifier.isdigit():
        return scope.tenant, scope.namespace, call.function, qualifier
    return scope.tenant, scope.namespace, call.function


class Place:
    """One node as this process sees it. ``inflight`` is its load: calls of others as last reported, and our own as they are."""

    __slots__ = ("address", "doubtful", "free", "inflight", "near", "ours", "peak", "report", "room", "salt", "weight")

    def __init__(self, address: str) -> None:
        self.address = address
        self.report: NodeReport | None = None
        self.free: dict[Key, int] = {}
        self.inflight = 0
        self.ours = 0
        self.peak = 0
        """the most of our own at once since the last report, which therefore tells of no more than that"""
        self.weight = 1.0
        self.room = True
        """it may boot another instance"""
        self.near = 0
        self.doubtful = False
        """its report is overdue"""
        self.salt = address.encode()

    def update(self, report: NodeReport, *, name: str = "", zone: str = "") -> None:
        """Take a report over. ``name`` and ``zone`` say where the caller is."""
        free: dict[Key, int] = {}
        for pool in report.warm:
            function = (pool.tenant, pool.namespace, pool.function)
            free[function] = free.get(function, 0) + pool.free
            free[*function, str(pool.version)] = pool.free
        self.free = free
        self.inflight = self.ours + max(0, report.inflight + report.queued - self.peak)
        self.peak = self.ours
        self.weight = report.cpu_cores or 1.0
        self.room = not report.max_instances or report.instances < report.max_instances
        self.near = 2 if name and report.name == name else int(bool(zone) and report.labels.get("zone") == zone)
        self.doubtful = False
        self.report = report

    def begin(self, key: Key | None) -> None:
        """A call goes there now."""
        self.ours += 1
        self.inflight += 1
        if self.ours > self.peak:
            self.peak = self.ours
        if key is not None and (slots := self.free.get(key)):
            self.free[key] = slots - 1

    def end(self, key: Key | None, *, warm: bool) -> None:
        """A call that went there has ended. ``warm``: it left an instance that can take the next one."""
        self.ours -= 1
        self.inflight -= 1
        if warm and key is not None:
            self.free[key] = self.free.get(key, 0) + 1


P = TypeVar("P", bound=Place)


class Placement(Generic[P]):
    """The places that may get calls now."""

    def __init__(self) -> None:
        self.usable: tuple[P, ...] = ()
        self._weight = 0.0

    def use(self, places: Iterable[P]) -> None:
        """From now on these; also after a report changed their weights."""
        self.usable = tuple(places)
        self._weight = sum(place.weight for place in self.usable)

    @property
    def alternatives(self) -> bool:
        """Can another place do what one that is left out would have done?"""
        return len(self.usable) > 1

    def shares(self, places: Collection[P], key: Key, count: int) -> dict[P, int]:
        """How many of ``count`` instances of a function each of ``places`` is to keep."""
        return shares(places, key, count)

    def choose(self, key: Key | None, avoid: Collection[P] = ()) -> P | None:
        """The best place for a call of this function (None: of none in particular); None when there is none."""
        usable = self.usable
        if len(usable) == 1:
            return None if usable[0] in avoid else usable[0]
        total = 1
        for place in usable:
            total += place.inflight
        share = SLACK * total / self._weight if usable else 0.0
        best, best_score = None, float("inf")
        for place in usable:
            if avoid and place in avoid:
                continue
            load, weight = place.inflight, place.weight
            score = load / weight
            if key is not None and not place.free.get(key):
                score += _COLD if place.room else _COLD + _BEYOND
            if load > share * weight:
                score += _BEYOND
            if place.doubtful:
                score += _DOUBTFUL
            if score < best_score or (score == best_score and best is not None and _closer(place, best, key)):
                best, best_score = place, score
        return best


def _closer(one: Place, other: Place, key: Key | None) -> bool:
    """Between equals: the nearer; then always the same for one function, so that its code and instances are there."""
    if one.near != other.near:
        return one.near > other.near
    seed = crc32("/".join(key[:3]).encode()) if key is not None else 0
    return (crc32(one.salt, seed), one.address) > (crc32(other.salt, seed), other.address)


def shares(places: Collection[P], key: Key, count: int) -> dict[P, int]:
    """How many of ``count`` instances each place is to keep: evenly, the odd ones where the function is at home."""
    if not places:
        return {}
    seed = crc32("/".join(key[:3]).encode())
    ordered = sorted(places, key=lambda place: (crc32(place.salt, seed), place.address), reverse=True)
    each, odd = divmod(count, len(ordered))
    return {place: each + (index < odd) for index, place in enumerate(ordered)}
