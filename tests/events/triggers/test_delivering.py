"""Deliveries side by side: how they end."""

import asyncio

import pytest

from nova.events.triggers.base import SourceError, SourceEvent, Verdict
from nova.events.triggers.delivering import deliveries
from tests.events.triggers.sources import Kept

pytestmark = pytest.mark.anyio
EVENT = SourceEvent("1", "nova.trigger.test", "/triggers/t", b"{}")


class Breaking(Kept):
    """Its deliveries end with an error of their own when they are cancelled, as libraries' do."""

    async def deliver(self, event: SourceEvent) -> Verdict:
        self.at_once += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise SourceError("the connection was closed") from None
        return Verdict.SUCCEEDED


async def _nothing() -> None:
    return None


async def test_who_is_told_to_end_ends_whatever_fails_meanwhile() -> None:
    """Else a source that is stopped in that moment would be taken for one that has failed, and started again."""
    sink = Breaking()

    async def run() -> None:
        async with deliveries(sink, 5) as taking:
            await taking.take(EVENT, _nothing)
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    async with asyncio.timeout(10):
        while not sink.at_once:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert task.cancelled()


async def test_an_error_alone_is_told() -> None:
    async def fails(event: SourceEvent) -> None:
        raise SourceError("no")

    async def run() -> None:
        async with asyncio.timeout(10), deliveries(Kept(fails), 5) as taking:
            await taking.take(EVENT, _nothing)
            await asyncio.Event().wait()

    with pytest.raises(SourceError, match="no"):
        await run()


async def test_work_that_loses_a_cancellation_is_told_again() -> None:
    """As a client's library may; else the source never ends, and with it whoever stops it."""
    lost = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            lost.set()
            await asyncio.Event().wait()

    async def source() -> None:
        async with deliveries(Kept(), 1) as running:
            running.alongside(stubborn())
            await asyncio.Event().wait()

    task = asyncio.create_task(source())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=20)
    assert task.cancelled()
    assert lost.is_set()
