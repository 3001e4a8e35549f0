"""Where the agent of one container finds the host: a unix socket in a folder that only this container sees."""

import asyncio
import contextlib
import os
import shutil
import socket
import struct
from pathlib import Path
from typing import Final

NAME: Final = "host.sock"


class Doorway:
    """Listens in ``folder``, which it makes, from the moment it exists; lets one connection in. The host listens and the
    agent connects, so that nobody has to look again and again whether the other is there."""

    def __init__(self, folder: Path) -> None:
        """Raises OSError; then nothing is left."""
        self.folder = folder
        folder.mkdir(mode=0o711)
        try:
            self._listener = self._listen()
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = os.open(self.folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # The path of a data directory may be longer than the 107 bytes that an address holds.
            listener.bind(f"/proc/self/fd/{directory}/{NAME}")
            (self.folder / NAME).chmod(0o666)
            listener.listen(1)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
        finally:
            os.close(directory)
        return listener

    async def enter(self) -> socket.socket:
        """The agent's connection. Afterwards nobody else gets in."""
        connection, _ = await asyncio.get_running_loop().sock_accept(self._listener)
        self.shut()
        return connection

    def shut(self) -> None:
        self._listener.close()
        with contextlib.suppress(OSError):
            (self.folder / NAME).unlink(missing_ok=True)

    def remove(self) -> None:
        self.shut()
        shutil.rmtree(self.folder, ignore_errors=True)


def peer(connection: socket.socket) -> int:
    """The pid of the process that connected, as this process sees it; 0: it is out of sight (another machine's kernel)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid
