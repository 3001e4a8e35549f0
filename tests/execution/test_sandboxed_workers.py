"""Several workers in one isolated instance."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.errors import NovaError
from nova.payload import decode, encode
from tests.execution.stack import RealStack, real_stack

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CODE = """
import os, subprocess, time
def handler(event, context):
    if event.get("hang"):
        daemon = "trap '' TERM; while :; do sleep 0.05; done"
        subprocess.Popen(["sh", "-c", f"setsid sh -c \\"{daemon}\\" & wait"], start_new_session=True)
        time.sleep(60)
    while event.get("wait") and not os.path.exists("/tmp/go"):
        time.sleep(0.01)
    if event.get("go"):
        open("/tmp/go", "w").close()
    names = [open(f"/proc/{pid}/stat").read().split("(")[1].split(")")[0] for pid in os.listdir("/proc") if pid.isdigit()]
    return {"names": names, "instance": os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]}
"""


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    async with real_stack(pg_dsn, tmp_path) as stack:
        yield stack


async def test_a_timeout_leaves_the_neighbours_in_the_instance_alone(stack: RealStack) -> None:
    """AG10: the call's own descendants are gone a second later, although the instance lives on."""
    await stack.deploy(CODE, name="hello", concurrency=3, timeout_s=60)
    await stack.invoke()
    neighbour = stack.invoking(encode({"wait": True}))
    hanging = stack.invoking(encode({"hang": True}), timeout_ms=2000)
    with pytest.raises(NovaError) as caught:
        await hanging
    assert caught.value.code == "timeout"
    assert not neighbour.done()
    released = decode((await stack.invoke(encode({"go": True}))).output or b"")
    answer = await neighbour
    assert answer.error is None
    assert decode(answer.output or b"")["instance"] == released["instance"]
    async with asyncio.timeout(20):
        while "sh" in (left := decode((await stack.invoke()).output or b"")["names"]):
            await asyncio.sleep(0.02)
    assert left
    assert stack.fleet.size == 1
