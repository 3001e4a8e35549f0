"""Connections that users make the platform open: they reach public addresses only.

A name is resolved once, the address that came out is checked, and that very address is dialled; so an answer of the name
server that changes between check and use changes nothing. Every connection passes here, also one that a redirect asks for.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence

import httpcore
import httpx

from nova.config import EgressSettings
from nova.errors import NovaError
from nova.security.identity import networks

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_MAX_CONNECTIONS = 100


class EgressRefused(NovaError):
    """The address is not one that may be reached from here; trying again is no use."""

    def __init__(self, host: str) -> None:
        super().__init__("forbidden", f"{host!r} has no public address")


def is_public(address: Address) -> bool:
    """May anybody make the platform connect there? An IPv6 address that stands for an IPv4 one is judged as that."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
    return address.is_global and not address.is_multicast


def client(settings: EgressSettings, *, timeout_s: float, resolve: Resolve | None = None) -> httpx.AsyncClient:
    """A client that connects to public addresses and to ``egress.allow``, follows no redirect and knows no proxy.

    Its requests raise :class:`EgressRefused` or httpx's errors.
    """
    transport = _Transport(_Dialler(Guard(settings.allow, resolve)))
    return httpx.AsyncClient(transport=transport, timeout=timeout_s, trust_env=False, follow_redirects=False)


class Guard:
    """Which addresses of a host may be dialled: those that are public, and those below ``allow``.

    For clients of other protocols, which are given the address in the place of the name.
    """

    def __init__(self, allow: Iterable[str], resolve: Resolve | None = None) -> None:
        self._allow = networks(allow)
        self._resolve = resolve or _lookup

    async def addresses(self, host: str, port: int) -> list[str]:
        """At least one, in the resolver's order. Raises :class:`EgressRefused`, or OSError for a name that is not known."""
        found = await self._resolve(host, port)
        every = [ipaddress.ip_address(text.partition("%")[0]) for text in dict.fromkeys(found)]
        allowed = [str(address) for address in every if self._may_reach(address)]
        if not allowed:
            raise EgressRefused(host)
        return allowed

    def _may_reach(self, address: Address) -> bool:
        plain = getattr(address, "ipv4_mapped", None) or address
        return is_public(address) or any(plain in network for network in self._allow)


class _Dialler(httpcore.AsyncNetworkBackend):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._guard.addresses(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host}: {error.strerror or error}") from error
        failure: Exception | None = None
        for address in addresses:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure or EgressRefused(host)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        raise EgressRefused(path)

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


async def _lookup(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(info[4][0]) for info in found]


class _Transport(httpx.AsyncBaseTransport):
    """httpx over an httpcore pool that dials through :class:`_Dialler`."""

    def __init__(self, dialler: _Dialler) -> None:
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=_tls(), max_connections=_MAX_CONNECTIONS, keepalive_expiry=15.0, network_backend=dialler
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not isinstance(request.stream, AsyncIterable):
            raise TypeError("an asynchronous client sends an asynchronous body")
        try:
            answer = await self._pool.handle_async_request(
                httpcore.Request(
                    method=request.method,
                    url=httpcore.URL(
                        scheme=request.url.raw_scheme,
                        host=request.url.raw_host,
                        port=request.url.port,
                        target=request.url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        except httpcore.TimeoutException as error:
            raise httpx.TimeoutException(str(error) or type(error).__name__, request=request) from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise httpx.TransportError(str(error) or type(error).__name__, request=request) from error
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions)

    async def aclose(self) -> None:
        await self._pool.aclose()


class _Body(httpx.AsyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._answer.aiter_stream():
                yield piece
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise httpx.TransportError(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        await self._answer.aclose()


def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context(trust_env=False)
