"""One QEMU process, from its start to its end. It knows the machine; what runs inside is the backend's matter."""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from nova.errors import NovaError
from nova.execution.backends.qemu.console import Console
from nova.execution.backends.qemu.wiring import Wiring
from nova.execution.backends.sandbox.cgroups import Group
from nova.execution.backends.vm.process import MachineProcess

logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # what goes wrong is raised too, and said in our words

START_S: Final = 10.0
"""From the program's start to its monitor."""
SAVE_S: Final = 60.0
LEAVE_S: Final = 5.0
SETTLE_S: Final = 0.5
_ENTER: Final = 'while [ "$1" != -- ]; do echo $$ > "$1" || exit 126; shift; done; shift; exec "$@"'
"""Puts itself into control groups, then becomes what follows: not a byte of QEMU's is charged to anybody else."""
_STATE: Final = "state"
_UNHURRIED: Final = 1 << 40
"""Bytes per second: a file need not be spared as a network is."""


class Machine(MachineProcess):
    """A process whose monitor answers. :meth:`end` frees what it has; the control group belongs to the caller."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, line: socket.socket) -> None:
        """``line``: one more descriptor of the monitor's socket, which belongs to the machine."""
        assert process.stdout is not None
        self.console = Console(process.stdout)
        self._line = line
        self._monitor = QMPClient(name)
        super().__init__(process, self.console.run())

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
        machine = cls(name, process, wiring.monitor.dup())
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

    async def agent_left(self) -> None:
        """Until the guest has seen that nobody is at the other end of its agent's port any more. Raises NovaError."""
        retrying = AsyncRetrying(
            retry=retry_if_result(lambda gone: not gone),
            wait=wait_fixed(0.01),
            stop=stop_after_delay(LEAVE_S),
            retry_error_callback=lambda _: False,
        )
        left: bool = await retrying(self._disconnected)
        if not left:
            raise NovaError("dependency_unavailable", "the connection to a guest's agent did not end")
        # the guest has been told; nothing says that its agent has read it
        await asyncio.sleep(SETTLE_S)

    async def _disconnected(self) -> bool:
        devices = await self.ask("query-chardev")
        assert isinstance(devices, list)
        return any(device["label"] == "agent" and "disconnected" in device["filename"] for device in devices)

    async def save(self, state: Path) -> None:
        """Write all of the machine to a new file, with which it stops. Raises OSError, NovaError ``dependency_unavailable``.

        It is not stopped beforehand: what was stopped when it was saved does not run when it goes on.
        """
        await self.ask("migrate-set-capabilities", {"capabilities": [{"capability": "events", "state": True}]})
        await self.ask("migrate-set-parameters", {"max-bandwidth": _UNHURRIED})
        with self._monitor.listener("MIGRATION") as events:
            await self._lend(state)
            await self.ask("migrate", {"uri": f"fd:{_STATE}"})
            try:
                async with asyncio.timeout(SAVE_S):
                    status = await self._settled(events)
            except TimeoutError:
                raise NovaError("dependency_unavailable", f"QEMU did not save a machine within {SAVE_S:g} s") from None
        if status != "completed":
            raise NovaError("dependency_unavailable", "QEMU could not save a machine")

    async def _lend(self, state: Path) -> None:
        """Give the process a new file to write to, by the name :data:`_STATE`."""
        descriptor = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # beside the library: it reaches for a socket that not every event loop shows; a blank is nothing in JSON
            socket.send_fds(self._line, [b" "], [descriptor])
            await self.ask("getfd", {"fdname": _STATE})
        finally:
            os.close(descriptor)

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

    async def end(self) -> None:
        """Kill it and wait until it is dead. Idempotent."""
        await super().end()
        # whatever the monitor has to say of its process's end is no news
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._monitor.disconnect()
        self._line.close()
