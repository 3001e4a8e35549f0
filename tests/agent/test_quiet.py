"""The agent whose host alone can reach it: it speaks first, and is asked for nothing until something has to be done."""

import asyncio
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import nova
from nova.agent import frames
from nova.agent.config import AgentConfig, WorkerLaunch
from nova.execution.backends.base import InitFailed, WorkerCall, WorkerResult
from nova.execution.channel import DirectChannel
from nova.execution.channel_deadlines import Deadlines
from tests.agent.harness import descendants, kill_session, spec_of, write_files

pytestmark = pytest.mark.anyio

CHILD = """
import socket, sys
source, control, folder, port, digest = sys.argv[1:]
sys.path.insert(0, source)
from nova.agent import at_fork
at_fork.postpone()
from nova.agent import preload, quiet
from nova.agent.config import AgentConfig, WorkerLaunch
from nova.agent.process import adopt_orphans, start_worker
from nova.agent.runners import standing_main
module = "nova.runtimes.python.bootstrap"
config = AgentConfig(b"", "one", "python", WorkerLaunch("fork", module), folder, guest_port=int(port), api_digest=digest)
preload.warm_up([module])
adopt_orphans()
hello = quiet.greeting("python", stands=True)
main = standing_main(config)
quiet.run(int(control), hello, lambda: start_worker(0, main), lambda: config, int(port))
"""


class Quiet:
    """One such agent as a process without isolation, and the host's channel to it."""

    def __init__(self, process: subprocess.Popen[bytes], channel: DirectChannel) -> None:
        self.process = process
        self.channel = channel

    async def init(self, **changes: Any) -> Any:
        return await self.channel.init(spec_of("python", **changes))

    async def call(self, event: object = None) -> WorkerResult:
        call = WorkerCall(
            "0199aaaa-0000-7000-8000-000000000001", json.dumps(event).encode(), CONTEXT, time.monotonic() + 20
        )
        return await self.channel.call(call)


TOKEN = "t0k3n"
ASKS = """
import os, time, urllib.error, urllib.request
def handler(event):
    time.sleep(0.3)
    token = event or os.environ["NOVA_API_TOKEN"]
    request = urllib.request.Request(os.environ["NOVA_API_URL"] + "/v1/none", headers={"Authorization": "Bearer " + token})
    try:
        urllib.request.urlopen(request)
    except urllib.error.HTTPError as refused:
        return refused.code
"""
ORPHANS = """
import os
def handler():
    if os.fork() == 0:
        os.fork()
        os._exit(0)
    os.wait()
    return "done"
"""
CONTEXT = b'{"request_id": "0199aaaa-0000-7000-8000-000000000001", "tenant": "acme"}'
Start = Callable[..., Awaitable[Quiet]]


def begin(control: socket.socket, config: AgentConfig) -> subprocess.Popen[bytes]:
    source = str(Path(nova.__file__).parent.parent)
    with control:
        told = [str(control.fileno()), config.code_dir, str(config.guest_port), config.api_digest]
        command = [sys.executable, "-I", "-S", "-c", CHILD, source, *told]
        return subprocess.Popen(command, pass_fds=[control.fileno()], start_new_session=True)


@pytest.fixture
async def quiet(tmp_path: Path) -> AsyncIterator[Start]:
    made: list[Quiet] = []
    deadlines = Deadlines()

    async def start(code: str = "def handler(event):\n    return event\n") -> Quiet:
        write_files(tmp_path, {"main.py": code})
        ours, theirs = socket.socketpair()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        launch = WorkerLaunch("fork", "nova.runtimes.python.bootstrap")
        digest = hashlib.sha256(TOKEN.encode()).hexdigest()
        config = AgentConfig(b"", "one", "python", launch, str(tmp_path), guest_port=port, api_digest=digest)
        process = begin(theirs, config)

        async def unknown() -> Any:
            return "unknown"

        channel = await DirectChannel.hear(
            ours,
            config,
            TOKEN,
            kill=lambda: kill_session(process.pid),
            death_cause=unknown,
            deadlines=deadlines,
            init_timeout_s=5,
        )
        made.append(Quiet(process, channel))
        return made[-1]

    yield start
    for one in made:
        one.channel.close()
        kill_session(one.process.pid)
        one.process.wait()
    deadlines.close()


async def test_it_speaks_first_and_answers_pings(quiet: Start) -> None:
    one = await quiet()
    for _ in range(3):
        assert await one.channel.ping(5)
    done = await one.init()
    assert 0 < done.import_us <= done.init_us
    assert (await one.call({"n": 1})).output == b'{"n": 1}'
    assert await one.channel.ping(5)


