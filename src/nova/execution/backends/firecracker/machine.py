"""One Firecracker process, from its jail to its end. It knows the machine; what runs inside is the backend's matter."""

import asyncio
import os
from typing import Final, Self

from nova.errors import NovaError
from nova.execution.backends.firecracker.api import FirecrackerApi
from nova.execution.backends.firecracker.console import Console
from nova.execution.backends.firecracker.jail import API_SOCKET, Jail
from nova.execution.backends.sandbox.cgroups import Group
from nova.execution.backends.vm.process import MachineProcess

START_S: Final = 5.0
"""From the jailer's start to the API."""


class Machine(MachineProcess):
    """A process whose API answers. :meth:`end` frees what it has; jail and control group belong to the caller."""

    def __init__(self, jail: Jail, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        self.jail = jail
        self.api = FirecrackerApi(jail.root / API_SOCKET)
        self.console = Console(process.stdout)
        super().__init__(process, self.console.run())

    @classmethod
    async def launch(cls, jail: Jail, namespace: str, group: Group) -> Self:
        """Start the process in its jail and control group. Raises NovaError ``dependency_unavailable``; then it is gone."""
        try:
            process = await asyncio.create_subprocess_exec(
                *jail.argv(namespace),
                env={},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise NovaError("dependency_unavailable", f"the jailer does not start: {error}") from error
        machine = cls(jail, process)
        try:
            # before there is a machine: its memory is all charged to the group
            _join(group, process.pid)
            async with asyncio.timeout(START_S):
                listening = await machine.console.listening()
            if not listening:
                raise NovaError("dependency_unavailable", f"firecracker ended: {machine.console.last_words()}")
        except TimeoutError:
            await machine.end()
            text = f"firecracker did not offer its API within {START_S:g} s: {machine.console.last_words()}"
            raise NovaError("dependency_unavailable", text) from None
        except BaseException:
            await machine.end()
            raise
        return machine

    async def end(self) -> None:
        """Kill it and wait until it is dead. Idempotent."""
        await super().end()
        await self.api.close()


def _join(group: Group, pid: int) -> None:
    descriptors = group.join_files()
    try:
        for descriptor in descriptors:
            os.write(descriptor, str(pid).encode())
    except ProcessLookupError:
        pass  # it has ended; its console says why
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
