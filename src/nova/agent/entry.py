"""How an agent outside the sandbox learns what it is: its image says the runtime, who starts it says the instance."""

import contextlib
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from nova.agent.config import AgentConfig, WorkerLaunch

DESCRIPTION: Final = "/opt/nova/agent.json"
"""In each image: ``runtime``, ``version`` and ``worker`` (:meth:`WorkerLaunch.as_dict`, with paths as inside)."""
TERM_GRACE_MS: Final = 5000
"""What workers have to end in when the first process gets SIGTERM."""
_BACKLOG: Final = 16
_PORTS: Final = "/sys/class/virtio-ports"


class BadEntry(Exception):
    """What was said about the instance cannot be; the text names what."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What the starter says. ``listen``: see :func:`listen_at`."""

    token_sha256: bytes
    instance_id: str
    listen: str

    @classmethod
    def of(cls, words: Mapping[str, str]) -> Self:
        """From ``token_sha256``, ``instance_id`` and ``listen``. Raises BadEntry."""
        try:
            digest = bytes.fromhex(words["token_sha256"])
            entry = cls(digest, words["instance_id"], words["listen"])
        except KeyError as missing:
            raise BadEntry(f"{missing.args[0]} is missing") from None
        except ValueError:
            raise BadEntry("token_sha256 is not hexadecimal") from None
        if len(digest) != 32:
            raise BadEntry("token_sha256 is not a SHA-256")
        return entry

    def config(self, description: Mapping[str, Any], *, relayed: bool, reload_dir: str | None) -> AgentConfig:
        return AgentConfig(
            token_sha256=self.token_sha256,
            instance_id=self.instance_id,
            runtime=description["runtime"],
            worker=WorkerLaunch.of(description["worker"]),
            reload_dir=reload_dir,
            relayed=relayed,
            term_grace_ms=TERM_GRACE_MS,
        )


def describe(path: str = DESCRIPTION) -> dict[str, Any]:
    """What the image says about its runtime. Raises BadEntry."""
    try:
        with open(path) as file:
            description: dict[str, Any] = json.load(file)
            WorkerLaunch.of(description["worker"])
            return description
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadEntry(f"{path}: {error!r}") from None


def listen_at(place: str) -> socket.socket:
    """A listening socket: ``tcp:PORT`` on every address, ``vsock:PORT`` or ``unix:PATH``. Raises BadEntry, OSError."""
    kind, _, where = place.partition(":")
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX)
        address: Any = where
    elif kind in ("tcp", "vsock") and where.isdigit():
        family = socket.AF_INET if kind == "tcp" else socket.AF_VSOCK
        listener = socket.socket(family)
        address = ("0.0.0.0" if kind == "tcp" else socket.VMADDR_CID_ANY, int(where))
    else:
        raise BadEntry(f"listen: {place!r} is none of unix:PATH, connect:PATH, tcp:PORT, vsock:PORT, serial:PATH")
    try:
        if kind == "tcp":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def connect_to(path: str) -> socket.socket:
    """Reach the host that waits at a socket. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


def open_port(path: str) -> int:
    """The descriptor of a virtio serial port by its path, or by the last part of it, which is the port's name: without
    udev there are no links. Raises OSError."""
    flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    for port in os.listdir(_PORTS) if os.path.isdir(_PORTS) else ():
        with open(f"{_PORTS}/{port}/name") as name:
            if name.read().strip() == os.path.basename(path):
                return os.open(f"/dev/{port}", flags)
    raise FileNotFoundError(2, "no such serial port", path)
