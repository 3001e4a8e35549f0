"""Idle instances share what they left as it was, and nobody notices anything else."""

import asyncio
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.execution.backends.base import Resting
from nova.execution.backends.sandbox import ptrace
from nova.execution.backends.sandbox.backend import SandboxBackend
from tests.execution.backends.sandbox.harness import Function, PythonOnly, load, options, zygotes

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.root,
    pytest.mark.skipif(not ptrace.SUPPORTED, reason="memory is shared again on x86-64 alone"),
]

KEEPER = """
import gc, hashlib, json

kept = {str(number): [number, {"text": "x" * number}] for number in range(500)}
calls = 0

def handler(event):
    global calls
    calls += 1
    if event == "collect":
        gc.collect()
        gc.unfreeze()
        gc.collect()
    fresh = [object() for _ in range(10_000)]
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return [calls, digest, len(fresh)]
"""


@pytest.fixture
async def fresh(tmp_path: Path) -> AsyncIterator[SandboxBackend]:
    backend = SandboxBackend(options(tmp_path), PythonOnly())
    await backend.start()
    yield backend
    await backend.close()


def family(function: Function) -> list[int]:
    first = function.instance.pid
    return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]


def own_kb(function: Function) -> int:
    """In all its processes, what is no file's: above all what they have written to."""
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in family(function)]
    return sum(int(size) for text in texts for size in re.findall(r"Anonymous:\s+(\d+) kB", text))


async def rest(function: Function) -> None:
    assert isinstance(function.backend, Resting)
    await function.backend.rest(function.instance)


async def rested(function: Function, below_kb: float) -> int:
    """Let it rest until it has less than so much to itself."""
    until = time.monotonic() + 20
    while (now := own_kb(function)) >= below_kb:
        assert time.monotonic() < until, f"{now} KiB, and not less than {below_kb}"
        await rest(function)
        await asyncio.sleep(0.05)
    return now


async def test_an_instance_at_rest_takes_a_fifth_less_and_goes_on_as_before(
    sandbox: SandboxBackend, tmp_path: Path
) -> None:
    function = await load(sandbox, tmp_path, "def handler(event):\n    return event")
    for number in range(3):
        assert await function.value(number) == number
    before = own_kb(function)
    assert await rested(function, before * 0.8) < before * 0.8
    for number in range(3):
        assert await function.value({"again": number}) == {"again": number}
    assert await function.instance.channel.ping(5)
    await function.stop()


async def test_what_a_function_keeps_survives_any_number_of_rests(sandbox: SandboxBackend, tmp_path: Path) -> None:
    function = await load(sandbox, tmp_path, KEEPER)
    _, digest, _ = await function.value()
    for calls in range(2, 32):
        await rest(function)
        await asyncio.sleep(0.02 if calls % 3 else 0)  # or in its midst
        assert await function.value("collect" if calls % 5 == 0 else None) == [calls, digest, 10_000]
    await function.stop()


async def test_a_crowd_may_rest_and_be_called_at_once(sandbox: SandboxBackend, tmp_path: Path) -> None:
    functions = [await load(sandbox, tmp_path, KEEPER) for _ in range(4)]

    async def use(function: Function) -> None:
        digest = (await function.value())[1]
        for calls in range(2, 60):
            assert await function.value() == [calls, digest, 10_000]

    async def disturb(function: Function) -> None:
        while True:
            await rest(function)
            await asyncio.sleep(0.003)

    disturbing = [asyncio.create_task(disturb(function)) for function in functions]
    await asyncio.gather(*(use(function) for function in functions))
    for task in disturbing:
        task.cancel()
    await asyncio.gather(*disturbing, return_exceptions=True)
    for function in functions:
        await function.stop()


async def test_what_is_at_work_is_left_alone(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """A thread of the function's goes on beside calls, a child process too."""
    function = await load(
        sandbox,
        tmp_path,
        """
        import subprocess, threading, time
        ticks = 0
        def tick():
            global ticks
            while True:
                ticks += 1
                time.sleep(0.001)
        threading.Thread(target=tick, daemon=True).start()
        child = subprocess.Popen(["sleep", "60"])
        def handler():
            return [ticks, child.poll()]
        """,
    )
    first, _ = await function.value()
    for _ in range(20):
        await rest(function)
        await asyncio.sleep(0.01)
    ticks, child = await function.value()
    assert ticks > first + 50
    assert child is None
    await function.stop()


async def test_an_instance_that_ends_meanwhile_is_buried(sandbox: SandboxBackend, tmp_path: Path) -> None:
    for _ in range(5):
        function = await load(sandbox, tmp_path, "def handler():\n    return 1")
        assert await function.value() == 1
        await rest(function)
        function.instance.kill()
        async with asyncio.timeout(10):
            await function.instance.ended
        await rest(function)
        await function.stop()


async def test_instances_rest_when_their_zygote_is_another_and_when_the_one_who_does_it_was_killed(
    fresh: SandboxBackend, tmp_path: Path
) -> None:
    echo = "def handler(event):\n    return event"
    old = await load(fresh, tmp_path, echo)
    assert await old.value(1) == 1
    (zygote,) = zygotes(fresh)
    await rested(old, own_kb(old) * 0.8)
    (sharer,) = set(zygotes(fresh)) - {zygote}
    os.kill(zygote, signal.SIGKILL)
    os.kill(sharer, signal.SIGKILL)
    new = await load(fresh, tmp_path, echo)
    for function in (old, new):
        for _ in range(3):
            assert await function.value(2) == 2
        await rested(function, own_kb(function))
        assert await function.value(3) == 3
        await function.stop()
