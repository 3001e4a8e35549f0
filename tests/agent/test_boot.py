"""The agent as the first process of a container: how it finds its host, whom it lets in, how it ends."""

import asyncio
import contextlib
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import tarfile
import tty
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nova.agent import relay_codec as codec
from nova.agent.frames import HELLO, encode
from nova.agent.messages import HelloHead, PlaceHead, ThawHead
from nova.agent.relay_codec import PREAMBLE
from nova.execution.backends.base import InitFailed
from nova.execution.channel import DirectChannel, FreezeRefused
from nova.execution.channel_deadlines import Deadlines
from nova.execution.launch import launch_for
from nova.execution.relay import relayed
from tests.agent.harness import (
    RUNTIMES,
    SOURCE,
    TOKEN,
    Guest,
    base_interpreter,
    descendants,
    kill_session,
    spec_of,
    write_files,
)

pytestmark = pytest.mark.anyio

CHILD = Path(__file__).with_name("boot_child.py")
CODE = """
import os, signal, sys, time

def _end(*_):
    open("ended", "w").close()
    sys.exit(0)

signal.signal(signal.SIGTERM, _end)

def handler(event, context):
    print("seen", event)
    if event == "env":
        return dict(os.environ)
    if event == "orphans":
        for _ in range(20):
            if os.fork() == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.wait()
    return event
"""


