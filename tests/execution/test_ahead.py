"""A first call finds what it needs: it was fetched when the function changed."""

import asyncio
from pathlib import Path

import pytest

from nova.domain.identity import Scope
from nova.execution.ahead import MOST, FetchAhead
from nova.service import ServiceGroup
from tests.execution.fakes import make_call
from tests.execution.stack import real_stack

pytestmark = pytest.mark.anyio
CODE = "def handler(event): return 1\n"


class Shelf:
    """Notes what was fetched, once each: a deploy may be told twice. ``broken`` is not there."""

    def __init__(self) -> None:
        self.digests: set[str] = set()
        self.broken: set[str] = set()

    async def materialise(self, digest: str) -> Path:
        self.digests.add(digest)
        if digest in self.broken:
            raise OSError("no room")
        return Path("/")


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def test_a_deploy_is_fetched_before_its_first_call(pg_dsn: str, tmp_path: Path) -> None:
    shelf = Shelf()
    async with real_stack(pg_dsn, tmp_path) as stack, ServiceGroup() as services:
        await services.start(FetchAhead(stack.catalog, shelf))
        await stack.deploy(CODE)
        await until(lambda: len(shelf.digests) == 1)
        first = stack.catalog.peek(make_call())
        assert first is not None
        assert shelf.digests == {first.artifact}

        await stack.deploy(CODE + "# a second version\n")
        await until(lambda: len(shelf.digests) == 2)
        shelf.broken = set(shelf.digests)
        await stack.deploy(CODE, "again")
        await stack.deploy(CODE + "# a third\n", "other")
        await until(lambda: len(shelf.digests) == 3)  # what failed does not keep the next from being fetched
        assert (await stack.invoke(b"{}")).error is None


async def test_a_storm_of_deploys_is_bounded(pg_dsn: str, tmp_path: Path) -> None:
    async with real_stack(pg_dsn, tmp_path) as stack:
        ahead = FetchAhead(stack.catalog, Shelf())
        for number in range(MOST + 5):
            ahead._on_change(Scope(), f"f{number}")
        assert len(ahead._changed) == MOST
        assert next(iter(ahead._changed))[1] == "f5"
