"""One QEMU process, from its start to its end. It knows the machine; what runs inside is the backend's matter."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

from nova.errors import NovaError
from nova.execution.backends.qemu.console import Console
from nova.execution.backends.qemu.wiring import Wiring
from nova.execution.backends.sandbox.cgroups import Group

START_S: Final = 10.0
"""From the program's start to its monitor."""
SAVE_S: Final = 60.0
_ENTER: Final = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 126; shift; done; shift; exec "$@"'
"""Puts itself into control groups, then becomes what follows: not a byte of QEMU's is charged to anybody else."""
_UNHURRIED: Final = 1 << 40
"""Bytes per second: a file need not be spared as a network is."""


class Machine:
    """A process whose monitor answers. :meth:`end` frees what it has; the control group belongs to the caller."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self.console = Console(process.stdout)
        self.ended = asyncio.ensure_future(process.wait())
        self._process = process
        self._pidfd = _pidfd(process.pid)
        self._monitor = QMPClient(name)
        self._reading = asyncio.ensure_future(self.console.run())

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def launch(cls, name: str, argv: Sequence[str], wiring: Wiring, group: Group) -> Self:
        """Start ``argv`` in its control group with what it is wired with. Raises NovaError ``dependency_unavailable``; then
        it is gone."""
        joined = group.join_files()
        try:
            enter = ["/bin/sh", "-c", _ENTER, "qemu", *(f"/proc/self/fd/{fd}" for fd in joined), "--"]
            process = await asyncio.create_subprocess_exec(
                *(enter if joined else []),
                *argv,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd="/",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                pass_fds=[*joined, *wiring.given],
                start_new_session=True,
            )
        except OSError as error:
            raise NovaError("dependency_unavailable", f"QEMU does not start: {error}") from error
        finally:
            for fd in joined:
                os.close(fd)
        machine = cls(name, process)
        wiring.started()
        try:
            await machine._connect(wiring.take_monitor())
        except BaseException:
            await machine.end()
            raise
        return machine

    async def _connect(self, monitor: socket.socket) -> None:
        try:
            async with asyncio.timeout(START_S):
                await self._monitor.connect(monitor)
        except (QMPError, OSError, TimeoutError) as error:
            monitor.close()
            self.kill()
            await asyncio.wait({self._reading}, timeout=1.0)
            raise NovaError(
                "dependency_unavailable", f"QEMU does not start: {self.console.last_words() or error}"
            ) from error

    async def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> object:
        """One command of QEMU's monitor. Raises NovaError ``dependency_unavailable``."""
        try:
            return await self._monitor.execute(command, dict(arguments or {}))
        except ExecuteError as error:
            raise NovaError("dependency_unavailable", f"QEMU refused {command}: {error}") from error
        except QMPError as error:
            raise NovaError("dependency_unavailable", f"QEMU is gone: {error}") from error

    async def save(self, descriptor: int) -> None:
        """Stop the machine and write all of it to ``descriptor``, which the process has had from its start. Raises NovaError
        ``dependency_unavailable``."""
        await self.ask("stop")
        await self.ask("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
        await self.ask("migrate-set-parameters", {"max-bandwidth": _UNHURRIED})
        with self._monitor.listener("MIGRATION") as events:
            await self.ask("migrate", {"uri": f"fd:{descriptor}"})
            try:
                async with asyncio.timeout(SAVE_S):
                    status = await self._settled(events)
            except TimeoutError:
                raise NovaError("dependency_unavailable", f"QEMU did not save a machine within {SAVE_S:g} s") from None
        if status != "completed":
            raise NovaError("dependency_unavailable", "QEMU could not save a machine")

    async def _settled(self, events: EventListener) -> str:
        while True:
            getting = asyncio.ensure_future(events.get())
            try:
                await asyncio.wait({getting, self.ended}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    return "ended"
                data = getting.result().get("data")
            finally:
                getting.cancel()
            status = data.get("status") if isinstance(data, dict) else None
            if status in ("completed", "failed", "cancelled"):
                return str(status)

    def kill(self) -> None:
        """SIGKILL; harmless when it is dead."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait until it is dead. Idempotent."""
        self.kill()
        await asyncio.shield(self.ended)
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        # whatever the monitor has to say of its process's end is no news
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._monitor.disconnect()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return -1  # it has ended already
