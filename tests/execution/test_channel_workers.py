"""Several workers in one instance: what one call does to its own worker is not the neighbours' business."""

import asyncio
import os
import select
from collections.abc import Callable
from pathlib import Path

import pytest

from nova.errors import FunctionError
from tests.agent.harness import descendants, guest

pytestmark = pytest.mark.anyio

CODE = """
import os, subprocess, time
def handler(event, context):
    if event == "hang":
        daemon = "trap '' TERM; echo $$ >>pids; while :; do sleep 0.05; done"
        subprocess.Popen(["sh", "-c", f"setsid sh -c \\"{daemon}\\" & wait"], start_new_session=True)
        print("hanging", flush=True)
        while True:
            pass
    while event and not os.path.exists(event):
        time.sleep(0.01)
    return os.getpid()
"""
TIMEOUT = FunctionError("Nova.Timeout", "the call ran out of time")


async def until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended, _, _ = select.select([pidfd], [], [], 0)
    os.close(pidfd)
    return bool(ended)


@pytest.mark.parametrize("mode", ["persistent", "process"])
async def test_a_timeout_costs_its_own_worker_alone(mode: str, tmp_path: Path) -> None:
    """AG10: all that the call started is gone, whatever it did to get away; the neighbours go on."""
    go, pids = tmp_path / "go", tmp_path / "pids"
    async with guest("python", {"main.py": CODE}, tmp_path, concurrency=3, mode=mode) as instance:
        await instance.init()
        neighbours = [instance.begin(str(go)), instance.begin(str(go))]
        await until(lambda: len(descendants(instance.process.pid)) >= 3)
        result = await instance.call("hang", timeout_s=1.5)
        assert (result.error, result.stdout) == (TIMEOUT, "hanging\n")
        await until(lambda: all(gone(int(pid)) for pid in pids.read_text().split()))
        assert pids.read_text()
        assert not any(call.done() for call in neighbours)
        replaced = instance.begin()  # of three places one is free again
        assert (await replaced).error is None
        go.touch()
        assert [(await call).error for call in neighbours] == [None, None]
        assert instance.channel.usable
        assert not instance.killed
        assert await instance.channel.ping(10)


async def test_a_caller_that_leaves_costs_its_own_worker_alone(tmp_path: Path) -> None:
    go = tmp_path / "go"
    async with guest("python", {"main.py": CODE}, tmp_path, concurrency=2) as instance:
        await instance.init()
        neighbour, leaving = instance.begin(str(go)), instance.begin("hang")
        waiting = instance.begin(str(go))
        await until((tmp_path / "pids").exists)
        leaving.cancel()
        await until(lambda: len(descendants(instance.process.pid)) == 3)
        go.touch()
        assert (await neighbour).error is None
        assert (await waiting).error is None
        assert instance.channel.usable


async def test_when_every_worker_ran_out_of_time_the_instance_still_serves(tmp_path: Path) -> None:
    async with guest("python", {"main.py": CODE}, tmp_path, concurrency=2) as instance:
        await instance.init()
        results = await asyncio.gather(instance.call("hang", timeout_s=0.5), instance.call("hang", timeout_s=0.6))
        assert [result.error for result in results] == [TIMEOUT, TIMEOUT]
        assert all(await asyncio.gather(instance.value(), instance.value()))
        await until(lambda: len(descendants(instance.process.pid)) == 3)
        assert instance.channel.usable


async def test_scripts_side_by_side(tmp_path: Path) -> None:
    """AG10: the program of the call that ran out of time ends, the others answer."""
    code = """
import json, os, sys, time
event = json.load(open(sys.argv[1]))
while not os.path.exists(event):
    time.sleep(0.01)
print(json.dumps(event))
"""
    go = tmp_path / "go"
    async with guest(
        "python", {"main.py": code}, tmp_path, entry_kind="script", mode="process", concurrency=2
    ) as instance:
        await instance.init()
        neighbour = instance.begin(str(go))
        assert (await instance.call(str(tmp_path / "never"), timeout_s=1.0)).error == TIMEOUT
        await until(lambda: len(descendants(instance.process.pid)) == 3)
        go.touch()
        assert (await neighbour).error is None
        assert instance.channel.usable


async def test_descriptors_of_workers_are_not_inherited_by_other_programs(tmp_path: Path) -> None:
    """What the host starts while an instance lives must not hold its pipes open."""
    before = open_descriptors()
    async with guest("python", {"main.py": CODE}, tmp_path, concurrency=2) as instance:
        await instance.init()
        await asyncio.gather(instance.value(), instance.value())
        made = open_descriptors() - before
        assert len(made) >= 4  # the control socket, and three of a worker
        assert [fd for fd in made if os.get_inheritable(fd)] == []


def open_descriptors() -> set[int]:
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.islink(f"/proc/self/fd/{fd}")}
