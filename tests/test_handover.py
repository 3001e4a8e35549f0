"""Listening sockets from process to process: real processes under load, and everybody who must not get them."""

import asyncio
import os
import signal
import socket
import stat
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nova import handover
from nova.errors import NovaError
from nova.handover import Offer, offer_path, take_over
from nova.listen import Address, adopted, listening_socket
from tests.http.sockets import RawClient

pytestmark = pytest.mark.anyio


@dataclass
class Server:
    process: Process
    pid: int
    port: int

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            return await self.process.wait()


@asynccontextmanager
async def _processes() -> AsyncIterator[list[Process]]:
    """Processes that are gone in the end, whatever happened."""
    started: list[Process] = []
    try:
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


async def _start(path: Path, started: list[Process], environment: Mapping[str, str] | None = None) -> Server:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "tests.http.handing", str(path)),
        stdout=PIPE,
        env={**os.environ, **(environment or {})},
    )
    started.append(process)
    return await _ready(process)


async def _ready(process: Process) -> Server:
    assert process.stdout is not None
    async with asyncio.timeout(20):
        words = (await process.stdout.readline()).split()
    assert words[:1] == [b"ready"], words
    return Server(process, int(words[1]), int(words[2]))


@dataclass
class Load:
    """Clients on kept-alive connections and on new ones; every request must be answered."""

    port: int
    answered: dict[int, int] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)
    stopping: bool = False

    async def kept_alive(self) -> None:
        while not self.stopping:
            async with RawClient(self.port) as client:
                while not self.stopping and await self._one(client):
                    await asyncio.sleep(0.001)  # leave the processor to those who start

    async def fresh(self) -> None:
        while not self.stopping:
            async with RawClient(self.port) as client:
                await self._one(client, "Connection: close")

    async def slow(self) -> None:
        while not self.stopping:
            async with RawClient(self.port) as client:
                await self._one(client, path="/slow")

    async def _one(self, client: RawClient, *headers: str, path: str = "/") -> bool:
        """One request; True when the connection may be used again."""
        try:
            reply = await client.request("GET", path, b"", *headers)
        except (OSError, EOFError, TimeoutError) as exc:
            self.failed.append(repr(exc))
            return False
        pid = int(reply.body)
        self.answered[pid] = self.answered.get(pid, 0) + 1
        return reply.headers.get("connection") != "close"

    async def answered_by(self, pid: int, count: int = 50) -> None:
        async with asyncio.timeout(20):
            while self.answered.get(pid, 0) < count:
                await asyncio.sleep(0.01)


async def test_no_request_fails_over_three_restarts(tmp_path: Path) -> None:
    """Each successor takes the sockets of the one before, under load; who hands over answers what it has, and ends."""
    path = offer_path(tmp_path, "zenith", 9000)
    async with _processes() as started:
        server = await _start(path, started)
        load = Load(server.port)
        clients = [load.kept_alive() for _ in range(6)] + [load.fresh() for _ in range(2)] + [load.slow()]
        running = [asyncio.create_task(client) for client in clients]
        for _ in range(3):
            await load.answered_by(server.pid)
            successor = await _start(path, started)
            assert successor.port == server.port
            assert await server.ended() == 0
            server = successor
        await load.answered_by(server.pid)
        load.stopping = True
        await asyncio.gather(*running)
        assert load.failed == []
        assert len(load.answered) == 4
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_successor_that_dies_before_it_is_ready_changes_nothing(tmp_path: Path) -> None:
    path = offer_path(tmp_path, "nova", 9001)
    async with _processes() as started:
        server = await _start(path, started)
        failing = await asyncio.create_subprocess_exec(
            sys.executable, *("-m", "tests.http.handing", str(path)), env={**os.environ, "FAIL_BEFORE_READY": "1"}
        )
        assert await failing.wait() == 3
        async with RawClient(server.port) as client:
            assert int((await client.request("GET", "/")).body) == server.pid
        successor = await _start(path, started)
        assert await server.ended() == 0
        async with RawClient(successor.port) as client:
            assert int((await client.request("GET", "/")).body) == successor.pid


async def test_a_killed_predecessor_leaves_an_offer_that_nobody_answers(tmp_path: Path) -> None:
    path = offer_path(tmp_path, "nova", 9001)
    async with _processes() as started:
        server = await _start(path, started)
        server.process.kill()
        await server.ended()
        assert path.exists()
        assert take_over(path) is None
        await _start(path, started)


async def test_an_ordinary_end_withdraws_the_offer(tmp_path: Path) -> None:
    path = offer_path(tmp_path, "nova", 9001)
    async with _processes() as started:
        server = await _start(path, started)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended() == 0
        assert not path.exists()
        assert take_over(path) is None


async def test_the_service_managers_sockets_outlive_a_restart(tmp_path: Path) -> None:
    """sd_listen_fds(3): the socket is there before the process and after it."""
    with listening_socket(Address("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        async with _processes() as started:
            for _ in range(2):
                command = f"LISTEN_PID=$$ LISTEN_FDS=1 exec {sys.executable} -m tests.http.handing {tmp_path}/o 3<&0"
                process = await asyncio.create_subprocess_exec("sh", "-c", command, stdin=sock, stdout=PIPE)
                started.append(process)
                async with RawClient(port) as client:  # connected before anybody accepts
                    server = await _ready(process)
                    assert server.port == port
                    assert int((await client.request("GET", "/")).body) == server.pid
                process.terminate()
                assert await server.ended() == 0


async def test_sockets_go_to_the_same_user_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever else reaches the offer gets nothing; the process that offers goes on."""
    taken = asyncio.Event()
    path = offer_path(tmp_path, "x", 1)
    with listening_socket(Address("127.0.0.1", 0)) as sock:
        offer = Offer(path, [sock], taken.set)
        await offer.start()
        for successor_trusts, code in ((False, "forbidden"), (True, "invalid_state")):

            def trusts(_: object, wanted: bool = successor_trusts) -> bool:
                return (threading.current_thread() is not threading.main_thread()) is wanted

            monkeypatch.setattr(handover, "_trusted", trusts)
            with pytest.raises(NovaError, match=code):
                await asyncio.to_thread(take_over, path)
        monkeypatch.undo()
        assert not taken.is_set()
        inherited = await asyncio.to_thread(take_over, path)
        assert inherited is not None
        assert [one.getsockname() for one in inherited.sockets] == [sock.getsockname()]
        assert not any(one.get_inheritable() for one in inherited.sockets)
        inherited.ready()
        async with asyncio.timeout(20):
            await taken.wait()
        for one in inherited.sockets:
            one.close()
        await offer.close()


async def test_a_long_path_is_no_obstacle(tmp_path: Path) -> None:
    path = offer_path(tmp_path / ("d" * 120), "x", 1)
    with listening_socket(Address("127.0.0.1", 0)) as sock:
        offer = Offer(path, [sock], lambda: None)
        await offer.start()
        inherited = await asyncio.to_thread(take_over, path)
        assert inherited is not None
        inherited.close()
        for one in inherited.sockets:
            one.close()
        await offer.close()


def test_only_listening_tcp_sockets_are_adopted(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file, pytest.raises(NovaError, match="no socket"):
        adopted(os.dup(file.fileno()))
    with socket.socket() as idle, pytest.raises(NovaError, match="listens"):
        adopted(os.dup(idle.fileno()))