async def test_pings_go_on_when_more_was_asked_of_it(quiet: Start) -> None:
    """A ping has the same id each time, also to the supervisor that the agent has become."""
    one = await quiet("import time\ndef handler():\n    time.sleep(0.5)\n")
    await one.init(concurrency=2)
    await asyncio.gather(one.call(), one.call())
    assert len(descendants(one.process.pid)) == 3
    for _ in range(3):
        assert await one.channel.ping(5)


async def test_a_stopped_agent_does_not_answer(quiet: Start) -> None:
    one = await quiet()
    os.kill(one.process.pid, signal.SIGSTOP)
    assert not await one.channel.ping(0.2)


@pytest.mark.parametrize(
    ("code", "kind", "printed"),
    [
        ("print('so far')\n1 / 0\n", "ZeroDivisionError", "so far\n"),
        ("print('gone', flush=True)\nimport os\nos._exit(7)\n", "Nova.ExitError", "gone\n"),
        ("import os\nos.kill(os.getpid(), 9)\n", "Nova.Signal", ""),
        ("import os\nos.write(4, b'what?\\n')\nimport time\ntime.sleep(60)\n", "Nova.InitError", ""),
        ("import os\nos.write(4, b'{\"output\": 1}\\n')\nimport time\ntime.sleep(60)\n", "Nova.InitError", ""),
        ("import time\ntime.sleep(60)\n", "Nova.InitError", ""),
    ],
)
async def test_code_that_does_not_load_says_why(code: str, kind: str, printed: str, quiet: Start) -> None:
    """AG21, while it loads: the right type, and what it had printed."""
    one = await quiet(code)
    with pytest.raises(InitFailed) as failed:
        await one.init()
    assert failed.value.error.type == kind
    assert failed.value.stdout == printed


async def test_much_that_is_printed_while_loading_holds_nothing_up(quiet: Start) -> None:
    one = await quiet("print('x' * 200_000)\ndef handler():\n    return 1\n")
    assert (await one.init()).stdout == "x" * 200_000 + "\n"


async def test_an_agent_that_is_gone_fails_the_load_at_once(quiet: Start) -> None:
    one = await quiet()
    kill_session(one.process.pid)
    one.process.wait()
    with pytest.raises(InitFailed) as failed:
        await asyncio.wait_for(one.init(), 3)
    assert failed.value.error.type == "Nova.InstanceLost"


async def test_the_end_of_a_worker_is_told(quiet: Start) -> None:
    one = await quiet("import os\ndef handler():\n    os._exit(3)\n")
    await one.init()
    result = await one.call()
    assert result.error is not None
    assert (result.error.type, result.error.message) == ("Nova.ExitError", "the process exited with code 3")


async def test_its_worker_sets_its_own_limits(quiet: Start) -> None:
    one = await quiet("import resource\ndef handler():\n    return resource.getrlimit(resource.RLIMIT_NOFILE)\n")
    await one.init(open_files=77)
    assert json.loads((await one.call()).output or b"") == [77, 77]


async def test_whoever_shows_the_token_may_ask(quiet: Start) -> None:
    """The agent knows its digest from the start, and all of its workers are told it: also those that it starts itself."""
    one = await quiet(ASKS)
    await one.init(concurrency=2)
    answers = await asyncio.gather(one.call(), one.call(), one.call("another"))
    assert [answer.output for answer in answers] == [b"404", b"404", b"401"]


HOOKS = """
import os, threading, time
seen = []
os.register_at_fork(after_in_child=lambda: seen.append("early"))
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
def handler():
    return seen
"""


async def test_fork_hooks_of_a_function_with_threads_run_before_each_of_its_calls(quiet: Start) -> None:
    one = await quiet(HOOKS)
    await one.init(mode="process")
    assert [(await one.call()).output for _ in range(2)] == [b'["early"]', b'["early"]']


async def test_orphans_of_a_call_are_buried(quiet: Start) -> None:
    one = await quiet(ORPHANS)
    await one.init()
    assert (await one.call()).output == b'"done"'
    until = time.monotonic() + 5
    while len(descendants(one.process.pid)) != 2 and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert len(descendants(one.process.pid)) == 2


async def test_it_ends_with_its_host(quiet: Start) -> None:
    one = await quiet()
    await one.init()
    one.channel.close()
    assert one.process.wait(5) == 0


async def test_what_breaks_the_protocol_is_told_and_ends_it(quiet: Start) -> None:
    one = await quiet()
    one.channel._control._sock.send(b"\x00\x00\x00\x02{}")
    assert one.process.wait(5) == 1


def test_the_ping_is_a_frame_like_any_other() -> None:
    (ping,) = frames.FrameDecoder().feed(frames.QUIET_PING)
    (pong,) = frames.FrameDecoder().feed(frames.QUIET_PONG)
    assert (ping.type, pong.type, ping.id) == (frames.PING, frames.RESP, pong.id)
