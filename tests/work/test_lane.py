import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.domain.identity import Scope
from nova.work.kinds import Kind
from nova.work.lane import Lane
from nova.work.queue import WorkItem

pytestmark = pytest.mark.anyio
AT_ONCE = 0.0


class House:
    """A lane with room for ``limit`` and for ``ahead`` more that wait; what begins runs until the test ends it."""

    def __init__(self, limit: int, ahead: int = 0) -> None:
        self.begun: list[str] = []
        self.returned: list[str] = []
        self.back = asyncio.Event()
        self.lane = Lane(Kind(None, limit, ahead=ahead), SYSTEM_CLOCK, self._begin, self._return)  # type: ignore[arg-type]

    def _begin(self, lane: Lane, item: WorkItem, leased_at: float) -> None:
        lane.running += 1
        self.begun.append(item.subject)

    def _return(self, items: Sequence[WorkItem]) -> None:
        self.returned += [item.subject for item in items]
        self.back.set()

    def claimed(self, batch: int = 1, *, more: bool = False) -> None:
        self.lane.begin_claim(batch)
        self.lane.end_claim(more=more)

    def take(self, reserved: int, *subjects: str) -> None:
        items = [WorkItem(name, "thing", Scope(), name, {}, 1, 1, "me") for name in subjects]
        self.lane.take(reserved, items, SYSTEM_CLOCK.monotonic())


async def test_nothing_is_handed_over_before_a_claim_has_seen_the_end_of_the_queue() -> None:
    house = House(4)
    assert await house.lane.reserve(2, AT_ONCE) == 0
    house.claimed(more=True)
    assert await house.lane.reserve(2, AT_ONCE) == 0
    house.claimed()
    assert await house.lane.reserve(2, AT_ONCE) == 2


async def test_claims_and_hand_overs_never_promise_a_place_twice() -> None:
    house = House(4, ahead=2)
    house.claimed()
    assert await house.lane.reserve(3, AT_ONCE) == 3
    assert house.lane.free == 1
    house.lane.begin_claim(1)
    assert await house.lane.reserve(2, AT_ONCE) == 2, "those wait here"
    assert house.lane.free == -2, "so a claim finds no place"
    house.lane.end_claim(more=False)
    house.take(3, "a", "b", "c")
    house.take(2, "d", "e")
    assert house.begun == ["a", "b", "c", "d"]
    house.lane.ended()
    assert house.begun == ["a", "b", "c", "d", "e"]


async def test_what_gets_no_place_sends_all_that_follows_through_the_queue() -> None:
    house = House(2)
    house.claimed()
    assert await house.lane.reserve(3, AT_ONCE) == 2
    house.take(2, "a", "b")
    for _ in range(2):
        house.lane.ended()
    assert await house.lane.reserve(1, AT_ONCE) == 0, "the third has the better right"
    house.claimed()
    assert await house.lane.reserve(1, AT_ONCE) == 1


async def test_quick_work_makes_room_while_its_follower_waits() -> None:
    house = House(1)
    house.claimed()
    house.take(await house.lane.reserve(1, AT_ONCE), "a")
    follower = asyncio.ensure_future(house.lane.reserve(1, 20))
    while not house.lane._change._waiters:
        await asyncio.sleep(0)
    house.lane.ended()
    assert await follower == 1


async def test_a_limit_that_grows_lets_in_who_waits() -> None:
    limit = [1]
    house = House(0, ahead=2)
    house.lane.kind = replace(house.lane.kind, concurrency=lambda: limit[0])
    house.claimed()
    house.take(await house.lane.reserve(2, AT_ONCE), "a", "b")
    assert house.begun == ["a"]
    limit[0] = 2
    house.lane.kind.room.set()
    assert house.begun == ["a", "b"]


async def test_a_claim_that_waits_for_room_goes_first() -> None:
    house = House(1, ahead=8)
    house.claimed()
    house.take(await house.lane.reserve(1, AT_ONCE), "a")
    house.lane.want_room()
    follower = asyncio.ensure_future(house.lane.reserve(1, 20))
    while not house.lane._change._waiters:
        await asyncio.sleep(0)
    house.lane.ended()
    await asyncio.wait_for(house.lane.room.wait(), 20)
    assert house.lane.free == 1
    house.claimed()
    assert await follower == 1


async def test_what_waits_too_long_goes_back() -> None:
    house = House(1, ahead=2)
    house.claimed()
    house.take(await house.lane.reserve(3, AT_ONCE), "a", "b", "c")
    assert house.begun == ["a"]
    house.lane.withdrawn("b")
    await asyncio.wait_for(house.back.wait(), 20)
    assert house.returned == ["c"]
    assert not house.lane.open, "and has the better right from now on"


async def test_a_closing_lane_hands_back_what_was_under_way() -> None:
    house = House(4)
    house.claimed()
    reserved = await house.lane.reserve(2, AT_ONCE)
    closing = asyncio.ensure_future(house.lane.close(20))
    while not house.lane._change._waiters:
        await asyncio.sleep(0)
    house.take(reserved, "a", "b")
    assert [item.subject for item in await closing] == ["a", "b"]
    assert (house.begun, await house.lane.reserve(1, AT_ONCE)) == ([], 0)
