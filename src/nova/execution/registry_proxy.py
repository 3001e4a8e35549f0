"""The only way out of a build: an HTTP proxy on a unix socket that dials nothing but the registries.

It resolves names itself and connects to the address it has checked, so a name cannot change its meaning in between.
Addresses inside (loopback, link-local, private networks, the metadata address) are refused unless the operator's own
configuration puts a registry there.
"""

import asyncio
import base64
import ipaddress
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import structlog

log = structlog.get_logger(__name__)
_MAX_HEAD: Final = 16 * 1024
_HEAD_TIMEOUT_S: Final = 15
_DIAL_TIMEOUT_S: Final = 30
_CHUNK: Final = 64 * 1024
_MAX_CONNECTIONS: Final = 64
_INSIDE: Final = tuple(
    ipaddress.ip_network(net)
    for net in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "0.0.0.0/8", "fc00::/7")
)


@dataclass(frozen=True, slots=True)
class Registry:
    """One destination. ``inside``: the operator's own configuration names it, so it may be on a private network."""

    host: str
    port: int
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Upstream:
    """The proxy that this host itself must use. ``authorization`` is the value of its header, or empty."""

    host: str
    port: int
    authorization: str = ""

    @classmethod
    def of(cls, url: str) -> "Upstream":
        """From the value of ``HTTPS_PROXY``. Raises ValueError for anything but an ``http`` proxy."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("the proxy of this host is not an http:// proxy")
        authorization = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return cls(parts.hostname, parts.port or 80, authorization)


class Refused(Exception):
    """The destination is none that builds may reach."""


class RegistryProxy:
    """``CONNECT`` for TLS registries, absolute-form requests for plain ones. ``refused`` is told each refusal as text."""

    def __init__(
        self, registries: Iterable[Registry], *, upstream: Upstream | None = None, refused: Callable[[str], None]
    ) -> None:
        self._registries = {(registry.host.lower(), registry.port): registry for registry in registries}
        self._upstream = upstream
        self._refused = refused
        self._free = asyncio.Semaphore(_MAX_CONNECTIONS)
        self._open: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def serve(self, path: Path) -> AsyncIterator[None]:
        """Listen on a unix socket at ``path`` while the block runs. Whoever reaches the path may use it."""
        server = await asyncio.start_unix_server(self._accept, str(path), limit=_MAX_HEAD)
        path.chmod(0o666)
        try:
            yield
        finally:
            server.close()
            for task in list(self._open):
                task.cancel()
            await asyncio.gather(*self._open, return_exceptions=True)
            path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        try:
            async with self._free:
                await self._serve(reader, writer)
        except asyncio.CancelledError:
            return  # the build is over; a task that asyncio's server made must not end as cancelled
        except (OSError, EOFError, TimeoutError, ValueError) as error:
            log.debug("registry connection ended", error=repr(error))
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_HEAD_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.LimitOverrunError, TimeoutError):
            writer.write(_answer(400, "Bad Request"))
            return
        method, target, _version = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        try:
            host, port = _destination(method, target)
            outer_reader, outer_writer, hello = await self._dial(host, port, tls=method == "CONNECT")
        except Refused as refusal:
            self._refused(str(refusal))
            writer.write(_answer(403, "Forbidden", str(refusal)))
            return
        except (OSError, TimeoutError, EOFError) as error:
            writer.write(_answer(502, "Bad Gateway", f"{target}: {error}"))
            return
        try:
            if method == "CONNECT":
                writer.write(hello)
            else:
                outer_writer.write(_origin_form(head, via_proxy=self._upstream))
            await _join(reader, writer, outer_reader, outer_writer)
        finally:
            outer_writer.close()

    async def _dial(
        self, host: str, port: int, *, tls: bool
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        """Connect to a registry; the answer that tells a ``CONNECT`` client so."""
        registry = self._registries.get((host, port))
        if registry is None:
            raise Refused(f"{host}:{port} is not one of the package registries that builds may reach")
        async with asyncio.timeout(_DIAL_TIMEOUT_S):
            if self._upstream is not None:
                reader, writer = await asyncio.open_connection(self._upstream.host, self._upstream.port)
                return reader, writer, await self._tunnel(reader, writer, host, port) if tls else b""
            reader, writer = await self._connect(registry)
        return reader, writer, b"HTTP/1.1 200 Connection established\r\n\r\n"

    async def _connect(self, registry: Registry) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The first address of the registry that is allowed and answers."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(registry.host, registry.port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        if not registry.inside and any(is_inside(address) for address in addresses):
            raise Refused(f"{registry.host} has a private address, and no configuration of this host puts it there")
        failure: OSError = OSError(f"{registry.host} has no address")
        for address in addresses:
            try:
                return await asyncio.open_connection(address, registry.port)
            except OSError as error:
                failure = error
        raise failure

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> bytes:
        """Ask the host's own proxy for a tunnel; its answer goes to the client."""
        assert self._upstream is not None
        authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if self._upstream.authorization:
            lines.append(f"Proxy-Authorization: {self._upstream.authorization}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        return await reader.readuntil(b"\r\n\r\n")


def is_inside(address: str) -> bool:
    """Does this address lie on the host or its private networks?"""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return True
    return any(ip.version == net.version and ip in net for net in _INSIDE)


def _destination(method: str, target: str) -> tuple[str, int]:
    """Host in lower case and port. Raises :class:`Refused` for what is no proxy request."""
    try:
        parts = urlsplit(f"//{target}" if method == "CONNECT" else target)
        port = parts.port
    except ValueError:
        raise Refused(f"{target!r} is not a destination") from None
    if not parts.hostname or (method != "CONNECT" and parts.scheme != "http"):
        raise Refused(f"{target!r} is not a destination")
    return parts.hostname.lower(), port or (443 if method == "CONNECT" else 80)


def _origin_form(head: bytes, *, via_proxy: Upstream | None) -> bytes:
    """The head of an absolute-form request as the next hop wants it; the connection serves this one request."""
    first, *rest = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, version = first.split(b" ", 2)
    if via_proxy is None:
        parts = urlsplit(target)
        target = (parts.path or b"/") + (b"?" + parts.query if parts.query else b"")
    hop = (b"connection:", b"proxy-connection:", b"proxy-authorization:", b"keep-alive:")
    kept = [line for line in rest if not line.lower().startswith(hop)]
    if via_proxy is not None and via_proxy.authorization:
        kept.append(f"Proxy-Authorization: {via_proxy.authorization}".encode("latin-1"))
    return b"\r\n".join([b" ".join((method, target, version)), *kept, b"Connection: close", b"", b""])


def _answer(status: int, reason: str, detail: str = "") -> bytes:
    body = detail.encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body


async def _join(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    outer_reader: asyncio.StreamReader,
    outer_writer: asyncio.StreamWriter,
) -> None:
    """Copy both ways until both ends are done, or one breaks."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_pump(reader, outer_writer))
        group.create_task(_pump(outer_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except OSError:
        writer.close()
