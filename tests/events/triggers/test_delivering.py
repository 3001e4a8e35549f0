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
