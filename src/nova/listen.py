"""Listening addresses: how they are written, which are refused, and the sockets they become."""

import ipaddress
import socket
from dataclasses import dataclass

from nova.errors import NovaError, invalid

_BACKLOG = 2048


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