class Booted:
    """Started and perhaps reached."""

    def __init__(self, folder: Path, runtime: str = "python") -> None:
        self.folder = folder
        self.runtime = runtime
        self.process: subprocess.Popen[bytes] | None = None
        self.deadlines = Deadlines()
        self.channel: DirectChannel | None = None
        self.spared = False
        """the host does not kill it when a worker ends"""

    def start(
        self, listen: str, *, thaws: Path | None = None, environment: Mapping[str, str] = {}
    ) -> subprocess.Popen[bytes]:
        resolved = RUNTIMES.resolve(self.runtime)
        description = self.folder / "agent.json"
        worker = launch_for(resolved).as_dict()
        description.write_text(json.dumps({"runtime": self.runtime, "version": resolved.version, "worker": worker}))
        env = {
            "NOVA_AGENT_TOKEN_SHA256": hashlib.sha256(TOKEN).hexdigest(),
            "NOVA_INSTANCE_ID": "instance-1",
            "NOVA_AGENT_LISTEN": listen,
        }
        self.process = subprocess.Popen(
            [
                *(base_interpreter(), "-I", "-S", str(CHILD), SOURCE, str(description), str(self.folder / "code")),
                *([str(thaws)] if thaws else []),
            ],
            env={name: value for name, value in (env | dict(environment)).items() if value},
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        return self.process

    async def reach(self, sock: socket.socket, token: bytes = TOKEN, instance_id: str = "instance-1") -> Guest:
        assert self.process is not None
        self.channel = await DirectChannel.connect(
            sock,
            token,
            instance_id,
            kill=self._kill_unless_spared,
            death_cause=_unknown,
            deadlines=self.deadlines,
        )
        return Guest(self.process, self.channel, spec_of(self.runtime))

    async def ended(self) -> int:
        assert self.process is not None
        return await asyncio.to_thread(self.process.wait, 10)

    def _kill_unless_spared(self) -> None:
        if not self.spared:
            self.kill()

    def kill(self) -> None:
        if self.process is not None:
            kill_session(self.process.pid)

    def close(self) -> None:
        if self.channel is not None:
            self.channel.close()
        self.deadlines.close()
        self.kill()
        if self.process is not None:
            self.process.wait()
            assert self.process.stderr is not None
            self.process.stderr.close()


async def _unknown() -> Any:
    return "unknown"


@pytest.fixture
async def booted(tmp_path: Path) -> AsyncIterator[Booted]:
    write_files(tmp_path / "code", {"main.py": CODE})
    one = Booted(tmp_path)
    yield one
    one.close()
    await asyncio.sleep(0)


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number: int = taken.getsockname()[1]
        return number


async def connected(port: int) -> socket.socket:
    """A connection to a process that has just been started."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                return await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))
            await asyncio.sleep(0.01)


async def test_an_agent_that_connects_to_its_host(booted: Booted, tmp_path: Path) -> None:
    """Descriptors pass directly; SIGTERM to the first process gives the function's own handler its time."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "host.sock"))
        listener.listen()
        process = booted.start(f"connect:{tmp_path}/host.sock")
        control, _ = await asyncio.to_thread(listener.accept)
    instance = await booted.reach(control)
    await instance.init()
    assert (await instance.call(1)).stdout == "seen 1\n"
    names = set(await instance.value("env"))
    assert not {name for name in names if name.startswith("NOVA_AGENT")}
    booted.spared = True
    process.send_signal(signal.SIGTERM)
    assert await booted.ended() == 0
    assert (tmp_path / "code" / "ended").exists()


async def test_an_agent_that_waits_at_a_socket(booted: Booted, tmp_path: Path) -> None:
    process = booted.start(f"unix:{tmp_path}/agent.sock")
    sock = socket.socket(socket.AF_UNIX)
    async with asyncio.timeout(10):
        while sock.connect_ex(str(tmp_path / "agent.sock")):
            assert process.poll() is None
            await asyncio.sleep(0.01)
    instance = await booted.reach(sock)
    await instance.init()
    assert await instance.value(2) == 2
    await instance.channel.stop(1000)
    assert await booted.ended() == 0


async def test_an_agent_behind_a_port(booted: Booted, port: int, tmp_path: Path) -> None:
    """Through the relay: strangers are cut off, orphans are buried, new code is taken, the end of the host ends everything."""
    process = booted.start(f"tcp:{port}", environment={"NOVA_AGENT_RELOAD_DIR": str(tmp_path / "reloads")})
    strangers = [await connected(port) for _ in range(20)]
    hello = HelloHead(token="00" * 32, instance_id="instance-1").as_head()
    strangers[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[2].sendall(PREAMBLE + codec.encode(codec.DATA, 0, encode(HELLO, 1, hello)))
    strangers[3].sendall(PREAMBLE + codec.encode(codec.END, 0))
    instance = await booted.reach(await relayed(await connected(port)))
    for stranger in strangers:
        await _cut_off(stranger)
    await instance.init()
    assert (await instance.call("orphans")).output == b'"orphans"'
    assert (await instance.call(3)).stdout == "seen 3\n"
    archive = tarball({"main.py": "def handler(event):\n    return ['new', event]\n"})
    digest = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    (tmp_path / "new.tar").write_bytes(archive)
    await instance.channel.reload(
        tmp_path / "new.tar", digest=digest, size=len(archive), handler="main.handler", entry="main.py"
    )
    assert await instance.value(4) == ["new", 4]
    async with asyncio.timeout(20):
        while len(pids := descendants(process.pid)) != 3:  # the first process, the agent, its worker
            await asyncio.sleep(0.01)
    with contextlib.suppress(ConnectionRefusedError):
        (await asyncio.to_thread(socket.create_connection, ("127.0.0.1", port))).close()
    assert await instance.channel.ping(5)
    instance.channel.close()
    assert await booted.ended() == 0
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids[1:])


def tarball(files: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


async def _cut_off(stranger: socket.socket) -> None:
    with stranger:
        stranger.settimeout(5)
        with contextlib.suppress(ConnectionError):
            while await asyncio.to_thread(stranger.recv, 100):
                pass


async def test_sigterm_and_a_dead_agent_end_an_instance_behind_a_port(
    booted: Booted, port: int, tmp_path: Path
) -> None:
    process = booted.start(f"tcp:{port}")
    instance = await booted.reach(await relayed(await connected(port)))
    await instance.init()
    booted.spared = True
    process.send_signal(signal.SIGTERM)
    assert await booted.ended() == 0
    assert (tmp_path / "code" / "ended").exists()

    booted.close()
    process = booted.start(f"tcp:{port}")
    instance = await booted.reach(await relayed(await connected(port)))
    await instance.init()
    call = instance.begin(1)
    pids = descendants(process.pid)
    os.kill(pids[1], signal.SIGKILL)
    assert (await asyncio.wait_for(call, 20)).error is not None or call.result().output == b"1"
    assert await booted.ended() == 128 + signal.SIGKILL
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


RESUMED = """
import os, random
log = []
before = random.random()

def before_snapshot():
    log.append("before")

def after_restore():
    log.append("after")

def handler(event, context):
    if event == "fail":
        raise ValueError(event)
    return [os.getpid(), log, os.environ["AWS_LAMBDA_LOG_STREAM_NAME"], random.random()]
"""


async def test_an_instance_is_frozen_and_thawed_as_another(booted: Booted, port: int, tmp_path: Path) -> None:
    """What a machine's snapshot keeps, and what goes on from it, twice; without the machine."""
    write_files(tmp_path / "code", {"main.py": RESUMED})
    process = booted.start(f"tcp:{port}", thaws=tmp_path / "thaws")
    instance = await booted.reach(await relayed(await connected(port)))
    with pytest.raises(FreezeRefused, match="one worker that has loaded"):
        await instance.channel.freeze()
    await instance.init()
    token, name = TOKEN, "instance-1"
    for number in (2, 3):
        await instance.channel.freeze()
        instance.channel.close()

        stranger = await connected(port)
        stranger.sendall(b"?")
        await _cut_off(stranger)
        instance = await booted.reach(await relayed(await connected(port)), token, name)
        token, name = bytes([number]) * 32, f"instance-{number}"
        with pytest.raises(InitFailed, match="not_thawed"):
            await instance.init()
        thaw = ThawHead(name, hashlib.sha256(token).hexdigest(), 10**18 + number, "ab" * 64)
        await instance.channel.thaw(thaw)
        await instance.init()
        assert json.loads((tmp_path / "thaws").read_text().splitlines()[-1]) == thaw.as_head()
        pid, log, stream, _ = await instance.value(1)
        assert log == ["before", "after"] * (number - 1)
        assert stream == f"[3]{name}"
        assert pid == descendants(process.pid)[2]
        assert (await instance.failure("fail")).type == "ValueError"
        assert await instance.channel.ping(5)
    with pytest.raises(FreezeRefused, match="does not come from a snapshot"):
        await instance.channel.thaw(thaw)
    instance.channel.close()
    assert await booted.ended() == 0


@pytest.mark.parametrize("runtime", ["python", "node"])
async def test_an_instance_that_was_booted_for_nobody_becomes_somebodys(
    runtime: str, port: int, tmp_path: Path
) -> None:
    """It loads nothing and has no worker before it goes on; then it is like any other, whatever its language."""
    booted = Booted(tmp_path, runtime)
    booted.start(f"tcp:{port}", thaws=tmp_path / "thaws", environment={"TEST_BLANK": "1"})
    try:
        instance = await booted.reach(await relayed(await connected(port)))
        with pytest.raises(InitFailed, match="for nobody"):
            await instance.init()
        await instance.channel.freeze()
        instance.channel.close()
        assert len(descendants(instance.process.pid)) == 2, "the first process and the agent, and no worker"

        code = {"main.py": "def handler(event):\n    return event", "index.js": "exports.handler = event => event"}
        write_files(tmp_path / "code", code)
        instance = await booted.reach(await relayed(await connected(port)))
        thaw = ThawHead("instance-2", hashlib.sha256(b"2" * 32).hexdigest(), 1, "ab" * 64)
        with pytest.raises(FreezeRefused, match="booted for nobody"):
            await instance.channel.thaw(thaw)
        thaw = replace(thaw, place=PlaceHead("vdc:/layers/0:ro", 8, 128, 20))
        await instance.channel.thaw(thaw)
        assert json.loads((tmp_path / "thaws").read_text()) == thaw.as_head()
        await instance.init()
        assert await instance.value([1]) == [1]
        instance.channel.close()
        assert await booted.ended() == 0
    finally:
        booted.close()


class Port:
    """A terminal as a machine's serial port. Whoever plugs in is the next host; the other end does not notice."""

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        self.path = os.ttyname(self._slave)
        self._pumps: list[asyncio.Task[None]] = []

    def plug(self) -> socket.socket:
        self.unplug()
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._pumps = [asyncio.create_task(self._out(theirs)), asyncio.create_task(self._in(theirs))]
        return ours

    def unplug(self) -> None:
        for pump in self._pumps:
            pump.cancel()

    async def _out(self, sock: socket.socket) -> None:
        with sock:
            while True:
                await _ready(self._master, writing=False)
                await asyncio.get_running_loop().sock_sendall(sock, os.read(self._master, 1 << 16))

    async def _in(self, sock: socket.socket) -> None:
        while data := await asyncio.get_running_loop().sock_recv(sock, 1 << 16):
            while data:
                await _ready(self._master, writing=True)
                with contextlib.suppress(BlockingIOError):
                    data = data[os.write(self._master, data) :]

    async def close(self) -> None:
        self.unplug()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        os.close(self._master)
        os.close(self._slave)


async def _ready(fd: int, *, writing: bool) -> None:
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(fd, event.set)
    try:
        await event.wait()
    finally:
        remove(fd)


async def test_a_serial_ports_next_host_finds_the_agent_though_nobody_saw_the_first_one_go(
    booted: Booted, tmp_path: Path
) -> None:
    """A machine's snapshot may be taken before it has noticed that its host has left; what was on its way is skipped."""
    write_files(tmp_path / "code", {"main.py": RESUMED})
    port = Port()
    booted.start(f"serial:{port.path}", thaws=tmp_path / "thaws")
    instance = await booted.reach(await relayed(port.plug()))
    await instance.init()
    large = "x" * 300_000
    for _ in range(3):
        await instance.channel.freeze()
        wire = port.plug()
        instance.channel.close()
        instance = await booted.reach(await asyncio.wait_for(relayed(wire), 10))
        await instance.channel.thaw(ThawHead("instance-1", hashlib.sha256(TOKEN).hexdigest(), 1, "ab" * 64))
        await instance.init()
        assert (await instance.value(large))[2] == "[3]instance-1"
    await instance.channel.stop(1000)
    assert await booted.ended() == 0
    await port.close()


async def test_what_cannot_be_kept_in_a_snapshot_says_why(booted: Booted, port: int, tmp_path: Path) -> None:
    booted.start(f"tcp:{port}")
    instance = await booted.reach(await relayed(await connected(port)))
    await instance.init()
    with pytest.raises(FreezeRefused, match="not on a machine of its own"):
        await instance.channel.freeze()

    booted.close()
    write_files(tmp_path / "code", {"main.py": "def before_snapshot():\n    1 / 0\ndef handler():\n    return 1\n"})
    booted.start(f"tcp:{port}", thaws=tmp_path / "thaws")
    instance = await booted.reach(await relayed(await connected(port)))
    await instance.init()
    with pytest.raises(FreezeRefused, match="division by zero"):
        await instance.channel.freeze()
    await instance.channel.stop(1000)
    assert await booted.ended() == 0


async def test_another_language_behind_a_port(port: int, tmp_path: Path) -> None:
    """A worker that is a program of its own; its kind is in no snapshot."""
    write_files(
        tmp_path / "code", {"index.js": "exports.handler = async (event) => { console.log('js'); return event }"}
    )
    booted = Booted(tmp_path, "node")
    try:
        booted.start(f"tcp:{port}", thaws=tmp_path / "thaws")
        instance = await booted.reach(await relayed(await connected(port)))
        await instance.init()
        large = "x" * 1_000_000
        result = await instance.call(large)
        assert (result.output, result.stdout) == (f'"{large}"'.encode(), "js\n")
        with pytest.raises(FreezeRefused, match="workers of node cannot renew"):
            await instance.channel.freeze()
        assert await instance.value(1) == 1
    finally:
        booted.close()
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("environment", "text"),
    [
        ({"NOVA_AGENT_TOKEN_SHA256": ""}, "token_sha256 is missing"),
        ({"NOVA_AGENT_TOKEN_SHA256": "zz"}, "token_sha256 is not hexadecimal"),
        ({"NOVA_AGENT_TOKEN_SHA256": "00"}, "token_sha256 is not a SHA-256"),
        ({"NOVA_INSTANCE_ID": ""}, "instance_id is missing"),
        ({"NOVA_AGENT_LISTEN": "carrier-pigeon"}, "'carrier-pigeon' is none of"),
    ],
)
async def test_what_cannot_be_is_named(environment: dict[str, str], text: str, booted: Booted) -> None:
    process = booted.start("tcp:1", environment=environment)
    assert await booted.ended() == 64
    assert process.stderr is not None
    assert text in process.stderr.read().decode()
