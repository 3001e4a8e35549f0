"""Streams out of real isolated instances."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.domain.call import CallResult
from nova.errors import NovaError
from tests.execution.fakes import make_call
from tests.execution.sinks import NullReader, Reader
from tests.execution.stack import RealStack, real_stack

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CODE = """
import os, time
def handler(event, context):
    yield "first"
    if "mb" in event:
        for _ in range(event["mb"] * 16):
            yield b"x" * 65536
    time.sleep(event.get("sleep", 0))
    print("over")
    return os.getpid()
"""


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    async with real_stack(pg_dsn, tmp_path) as stack:
        yield stack


def streaming(stack: RealStack, payload: bytes, reader: Reader) -> "asyncio.Task[CallResult]":
    call = make_call("hello", payload, received=SYSTEM_CLOCK.monotonic())
    return asyncio.create_task(stack.executor.stream(call, reader))


def resident_mb(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field)) >> 10


async def test_streams_of_a_real_function(stack: RealStack) -> None:
    """AG14: the warm process streams and answers; much more than its memory passes, and nobody keeps it; then a reader
    who leaves, a silence and a time-out each end the instance, and the next call finds another."""
    await stack.deploy(CODE, timeout_s=60, stream_idle_s=1)
    reader = Reader()
    result = await streaming(stack, b"{}", reader)
    assert (reader.begun, reader.values, reader.prints) == ([(1, True)], ["first"], [("stdout", "over\n")])
    warm = Reader()
    assert (await streaming(stack, b"{}", warm)).output == result.output
    assert warm.begun == [(1, False)]
    assert (await stack.invoke()).output == result.output  # a number: what is returned wins over what was yielded
    assert stack.records[0][2].output == b'{"streamed":{"pieces":1,"bytes":7}}'

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on
    before = resident_mb("VmRSS")
    big = NullReader()
    assert (await streaming(stack, b'{"mb": 300}', big)).output == result.output
    assert big.size > 300 << 20
    assert resident_mb("VmHWM") - before < 40

    gone = Reader()
    call = streaming(stack, b'{"sleep": 100}', gone)
    await gone.until(lambda: gone.pieces)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert stack.records[-1][2].error is not None
    assert stack.records[-1][2].error.type == "Nova.Cancelled"
    with pytest.raises(NovaError) as late:
        await streaming(stack, b'{"sleep": 100}', Reader())
    assert (late.value.code, late.value.detail) == ("timeout", "the stream was silent for 1 s (stream_idle_s)")
    assert json.loads((await stack.invoke()).output or b"") > 0
