"""A process that stood still does not begin what may be somebody else's by now."""

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from nova.standstill import DOUBT_S, STILL_S, Standstill
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[1]
_WATCH = """
import asyncio, time
from nova.standstill import Standstill

async def main():
    watch = Standstill()
    await watch.start()
    while True:
        print(watch.doubts(time.monotonic()), flush=True)
        await asyncio.sleep(0.05)

asyncio.run(main())
"""


async def test_what_came_before_a_standstill_or_right_after_it_is_in_doubt() -> None:
    clock, boot = MockClock(), MockClock(50.0)
    watch = Standstill(clock, boot)
    assert not watch.doubts(clock.monotonic())
    await watch.start()
    before = clock.monotonic()
    await asyncio.gather(clock.advance(STILL_S), boot.advance(STILL_S))
    assert not watch.doubts(before), "short enough that nobody lost a lease"
    await asyncio.gather(clock.advance(0.1), boot.advance(STILL_S + 0.1))  # suspended: only one clock goes on
    woke = clock.monotonic()
    assert watch.doubts(before)
    assert watch.doubts(woke + DOUBT_S / 2)
    assert not watch.doubts(woke + DOUBT_S)
    await asyncio.gather(clock.advance(1), boot.advance(1))
    assert watch.doubts(before), "it waits in a queue ever since"
    await watch.close()


async def test_a_stopped_process_knows_it_when_it_goes_on() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _WATCH, stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={"PYTHONPATH": str(ROOT / "src")}
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert await process.stdout.readline() == b"False\n"
            process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(STILL_S + 0.5)
            process.send_signal(signal.SIGCONT)
            while await process.stdout.readline() != b"True\n":  # what it had said before, and a warning
                pass
            while (told := await process.stdout.readline()) == b"True\n":
                pass
            assert told == b"False\n", "what comes later is in no doubt"
    finally:
        process.kill()
        await process.wait()
