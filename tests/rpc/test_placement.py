"""Where calls go: warmth, load, nearness, in this order, and never too much on one node."""

import random
from collections import Counter

import pytest

from nova.domain.node import NodeReport, WarmPool
from nova.rpc.placement import SLACK, Key, Place, Placement, key_of, shares
from tests.rpc.planes import make_call

HELLO: Key = ("default", "default", "hello")


def place(name: str, *, free: int | None = None, version: int = 1, function: str = "hello", **values: object) -> Place:
    """A node with one pool of ``hello`` if ``free`` says how many slots of it are free."""
    warm = () if free is None else (WarmPool("default", "default", function, version, max(1, free), free),)
    made = Place(f"{name}:9090")
    made.update(NodeReport(name, name, made.address, warm=warm, **values), name="here", zone="east")  # type: ignore[arg-type]
    return made


def chosen(*places: Place, key: Key = HELLO, avoid: tuple[Place, ...] = ()) -> Place | None:
    placement: Placement[Place] = Placement()
    placement.use(places)
    return placement.choose(key, avoid)


def test_a_warm_node_comes_before_an_idle_one() -> None:
    idle, warm, other = place("a"), place("b", free=2, inflight=1), place("c", free=3, function="other", inflight=2)
    assert chosen(idle, warm, other) is warm
    assert chosen(idle, warm, other, avoid=(warm,)) in (idle, other)
    assert chosen(warm, avoid=(warm,)) is None
    assert chosen() is None


def test_among_the_warm_and_among_the_cold_the_least_loaded_for_its_size() -> None:
    assert chosen(place("a", free=1, inflight=3), busy := place("b", free=1, inflight=2)) is busy
    big, small = place("a", inflight=4, cpu_cores=8.0), place("b", inflight=2, cpu_cores=2.0)
    assert chosen(small, big) is big
    assert chosen(place("a", queued=5), idle := place("b", queued=4)) is idle


def test_among_equals_the_nearest_and_then_always_the_same() -> None:
    """The same for every process that places calls; functions are spread over the nodes."""
    same_node, same_zone, far = place("here"), place("b", labels={"zone": "east"}), place("c", labels={"zone": "west"})
    assert chosen(far, same_zone, same_node) is same_node
    assert chosen(far, same_zone) is same_zone
    nodes = [place(name) for name in "abc"]
    homes = Counter()
    for number in range(300):
        key = ("default", "default", f"f{number}")
        home = chosen(*nodes, key=key)
        assert home is chosen(*reversed(nodes), key=key)
        homes[home] += 1
    assert min(homes.values()) > 60


def test_a_version_asked_for_by_number_is_looked_for_by_number() -> None:
    old, new = place("a", free=5, version=1), place("b", free=1, version=2)
    assert chosen(old, new, key=key_of(make_call(qualifier="2"))) is new
    assert chosen(old, new, key=key_of(make_call(qualifier="1"))) is old
    assert key_of(make_call(qualifier="live")) == key_of(make_call()) == HELLO


def test_a_full_node_and_one_whose_report_is_overdue_come_last() -> None:
    full, loaded = place("a", max_instances=4, instances=4), place("b", inflight=1)
    assert chosen(full, loaded) is loaded
    overdue = place("c", free=4)
    overdue.doubtful = True
    assert chosen(overdue, loaded) is loaded
    assert chosen(overdue) is overdue


def test_what_is_sent_counts_before_the_next_report_tells() -> None:
    a, b = place("a", free=1), place("b", free=1)
    placement: Placement[Place] = Placement()
    placement.use((a, b))
    first = placement.choose(HELLO)
    assert first is not None
    first.begin(HELLO)
    second = placement.choose(HELLO)
    assert second is not first
    first.end(HELLO, warm=True)
    assert (a.inflight, b.inflight) == (0, 0)
    assert placement.choose(HELLO) is first


def test_a_report_does_not_count_our_own_calls_twice() -> None:
    node = place("a")
    for _ in range(3):
        node.begin(HELLO)
    node.update(NodeReport("a", "a", "a:9090", inflight=5))
    assert (node.ours, node.inflight) == (3, 5)
    for _ in range(3):
        node.end(HELLO, warm=True)
    assert (node.ours, node.inflight) == (0, 2)
    node.update(NodeReport("a", "a", "a:9090", inflight=3))  # made while our three were still there
    assert node.inflight == 0


@pytest.mark.parametrize("seed", range(40))
def test_no_node_gets_more_than_its_bound_while_another_is_free(seed: int) -> None:
    """Random clusters with skewed warmth, random calls that begin and end: the bound holds for every single choice."""
    dice = random.Random(seed)
    nodes = [
        place(str(n), free=dice.choice([None, 0, 1, 500]), cpu_cores=float(dice.choice([1, 2, 2, 8])))
        for n in range(dice.randint(2, 6))
    ]
    placement: Placement[Place] = Placement()
    placement.use(nodes)
    weight = sum(node.weight for node in nodes)
    running: list[Place] = []
    for _ in range(400):
        if running and dice.random() < 0.4:
            running.pop(dice.randrange(len(running))).end(HELLO, warm=dice.random() < 0.9)
            continue
        node = placement.choose(HELLO)
        assert node is not None
        node.begin(HELLO)
        running.append(node)
        assert node.inflight <= SLACK * len(running) * node.weight / weight + 1
        assert all(n.inflight == running.count(n) for n in nodes)


def test_replicas_are_shared_evenly_and_the_odd_ones_stay_where_they_are() -> None:
    nodes = [place(name) for name in "abc"]
    for count in range(8):
        parts = shares(nodes, HELLO, count)
        assert sum(parts.values()) == count
        assert max(parts.values()) - min(parts.values()) <= 1
        assert parts == shares(nodes[::-1], HELLO, count)
    assert shares([], HELLO, 3) == {}
