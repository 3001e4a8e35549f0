"""The host's end of an instance: deadlines, cancellation, deaths and what a hostile worker can do."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova.agent import frames
from nova.errors import FunctionError
from nova.execution.backends.base import InitFailed
from nova.execution.channel import DirectChannel
from nova.execution.channel_control import ControlLost
from nova.execution.channel_deadlines import Deadlines
from tests.agent.harness import TOKEN, Guest, descendants, guest, kill_session, spawn_agent

pytestmark = pytest.mark.anyio

TIMEOUT = FunctionError("Nova.Timeout", "the call ran out of time")


def python(code: str, folder: Path, **changes: Any) -> Any:
    return guest("python", {"main.py": code}, folder, **changes)


async def lost(instance: Guest) -> None:
    """Wait until the channel says that it is of no further use."""
    ended = asyncio.Event()
    instance.channel.on_lost(ended.set)
    await asyncio.wait_for(ended.wait(), 10)
    assert not instance.channel.usable


async def test_a_timeout_is_answered_on_time_and_ends_everything(tmp_path: Path) -> None:
    """AG10: endless loop, a child that left the session and holds stdout: the caller has its answer, all are killed."""
    code = """
import subprocess
def handler(event, context):
    print("before", flush=True)
    subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"], start_new_session=True)
    while True:
        pass
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        began = time.monotonic()
        result = await instance.call(timeout_s=0.8)
        assert result.error == TIMEOUT
        assert result.stdout == "before\n"
        assert time.monotonic() - began < 10
        assert instance.killed
        assert not instance.channel.usable
        instance.process.wait(5)
        assert (await instance.call()).error == FunctionError("Nova.InstanceLost", "the instance has ended")


async def test_a_cancelled_call_ends_its_one_call_worker(tmp_path: Path) -> None:
    """AG10."""
    async with python("import time\ndef handler():\n    time.sleep(1000)\n", tmp_path) as instance:
        await instance.init()
        call = instance.begin()
        task = asyncio.ensure_future(asyncio.wait_for(call, 0.05))
        with pytest.raises(TimeoutError):
            await task
        assert instance.killed
        assert not instance.channel.usable


async def test_deadlines_of_many_instances_are_kept_apart(tmp_path: Path) -> None:
    """A slow call is ended by its own deadline; the quick ones before and after it are not touched."""
    code = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"
    async with python(code, tmp_path / "a") as slow, python(code, tmp_path / "b") as quick:
        await slow.init()
        await quick.init()
        call = slow.begin(30, timeout_s=0.4)
        for _ in range(10):
            assert await quick.value(0.01, timeout_s=10) == 0.01
        assert (await call).error == TIMEOUT
        assert await quick.value(0) == 0


async def test_a_multiplexed_call_that_times_out_leaves_the_others_alone(tmp_path: Path) -> None:
    """The worker confirms that it gave the call up, so it goes on."""
    code = """
import asyncio
cancelled = []
async def handler(event, context):
    try:
        while event == "until" and not cancelled:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0 if event == "until" else event)
    except asyncio.CancelledError:
        cancelled.append(context.request_id)
        raise
    return cancelled
"""
    async with python(code, tmp_path, concurrency=10) as instance:
        await instance.init()
        hung = instance.begin(1000, request_id="hung", timeout_s=0.3)
        others = [instance.begin("until") for _ in range(5)]
        assert (await hung).error == TIMEOUT
        for other in others:
            assert json.loads((await other).output or b"") == ["hung"]
        gone = instance.begin(1000, request_id="gone")
        assert json.loads((await instance.call(0)).output or b"") == ["hung"]  # "gone" has begun by now
        gone.cancel()
        never = instance.begin(1000, request_id="never")
        never.cancel()
        told = await instance.value(0.1)
        # a call whose cancellation overtakes it does not even begin
        assert told in (["hung", "gone"], ["hung", "gone", "never"])
        assert instance.channel.usable


