"""Listening addresses: how they are written, which are refused, and the sockets they become."""

import ipaddress
import os
import socket
from dataclasses import dataclass

from nova.errors import NovaError, invalid

_BACKLOG = 2048
_FIRST_FD = 3
"""SD_LISTEN_FDS_START"""
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


@dataclass(frozen=True, slots=True)
class Address:
    """``host`` empty means every interface. ``warning`` is for the start-up message."""

    host: str
    port: int
    warning: str | None = None

    @property
    def shown(self) -> str:
        """Host and port as a URL has them; a wildcard is shown as loopback."""
        host = self.host if self.host not in ("", "0.0.0.0", "::") else "127.0.0.1"
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parse(text: str, *, open_access: bool, insecure: bool = False) -> Address:
    """``host:port``, ``[v6]:port`` or ``:port``.

    With ``open_access`` (authentication is off) an address without a host means loopback, with a warning, and any other
    host than loopback is refused unless ``insecure``.
    """
    host, colon, port_text = text.strip().rpartition(":")
    if not colon or not port_text.isascii() or not port_text.isdigit() or int(port_text) > 65535:
        raise invalid("daemon.http_addr", f"{text!r} is not an address such as 127.0.0.1:9000 or :9000")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise invalid("daemon.http_addr", f"write the IPv6 address in brackets: [{host}]:{port_text}")
    port = int(port_text)
    if open_access and not insecure:
        if not host:
            return Address("127.0.0.1", port, "authentication is off, so this server listens on loopback only")
        if not is_loopback(host):
            raise NovaError(
                "validation_failed",
                f"authentication is off (auth.enabled: false) and {host} can be reached by others:"
                " turn authentication on, listen on 127.0.0.1, or say --insecure",
            )
    return Address(host, port)


def listening_socket(address: Address) -> socket.socket:
    """A bound, listening, non-blocking socket. Raises OSError with the address in its message."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise OSError(exc.errno, f"cannot listen on {address.host or '*'}:{address.port}: {exc.strerror}") from None
    return sock


def activated() -> list[socket.socket]:
    """Listening sockets that the service manager opened for this process (sd_listen_fds(3)); none when it did not.

    They belong to the caller, and nothing that this process starts inherits them or hears of them. Raises ``validation_failed``
    for one that does not listen for streams.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isascii() or not count.isdigit():
        return []
    return [adopted(fd) for fd in range(_FIRST_FD, _FIRST_FD + int(count))]


def adopted(fd: int) -> socket.socket:
    """A listening socket that another process opened. Raises ``validation_failed`` for anything else."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as exc:
        raise NovaError("validation_failed", f"descriptor {fd} is no socket: {exc.strerror}") from None
    listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or not listens or sock.family not in _FAMILIES:
        sock.close()
        raise NovaError("validation_failed", f"descriptor {fd} is no socket that listens for TCP connections")
    sock.set_inheritable(False)
    sock.setblocking(False)
    return sock
