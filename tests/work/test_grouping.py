import asyncio
from collections.abc import Sequence

import pytest

from nova.errors import NovaError
from nova.work.grouping import GroupCommit

pytestmark = pytest.mark.anyio


class Writer:
    """Writes when it is let; an item of -1 is refused by itself, one of -2 takes its batch with it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def write(self, items: Sequence[int]) -> Sequence[int | BaseException]:
        self.batches.append(list(items))
        await self.go.wait()
        if -2 in items:
            raise NovaError("dependency_unavailable", "away")
        return [NovaError("not_found", "no") if item == -1 else item * 10 for item in items]


async def test_those_who_come_together_are_written_together_and_answered_apart() -> None:
    writer = Writer()
    group = GroupCommit("test", writer.write, writers=1)
    first = [asyncio.create_task(group.put(item)) for item in (1, -1, 2)]
    while not writer.batches:
        await asyncio.sleep(0)
    later = [asyncio.create_task(group.put(item)) for item in (3, -2)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in first + later)
    writer.go.set()
    answers = await asyncio.gather(*first, *later, return_exceptions=True)
    assert writer.batches == [[1, -1, 2], [3, -2]]
    assert [answers[0], answers[2]] == [10, 20]
    codes = [answer.code for answer in answers if isinstance(answer, NovaError)]
    assert codes == ["not_found", "dependency_unavailable", "dependency_unavailable"]


async def test_a_batch_is_bounded_in_number_and_weight() -> None:
    writer = Writer()
    writer.go.set()
    group = GroupCommit("test", writer.write, batch=3, writers=1, weigh=lambda item: item, max_weight=10)
    await asyncio.gather(*(group.put(item) for item in (1, 1, 1, 1, 50, 6, 5)))
    assert writer.batches == [[1, 1, 1], [1], [50], [6], [5]]


async def test_too_many_are_refused_and_closing_writes_what_was_taken() -> None:
    writer = Writer()
    group = GroupCommit("test", writer.write, batch=1, writers=1, max_waiting=2)
    tasks = [asyncio.create_task(group.put(item)) for item in (1, 2)]
    while not writer.batches:
        await asyncio.sleep(0)
    tasks.append(asyncio.create_task(group.put(3)))
    await asyncio.sleep(0)
    with pytest.raises(NovaError, match="queue_full"):
        await group.put(4)
    closing = asyncio.create_task(group.close())
    await asyncio.sleep(0)
    with pytest.raises(NovaError, match="draining"):
        await group.put(5)
    writer.go.set()
    await closing
    assert [task.result() for task in tasks] == [10, 20, 30]


async def test_a_caller_who_leaves_does_not_disturb_the_others() -> None:
    writer = Writer()
    group = GroupCommit("test", writer.write)
    gone, stays = asyncio.create_task(group.put(1)), asyncio.create_task(group.put(2))
    while not writer.batches:
        await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    writer.go.set()
    assert await stays == 20
    assert writer.batches == [[1, 2]]


async def test_few_items_wait_for_company_and_enough_do_not() -> None:
    writer = Writer()
    writer.go.set()
    group = GroupCommit("test", writer.write, writers=1, hold_s=60, enough=3)
    tasks = [asyncio.create_task(group.put(1))]
    for _ in range(20):
        await asyncio.sleep(0)
    assert writer.batches == []
    tasks += [asyncio.create_task(group.put(item)) for item in (2, 3)]
    assert await asyncio.gather(*tasks) == [10, 20, 30]
    assert writer.batches == [[1, 2, 3]]

    last = asyncio.create_task(group.put(4))
    await asyncio.sleep(0)
    await group.close()  # nobody else will come
    assert (await last, writer.batches[1:]) == (40, [[4]])


async def test_a_crowd_is_written_in_halves() -> None:
    writer = Writer()
    writer.go.set()
    group = GroupCommit("test", writer.write, writers=1, crowd_s=60)
    assert len(await asyncio.gather(*(group.add(item) for item in range(32)))) == 32
    back = [group.add(item) for item in range(13)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(writer.batches) == 1, "not yet half of those who were answered"
    back.append(group.add(13))
    for _ in range(2):
        await asyncio.sleep(0)
    back += [group.add(item) for item in range(18)]  # while the first half is written
    await asyncio.gather(*back)
    assert [len(batch) for batch in writer.batches] == [32, 14, 18]

    left = [group.add(item) for item in range(3)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(writer.batches) == 3
    await group.close()
    assert [len(batch) for batch in writer.batches] == [32, 14, 18, 3]
    assert [future.result() for future in left] == [0, 10, 20]


async def test_a_crowd_larger_than_a_batch_waits_for_no_more_than_fits() -> None:
    writer = Writer()
    writer.go.set()
    group = GroupCommit("test", writer.write, batch=8, writers=1, crowd_s=60)
    async with asyncio.timeout(20):
        await asyncio.gather(*(group.add(item) for item in range(16)))
    assert [len(batch) for batch in writer.batches] == [8, 8]


async def test_a_crowd_that_has_gone_is_not_waited_for_again() -> None:
    writer = Writer()
    writer.go.set()
    group = GroupCommit("test", writer.write, writers=1, crowd_s=0.01)
    await asyncio.gather(*(group.add(item) for item in range(16)))
    async with asyncio.timeout(20):
        assert await group.put(1) == 10  # waits for the others, in vain
    group._crowd_s = 60
    async with asyncio.timeout(20):
        assert await asyncio.gather(group.put(2), group.put(3)) == [20, 30]


async def test_an_item_alone_is_written_after_its_hold() -> None:
    writer = Writer()
    writer.go.set()
    group = GroupCommit("test", writer.write, writers=1, hold_s=0.01, enough=3)
    async with asyncio.timeout(20):
        assert await group.put(1) == 10
