"""One command in a place of its own: builds."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from nova.execution.backends.base import CommandResult, CommandSpec
from nova.execution.backends.sandbox.cells import Cells, Ended, limits_of
from nova.execution.backends.sandbox.client import LauncherClient, LauncherLost, LauncherRefused
from nova.execution.backends.sandbox.protocol import Message
from nova.execution.backends.sandbox.rootfs import interpreter_paths, plan_root
from nova.ids import new_id

_READ = 1 << 16


async def run(launcher: LauncherClient, cells: Cells, command: CommandSpec, uid: int) -> CommandResult:
    """Run ``command`` to its end, or to its time limit, or until the caller is cancelled; nothing of it lives on.

    Raises LauncherRefused when the place could not be made, LauncherLost when it was lost.
    """
    name = new_id()
    for bind in command.binds:
        if not bind.read_only and os.geteuid() == 0:
            os.chown(bind.source, uid, uid)
    plan = plan_root(name, interpreter_paths(), resolvers=None, binds=command.binds)
    ended = cells.expect(name)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(writer, True)
    request = launcher.request(
        "run",
        fds=[writer],
        instance=name,
        uid=uid,
        plan=plan.as_dict(),
        tmp_bytes=command.limits.tmp_mb << 20,
        argv=list(command.argv),
        env=dict(command.env),
        cwd=command.cwd,
        limits=limits_of(command.limits),
    )
    asked = asyncio.create_task(request, name=f"sandbox.run.{name}")
    asked.add_done_callback(lambda _asked: os.close(writer))
    try:
        reply = await asyncio.shield(asked)
    except asyncio.CancelledError:
        os.close(reader)
        await asyncio.shield(asyncio.create_task(_undo(asked, ended), name=f"sandbox.undo.{name}"))
        raise
    except BaseException:
        os.close(reader)
        raise
    pidfd = reply.fds[0]
    output = _Output(reader, command.output)
    try:
        how, timed_out = await _wait(ended, pidfd, command.timeout_s)
    finally:
        output.finish()
        os.close(pidfd)
    return _result(how, timed_out)


async def _undo(asked: "asyncio.Task[Message]", ended: "asyncio.Future[Ended]") -> None:
    """Nobody wants the command any more that the launcher is about to begin: end it."""
    with contextlib.suppress(LauncherLost, LauncherRefused):
        reply = await asked
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(reply.fds[0], signal.SIGKILL)
        reply.close()
        await ended


async def _wait(ended: "asyncio.Future[Ended]", pidfd: int, timeout_s: float) -> tuple[Ended, bool]:
    try:
        async with asyncio.timeout(timeout_s):
            return await asyncio.shield(ended), False
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        return await asyncio.shield(ended), True
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await asyncio.shield(ended)
        raise


def _result(how: Ended, timed_out: bool) -> CommandResult:
    if how.lost:
        raise LauncherLost
    if how.failure:
        raise LauncherRefused(how.failure)
    words = dict(line.split(" ", 1) for line in how.status.splitlines() if " " in line)
    if "exit" in words:
        return CommandResult(int(words["exit"]), out_of_memory=how.out_of_memory)
    ended_by = int(words["signal"]) if "signal" in words else int(signal.SIGKILL)
    return CommandResult(None, signal=ended_by, timed_out=timed_out, out_of_memory=how.out_of_memory)


class _Output:
    """Hands what arrives in a pipe to a callback, in order, as it comes."""

    def __init__(self, fd: int, callback: Callable[[bytes], None]) -> None:
        self._fd = fd
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        if data:
            self._callback(data)
        else:
            self._loop.remove_reader(self._fd)

    def finish(self) -> None:
        """Every writer is dead: take what is left."""
        self._loop.remove_reader(self._fd)
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._fd, _READ):
                self._callback(data)
        os.close(self._fd)
