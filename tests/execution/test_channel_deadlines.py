"""One timer for everything in flight."""

import asyncio
import time
from dataclasses import dataclass, field

import pytest

from nova.execution.channel_deadlines import Deadlines

pytestmark = pytest.mark.anyio


@dataclass(eq=False)
class Item:
    deadline: float
    expired: asyncio.Event = field(default_factory=asyncio.Event)

    def expire(self) -> None:
        self.expired.set()


async def test_each_item_expires_at_its_own_time_whatever_the_order() -> None:
    now = time.monotonic()
    deadlines = Deadlines()
    late, early, middle = Item(now + 0.3), Item(now + 0.1), Item(now + 0.2)
    for item in (late, early, middle):
        deadlines.add(item)
    await asyncio.wait_for(early.expired.wait(), 20)
    assert time.monotonic() >= early.deadline
    assert not late.expired.is_set()
    await asyncio.wait_for(middle.expired.wait(), 20)
    await asyncio.wait_for(late.expired.wait(), 20)
    assert time.monotonic() >= late.deadline


async def test_what_is_done_in_time_never_expires() -> None:
    now = time.monotonic()
    deadlines = Deadlines()
    done, other = Item(now + 0.05), Item(now + 0.15)
    deadlines.add(done)
    deadlines.add(other)
    deadlines.discard(done)
    await asyncio.wait_for(other.expired.wait(), 20)
    assert not done.expired.is_set()


async def test_a_deadline_in_the_past_expires_at_once() -> None:
    deadlines = Deadlines()
    item = Item(time.monotonic() - 1)
    deadlines.add(item)
    await asyncio.wait_for(item.expired.wait(), 20)


async def test_expiring_may_add_and_remove_others() -> None:
    now = time.monotonic()
    deadlines = Deadlines()
    second = Item(now + 0.1)

    class Adder(Item):
        def expire(self) -> None:
            deadlines.add(second)

    deadlines.add(Adder(now))
    await asyncio.wait_for(second.expired.wait(), 20)


async def test_after_close_nothing_expires() -> None:
    deadlines = Deadlines()
    item = Item(time.monotonic() + 0.01)
    deadlines.add(item)
    deadlines.close()
    await asyncio.sleep(0.05)
    assert not item.expired.is_set()