async def test_a_multiplexed_worker_that_does_not_give_up_is_killed(tmp_path: Path) -> None:
    """AG10: a call that blocks the loop costs the instance a second later; the other calls are told why."""
    code = """
import asyncio, time
async def handler(event, context):
    if event == "block":
        time.sleep(1000)
    await asyncio.sleep(1000)
"""
    async with python(code, tmp_path, concurrency=10) as instance:
        await instance.init()
        other = instance.begin("wait")
        blocked = instance.begin("block", timeout_s=0.2)
        assert (await blocked).error == TIMEOUT
        assert instance.channel.usable
        result = await asyncio.wait_for(other, 20)
        assert result.error is not None
        assert result.error.type == "Nova.WorkerLost"
        assert instance.killed


async def test_a_caller_that_leaves_does_not_cost_the_neighbours_their_worker(tmp_path: Path) -> None:
    """Node cannot interrupt a handler: what nobody waits for may run on until its own deadline."""
    code = "exports.handler = (event) => new Promise((done) => setTimeout(done, event, event));"
    async with guest("node", {"index.js": code}, tmp_path, concurrency=5) as instance:
        await instance.init()
        gone = instance.begin(2500)
        gone.cancel()
        assert await instance.value(1500) == 1500
        assert not instance.killed


async def test_abort_signal_of_node_fires_on_cancel(tmp_path: Path) -> None:
    code = """
let aborted = [];
exports.handler = (event, context) => event
  ? new Promise((done) => context.signal.addEventListener("abort", () => { aborted.push(event); done(event); }))
  : aborted;
"""
    async with guest("node", {"index.js": code}, tmp_path, concurrency=5) as instance:
        await instance.init()
        gone = instance.begin("first")
        assert await instance.value(None) == []
        gone.cancel()
        assert await instance.value(None) == ["first"]


async def test_a_waiting_call_times_out_without_costing_the_running_one(tmp_path: Path) -> None:
    """More calls than slots wait in the channel; their deadlines are their own."""
    code = "import time\ndef handler(event, context):\n    time.sleep(event)\n    return event\n"
    async with python(code, tmp_path) as instance:
        await instance.init()
        running = instance.begin(0.6)
        waiting = instance.begin(0, timeout_s=0.1)
        third = instance.begin(0)
        fourth = instance.begin(0)
        assert (await waiting).error == TIMEOUT
        fourth.cancel()
        assert (await running).output == b"0.6"
        assert (await third).output == b"0"
        assert instance.channel.usable


async def test_memory_and_descriptors_level_off(tmp_path: Path) -> None:
    """AG2: on the host's side too."""
    async with python("def handler(event, context):\n    print(event)\n    return event\n", tmp_path) as instance:
        await instance.init()
        await instance.value(1)
        before = len(os.listdir("/proc/self/fd"))
        processes = descendants(instance.process.pid)
        for n in range(1000):
            await instance.value(n)
        assert len(os.listdir("/proc/self/fd")) == before
        assert descendants(instance.process.pid) == processes


async def test_a_warm_call_is_one_line_each_way(tmp_path: Path) -> None:
    """AG3, AG18: counted in the worker's system calls: one read and one write, and no call is sent twice."""
    code = """
def counts():
    fields = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
    return [int(fields["syscr"]), int(fields["syscw"])]
last = None
seen = []
def handler(event, context):
    global last
    now = counts()
    before, last = last, counts()
    seen.append(event)
    return [now[0] - before[0], now[1] - before[1], seen] if before else None
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        await instance.value(0)
        reads, writes, seen = await instance.value(1)
        own_reads = reads - 1  # less the line itself: what counts() reads of /proc
        assert await instance.value(2) == [1 + own_reads, writes, [0, 1, 2]]
        assert (own_reads, writes, seen) == (own_reads, 1, [0, 1])


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (b"garbage\\n", "Nova.InvalidOutput"),
        (b'{"output": {broken}\\n', "Nova.InvalidOutput"),
        (b'{"output": NaN}\\n', "Nova.InvalidOutput"),
        (b'{"output": "\\xff"}\\n', "Nova.InvalidOutput"),
        (b'{"output": 1, "more": 2}\\n', "Nova.InvalidOutput"),
        (b"[]\\n", "Nova.InvalidOutput"),
        (b"\\0" * 100 + b"\\n", "Nova.InvalidOutput"),
    ],
)
async def test_garbage_on_the_line_costs_that_instance_alone(written: bytes, kind: str, tmp_path: Path) -> None:
    """AG17."""
    code = f"import os, time\ndef handler(event, context):\n    os.write(4, b'''{written.decode()}''')\n    time.sleep(100)\n"
    async with python(code, tmp_path) as instance:
        await instance.init()
        result = await instance.call()
        assert result.error is not None
        assert result.error.type == kind
        assert not instance.channel.usable
        assert instance.killed


async def test_a_line_of_a_gigabyte_is_refused_without_keeping_it(tmp_path: Path) -> None:
    """AG9, AG17: the memory of the host stays, the call ends as too large, the instance serves the next."""
    code = """
