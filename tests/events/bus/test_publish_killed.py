"""Publishers and relays that are killed at any moment: what was answered is in the topic, once, without a gap."""

import asyncio
import sys
from contextlib import suppress

import pytest

from nova.events.bus.outbox import Relay
from nova.store import messages
from nova.store.db import Database
from nova.store.listen import Listener
from nova.work.notices import Notices
from tests.events.bus.publisher import Charged
from tests.events.bus.topics import topic

pytestmark = pytest.mark.anyio
KILLS = 4
ANSWERS = 150
"""From one process before it is killed."""


async def _until_killed(dsn: str, first: int) -> list[int]:
    """The numbers that a process was answered for."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.events.bus.publisher", dsn, str(first), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    answered: list[int] = []
    try:
        async with asyncio.timeout(30):
            while len(answered) < ANSWERS:
                answered.append(int(await process.stdout.readline()))
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        rest = await process.stdout.read()
        await process.wait()
    return answered + [int(line) for line in rest.splitlines(keepends=True) if line.endswith(b"\n")]


async def test_what_was_answered_is_there_once_whoever_is_killed(database: Database) -> None:
    topic_id = await topic(database, "numbers")
    answered: set[int] = set()
    for _ in range(KILLS):
        # numbers that were not answered are published again, as a publisher would
        first = next(n for n in range(10_000) if n not in answered)
        answered |= set(await _until_killed(database.dsn, first))
    relay = Relay(database, Notices(database), Listener(database.dsn))
    async with asyncio.timeout(20):
        while await database.one("SELECT 1 FROM bus_outbox WHERE status = 'pending'"):
            await relay.relay(Charged())
    kept: list[messages.MessageRow] = []
    while found := await messages.read_after(database, topic_id, len(kept), 1000):
        kept += found
    assert [row.sequence for row in kept] == list(range(1, len(kept) + 1))
    numbers = [int(row.payload) for row in kept]
    assert len(set(numbers)) == len(numbers)
    assert answered <= set(numbers)
    assert len(answered) >= KILLS * ANSWERS / 2
