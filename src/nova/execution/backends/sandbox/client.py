"""The daemon's side of the launcher: starts the process, sends requests, awaits replies, hears of ended instances."""

import asyncio
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

import nova
from nova.execution.backends.sandbox.protocol import Message, message_pair, receive, send

log = structlog.get_logger(__name__)

SOURCE_ROOT = Path(nova.__file__).parent.parent
START_TIMEOUT_S = 20.0
_ENVIRONMENT = {"LANG": "C.UTF-8", "MALLOC_ARENA_MAX": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


class LauncherLost(Exception):
    """The launcher is gone, and with it every instance it made."""

    def __init__(self) -> None:
        super().__init__("the launcher is not running")


class LauncherRefused(Exception):
    """The launcher could not do what was asked; the message is the operating system's."""


def base_interpreter() -> str:
    """The real Python behind a virtual environment or a shim."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


class LauncherClient:
    """One launcher process. ``on_event`` hears what it tells unasked, ``on_lost`` is called once when it is gone."""

    def __init__(self, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]) -> None:
        self._on_event = on_event
        self._on_lost = on_lost
        self._sock: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._stderr: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._sequence = 0
        self._up = False
        self._started: asyncio.Future[dict[str, Any]] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    async def start(self, config: dict[str, Any]) -> dict[str, Any]:
        """Start the process and configure it; returns what it reports. Raises LauncherRefused with its reason."""
        loop = asyncio.get_running_loop()
        ours, theirs = message_pair()
        with theirs:
            self._sock = ours
            self._process = await asyncio.create_subprocess_exec(
                base_interpreter(),
                "-I",
                "-S",
                str(Path(__file__).with_name("launcher.py")),
                str(SOURCE_ROOT),
                str(theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        self._stderr = asyncio.create_task(self._log_stderr(self._process), name="sandbox.launcher-stderr")
        self._started = loop.create_future()
        ours.setblocking(False)
        loop.add_reader(ours.fileno(), self._read)
        send(ours, config)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                report = await self._started
        except TimeoutError:
            await self.close()
            raise LauncherRefused("the launcher did not start in time") from None
        except LauncherLost:
            await self.close()
            raise LauncherRefused("the launcher ended while it started; its last words are in the log") from None
        if report["event"] == "failed":
            await self.close()
            raise LauncherRefused(report["error"])
        if self._hung_up():
            await self.close()
            raise LauncherRefused("the launcher ended right after its start; its last words are in the log")
        self._up = True
        return report

    async def request(self, op: str, *, fds: Sequence[int] = (), **body: Any) -> Message:
        """The reply; its descriptors are the caller's. Raises LauncherLost and LauncherRefused."""
        sock = self._sock
        if sock is None or not self._up:
            raise LauncherLost
        loop = asyncio.get_running_loop()
        self._sequence += 1
        sequence = self._sequence
        future: asyncio.Future[Message] = loop.create_future()
        self._waiting[sequence] = future
        try:
            while True:
                try:
                    send(sock, {"seq": sequence, "op": op, **body}, list(fds))
                    break
                except BlockingIOError:
                    await _writable(sock)
                except OSError as error:
                    raise LauncherLost from error
            reply = await asyncio.shield(future)
        except asyncio.CancelledError:
            # The launcher will answer all the same; what comes with the answer must not leak.
            future.add_done_callback(_discard)
            raise
        finally:
            if future.done():
                self._waiting.pop(sequence, None)
        if "error" in reply.body:
            reply.close()
            raise LauncherRefused(reply.body["error"])
        return reply

    async def close(self) -> None:
        """Hang up: the launcher ends every instance, cleans up and exits; waits for that."""
        self._hang_up()
        if self._process is not None:
            await self._process.wait()
        if self._stderr is not None:
            await self._stderr

    # -- reading -------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        while self._sock is not None:
            try:
                message = receive(self._sock)
            except BlockingIOError:
                return
            except OSError:
                message = None
            if message is None:
                was_up = self._up
                self._hang_up()
                if was_up:
                    self._on_lost()
                return
            self._deliver(message)

    def _deliver(self, message: Message) -> None:
        if "seq" in message.body:
            future = self._waiting.pop(message.body["seq"], None)
            if future is not None and not future.done():
                future.set_result(message)
            else:
                message.close()
        elif self._started is not None and not self._started.done():
            self._started.set_result(message.body)
        else:
            self._on_event(message.body)

    def _hung_up(self) -> bool:
        return self._sock is None

    def _hang_up(self) -> None:
        self._up = False
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
            self._sock = None
        _fail(self._started)
        for future in self._waiting.values():
            _fail(future)
        self._waiting.clear()

    @staticmethod
    async def _log_stderr(process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            log.warning("launcher", line=line.decode(errors="replace").rstrip())


def _fail(future: "asyncio.Future[Any] | None") -> None:
    if future is not None and not future.done():
        future.set_exception(LauncherLost())
        future.exception()  # retrieved: nobody may be waiting any more


def _discard(future: "asyncio.Future[Message]") -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()


async def _writable(sock: socket.socket) -> None:
    """Wait until the launcher has read some of what lies in its socket, or is gone."""
    loop = asyncio.get_running_loop()
    fd = sock.fileno()
    if fd < 0:
        raise LauncherLost
    ready = asyncio.Event()
    loop.add_writer(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(fd)