import os
def handler(event, context):
    if event:
        os.write(4, b'{"output": "')
        for _ in range(event):
            os.write(4, b"x" * 65536)
        os.write(4, b'"}\\n')
        while True:
            pass
    return "next"
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        before = _rss_kb()
        result = await instance.call(4096)
        assert result.error is not None
        assert result.error.type == "Nova.OutputTooLarge"
        assert _rss_kb() - before < 64 << 10


def _rss_kb() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


async def test_an_answer_that_nobody_asked_for_ends_the_instance(tmp_path: Path) -> None:
    """AG18: a second answer to a call must never reach the next one."""
    code = (
        "import os\ndef handler(event, context):\n    os.write(4, b'{\"output\": \"forged\"}\\n')\n    return 'real'\n"
    )
    async with python(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value() == "forged"
        await lost(instance)
        assert instance.killed


async def test_an_answer_written_just_before_the_end_still_counts(tmp_path: Path) -> None:
    code = "import os\ndef handler():\n    os.write(4, b'{\"output\": 5}\\n')\n    os._exit(0)\n"
    async with python(code, tmp_path) as instance:
        await instance.init()
        assert await instance.value() == 5
        await lost(instance)


async def test_an_end_with_the_line_still_open_is_noticed(tmp_path: Path) -> None:
    """A forked child that keeps the worker's descriptors does not hide its death."""
    code = """
import os, time
def handler():
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(7)
"""
    async with python(code, tmp_path) as instance:
        await instance.init()
        assert await instance.failure() == FunctionError("Nova.ExitError", "the process exited with code 7")


async def test_out_of_memory_is_named(tmp_path: Path) -> None:
    """A kill that the backend knows to be the memory limit's is told as that, at load and in a call."""
    kill = "import os, signal\n{indent}os.kill(os.getpid(), signal.SIGKILL)\n"
    expected = FunctionError("Nova.OutOfMemory", "the function used more than its 128 MB of memory")
    code = "def handler():\n    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    async with python(code, tmp_path, cause="out_of_memory") as instance:
        await instance.init()
        assert await instance.failure() == expected
    async with python(kill.format(indent=""), tmp_path, cause="out_of_memory") as instance:
        with pytest.raises(InitFailed) as caught:
            await instance.init()
        assert caught.value.error == expected


async def test_an_instance_that_vanishes_is_lost(tmp_path: Path) -> None:
    """AG18: the call was delivered, so it is not sent again: it ends as lost."""
    async with python("import time\ndef handler():\n    time.sleep(1000)\n", tmp_path) as instance:
        await instance.init()
        call = instance.begin()
        kill_session(instance.process.pid)
        result = await asyncio.wait_for(call, 20)
        assert result.error is not None
        assert result.error.type in ("Nova.InstanceLost", "Nova.Signal")
        assert not instance.channel.usable


async def test_loading_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    async with python("import time\ntime.sleep(1000)\n", tmp_path, init_timeout_s=0.3) as instance:
        with pytest.raises(InitFailed) as caught:
            await instance.init()
        assert caught.value.error == FunctionError("Nova.InitError", "loading the code took longer than 0.3 s")
        assert instance.killed


async def test_ping_tells_a_live_instance_from_a_stopped_one(tmp_path: Path) -> None:
    async with python("def handler():\n    return 1\n", tmp_path) as instance:
        assert await instance.channel.ping(5)
        await instance.init()
        assert await instance.channel.ping(5)
        os.kill(instance.process.pid, signal.SIGSTOP)
        assert not await instance.channel.ping(0.1)
        os.kill(instance.process.pid, signal.SIGCONT)
        kill_session(instance.process.pid)
        assert not await instance.channel.ping(5)


async def test_stop_ends_the_agent(tmp_path: Path) -> None:
    async with python("def handler():\n    return 1\n", tmp_path) as instance:
        await instance.init()
        await instance.channel.stop(1000)
        assert instance.process.wait(5) == 0
        await lost(instance)
        await instance.channel.stop(1000)


async def test_close_frees_every_descriptor_and_ends_calls(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with python("import time\ndef handler():\n    time.sleep(1000)\n", tmp_path) as instance:
        await instance.init()
        call = instance.begin()
        instance.channel.close()
        instance.channel.close()
        assert (await call).error == FunctionError("Nova.InstanceLost", "the instance was stopped")
        assert len(os.listdir("/proc/self/fd")) == before


async def test_close_before_init_frees_the_standing_worker(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with python("", tmp_path):
        pass
    assert len(os.listdir("/proc/self/fd")) == before


@contextlib.asynccontextmanager
async def agent_of_our_own() -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a control connection, for a test that plays the agent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


async def _death_cause() -> Any:
    return "unknown"


async def connect(control: socket.socket) -> DirectChannel:
    return await DirectChannel.connect(
        control, TOKEN, "i", kill=lambda: None, death_cause=_death_cause, deadlines=Deadlines()
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xff\xff\xff",
        b"\0\0\0\x04abcd",
        frames.encode(frames.HELLO, 1, {}),
        frames.encode(frames.ERROR, 0, {"code": "version", "message": "no"}),
        frames.encode(
            frames.HELLO,
            1,
            {
                "proto": 1, "agent": "x", "runtimes": [], "state": "blank", "features": ["direct"],
                "max_message": frames.MAX_MESSAGE, "boot_us": 1, "fds": 3,
            },
        ),
    ],
)  # fmt: skip
async def test_an_agent_that_answers_hello_badly_is_refused(answer: bytes) -> None:
    """AG17: the last one announces descriptors that it does not send."""
    before = len(os.listdir("/proc/self/fd"))
    async with agent_of_our_own() as (control, theirs):
        theirs.send(answer) if answer else theirs.close()
        with pytest.raises(ControlLost):
            await connect(control)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_descriptors_that_nobody_asked_for_are_closed() -> None:
    before = len(os.listdir("/proc/self/fd"))
    async with agent_of_our_own() as (control, theirs):
        socket.send_fds(theirs, [frames.encode(frames.HELLO, 1, {})], [theirs.fileno()] * 3)
        with pytest.raises(ControlLost):
            await connect(control)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_descriptors_without_end_end_the_connection() -> None:
    """AG17: those that no frame announces do not pile up in the daemon."""
    before = len(os.listdir("/proc/self/fd"))
    async with agent_of_our_own() as (control, theirs):
        connecting = asyncio.create_task(connect(control))
        theirs.send((7 << 20).to_bytes(4, "big"))
        with contextlib.suppress(BrokenPipeError):
            for _ in range(1000):
                socket.send_fds(theirs, [b"x"], [theirs.fileno()] * 3)
                await asyncio.sleep(0)
        with pytest.raises(ControlLost, match="did not announce"):
            await connecting
    assert len(os.listdir("/proc/self/fd")) == before


async def test_an_agent_process_that_dies_at_once_is_noticed(tmp_path: Path) -> None:
    process, control = spawn_agent("python", tmp_path)
    process.kill()
    process.wait()
    with pytest.raises(ControlLost):
        await connect(control)
    control.close()
