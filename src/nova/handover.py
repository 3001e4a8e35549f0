"""Listening sockets, handed from a running process to its successor, so that no connection is ever refused in between.

The running process offers its sockets on a unix socket (mode 0600, same user only). A successor takes them, gets ready, and says
so; only then does the predecessor stop accepting. A successor that dies before leaves everything as it was.
"""

import asyncio
import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import structlog

from nova.errors import NovaError
from nova.listen import adopted
from nova.service import Background

log = structlog.get_logger(__name__)
_HERE = b"nova-handover 1"
_READY = b"ready"
_MOST_SOCKETS = 16
_ANSWER_S = 5.0
"""How long a predecessor may take to answer; it may be busy, or be handing over to somebody else."""
_START_S = 120.0
"""How long a successor may take to get ready."""
_PEER = struct.Struct("3i")


def offer_path(data_dir: Path, plane: str, port: int) -> Path:
    """Where a plane that listens on this port offers its sockets."""
    return data_dir / "run" / f"{plane}-{port}.handover"


class Inheritance:
    """What a predecessor gave. ``sockets`` belong to the caller; :meth:`ready` or :meth:`close` ends it."""

    def __init__(self, sockets: list[socket.socket], connection: socket.socket) -> None:
        self.sockets = sockets
        self._connection = connection

    def ready(self) -> None:
        """This process serves: the predecessor may go. One that is gone already is no error."""
        try:
            self._connection.sendall(_READY)
        except OSError as exc:
            log.info("the predecessor is gone", error=str(exc))
        self.close()

    def close(self) -> None:
        """Without :meth:`ready` before: the predecessor goes on."""
        self._connection.close()


def take_over(path: Path) -> Inheritance | None:
    """The sockets of the process that offers them at ``path``; None when there is none. Blocks for up to 5 s.

    Raises ``forbidden`` when another user offers them, ``invalid_state`` when whoever is there does not answer.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_ANSWER_S)
    try:
        with _short(path) as name:
            connection.connect(name)
        if not _trusted(connection):
            raise NovaError("forbidden", f"{path} belongs to another user")
        said, descriptors, _, _ = socket.recv_fds(connection, len(_HERE), _MOST_SOCKETS)
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as exc:
        connection.close()
        raise NovaError("invalid_state", f"the process that serves here does not hand over: {exc}") from None
    except NovaError:
        connection.close()
        raise
    try:
        sockets = [adopted(fd) for fd in descriptors]
    except NovaError:
        connection.close()
        raise
    if said != _HERE or not sockets:
        connection.close()
        raise NovaError("invalid_state", "the process that serves here is going already")
    return Inheritance(sockets, connection)


class Offer:
    """Offers ``sockets`` at ``path`` from :meth:`start` on, to one successor at a time.

    ``on_taken`` is called once, when a successor serves: then this process should stop accepting, drain and end. An older
    offer at the same path is replaced in one step, so a successor can offer before its predecessor is gone.
    """

    def __init__(self, path: Path, sockets: Sequence[socket.socket], on_taken: Callable[[], object]) -> None:
        self._path = path
        self._descriptors = [sock.fileno() for sock in sockets]
        self._on_taken = on_taken
        self._background = Background("handover")
        self._listener: socket.socket | None = None
        self._inode = 0
        self.taken = False

    async def start(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        listener = self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        fresh.unlink(missing_ok=True)
        with _short(fresh) as name:
            listener.bind(name)
        fresh.chmod(0o600)  # before it listens: until then nobody can connect
        listener.listen(4)
        listener.setblocking(False)
        self._inode = fresh.stat().st_ino
        fresh.rename(self._path)
        self._background.spawn("offer", self._offer(listener))

    async def close(self) -> None:
        await self._background.close()
        if self._listener is None:
            return
        self._listener.close()
        try:
            if not self.taken and self._path.stat().st_ino == self._inode:
                self._path.unlink()
        except FileNotFoundError:
            pass  # somebody tidied up

    async def _offer(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while not self.taken:
            connection, _ = await loop.sock_accept(listener)
            with connection:
                try:
                    self.taken = await self._hand_over(connection)
                except (OSError, TimeoutError) as exc:
                    log.warning("handover broke off; this process goes on", error=repr(exc))
        log.info("a successor serves")
        self._on_taken()

    async def _hand_over(self, connection: socket.socket) -> bool:
        if not _trusted(connection):
            log.warning("handover asked for by another user")
            return False
        socket.send_fds(connection, [_HERE], self._descriptors)
        async with asyncio.timeout(_START_S):
            said = await asyncio.get_running_loop().sock_recv(connection, len(_READY))
        if said != _READY:
            log.warning("the successor did not get ready; this process goes on")
        return said == _READY


def _trusted(connection: socket.socket) -> bool:
    """Is the process at the other end our own user's, or root's?"""
    _, uid, _ = _PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return uid in (0, os.geteuid())


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """The same file under a name that fits into a socket address, whatever the directory is called."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
