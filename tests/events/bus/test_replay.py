"""Seek and replay: delivered again is what was asked for, also what had succeeded, and it says so."""

import asyncio

import pytest

from nova import payload
from nova.domain.call import CallRequest, CallResult
from nova.store.db import Database
from tests.events.bus.dispatching import data
from tests.events.bus.test_subscriptions import Desk, desk_of
from tests.events.support import Calls, result

pytestmark = pytest.mark.anyio


def seen(desk: Desk) -> list[tuple[int, bool]]:
    """Each call's data, and whether it says that it is a replay."""
    return sorted((data(call), payload.decode(call.payload).get("novareplay", False)) for call in desk.bus.calls.seen)


async def test_a_replay_delivers_the_range_again_as_a_generation_of_its_own(database: Database) -> None:
    """EV10."""
    async with desk_of(database) as desk:
        made = await desk.create(filters=[{"not": {"exact": {"type": "noise"}}}])
        path = f"/subscriptions/{made['id']}/replay"
        told = await desk.bus.publish(*range(6))
        await desk.bus.publish("noise", type="noise")
        await desk.bus.settled(made["id"], 6)
        desk.bus.calls.seen.clear()
        again = await desk.call("POST", path, {"from_sequence": 2, "to_sequence": 4}, 202)
        assert again == {"generation": 1, "deliveries": 3}
        rows = await desk.bus.settled(made["id"], 9)
        assert seen(desk) == [(1, True), (2, True), (3, True)]
        assert [(row.sequence, row.generation, row.replay) for row in rows if row.sequence == 2] == [
            (2, 0, False),
            (2, 1, True),
        ]
        desk.bus.calls.seen.clear()
        ids = [told[5].id, told[0].id, "nobody"]
        assert (await desk.call("POST", path, {"message_ids": ids}, 202)) == {"generation": 2, "deliveries": 2}
        await desk.bus.settled(made["id"], 11)
        assert seen(desk) == [(0, True), (5, True)]
        desk.bus.calls.seen.clear()
        since = {"from_time": "2020-01-01T00:00:00Z", "limit": 4}
        assert (await desk.call("POST", path, since, 202)) == {"generation": 3, "deliveries": 4}
        await desk.bus.settled(made["id"], 15)
        assert seen(desk) == [(0, True), (1, True), (2, True), (3, True)]
        for body in ({}, {"from_sequence": 1, "message_ids": ["x"]}, {"message_ids": ["x"], "to_sequence": 3}):
            await desk.call("POST", path, body, 400)
        # new messages are none
        desk.bus.calls.seen.clear()
        await desk.bus.publish(6)
        await desk.bus.settled(made["id"], 16)
        assert seen(desk) == [(6, False)]


async def test_a_seek_moves_the_cursor_back_and_forth(database: Database) -> None:
    """EV10: what is delivered again is marked, what is new is not."""
    async with desk_of(database) as desk:
        made = await desk.create()
        path = f"/subscriptions/{made['id']}/seek"
        await desk.bus.publish(*range(4))
        await desk.bus.settled(made["id"], 4)
        desk.bus.calls.seen.clear()
        assert (await desk.call("POST", path, {"to_sequence": 3}))["generation"] == 1
        await desk.bus.noticed()  # else what is new may be called for whoever had the place before, and once more
        await desk.bus.publish(4)
        await desk.bus.settled(made["id"], 7)
        assert seen(desk) == [(2, True), (3, True), (4, False)]
        desk.bus.calls.seen.clear()
        await desk.call("POST", path, {"to": "earliest"})
        await desk.bus.settled(made["id"], 12)
        assert seen(desk) == [(n, True) for n in range(5)]
        desk.bus.calls.seen.clear()
        await desk.call("POST", path, {"to_time": "2020-01-01T00:00:00Z"})
        await desk.bus.settled(made["id"], 17)
        for body in ({}, {"to": "middle"}, {"to": "latest", "to_sequence": 1}):
            await desk.call("POST", path, body, 400)


async def test_a_seek_to_the_end_leaves_what_waits_behind(database: Database) -> None:
    forever = asyncio.Event()

    async def script(call: CallRequest) -> CallResult:
        await forever.wait()
        return result(call)

    async with desk_of(database, Calls(script)) as desk:
        made = await desk.create(max_inflight=1)
        await desk.bus.publish(*range(100))
        await desk.bus.until(lambda: len(desk.bus.calls.seen) == 1)
        moved = await desk.call("POST", f"/subscriptions/{made['id']}/seek", {"to": "latest"})
        assert moved["lag"] == 0
        await desk.bus.noticed()
        forever.set()
        await desk.bus.publish(100)
        await desk.bus.until(lambda: 100 in [data(call) for call in desk.bus.calls.seen])
        await desk.bus.settled(made["id"], 2)
        assert [data(call) for call in desk.bus.calls.seen] == [0, 100]
