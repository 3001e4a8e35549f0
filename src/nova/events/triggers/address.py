"""Where a broker is: URLs with the credentials in them, which address is dialled, and which certificates are believed.

A name is resolved and checked here, and libraries get the address that came out: they have nothing left to resolve. TLS checks
the certificate for the name all the same.
"""

import asyncio
import ssl
from typing import Annotated, Any
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, StringConstraints

from nova.events.triggers.base import SourceError
from nova.security.egress import EgressRefused, Guard

Authority = Annotated[str, StringConstraints(min_length=1, max_length=65536), AfterValidator(lambda pem: _checked(pem))]
"""Certificates in PEM that are believed instead of the system's, for URLs of TLS."""


_TRY_S = 5.0


def split(url: str, *schemes: str) -> SplitResult:
    """The parts of a URL. Raises ValueError, with nothing of the URL in it, unless the scheme is one of ``schemes`` and a host
    is named. Parameters are refused: those that libraries know open files of the server and turn off checks."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in schemes:
        raise ValueError(f"the scheme must be {' or '.join(schemes)}")
    if not parts.hostname:
        raise ValueError("the URL names no host")
    if parts.query or parts.fragment:
        raise ValueError("parameters in the URL are not supported")
    return parts


def credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    """User and password, decoded."""
    user, password = parts.username, parts.password
    return (unquote(user) if user else None), (unquote(password) if password is not None else None)


async def dial(guard: Guard, host: str, port: int) -> str:
    """The address to connect to: of several that may be reached, the first that answers.

    Raises :class:`SourceError` when none may be reached or the name is not known.
    """
    try:
        addresses = await guard.addresses(host, port)
    except EgressRefused as refusal:
        raise SourceError(f"{refusal.detail}, and egress.allow does not name its network") from None
    except OSError as error:
        raise SourceError(f"{host}: {error.strerror or error}") from None
    for address in addresses[:-1]:
        try:
            async with asyncio.timeout(_TRY_S):
                _, writer = await asyncio.open_connection(address, port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return address
    return addresses[-1]


def at_address(parts: SplitResult, address: str, port: int) -> str:
    """The URL with the address in the place of the name."""
    user, at, _ = parts.netloc.rpartition("@")
    host = f"[{address}]" if ":" in address else address
    return parts._replace(netloc=f"{user}{at}{host}:{port}").geturl()


class _Named(ssl.SSLContext):
    """Checks certificates for one name, whatever address its user believes to be the server's name."""

    server_name = ""

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        return super().wrap_bio(*args[:3], **options | {"server_hostname": self.server_name})

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        return super().wrap_socket(*args, **options | {"server_hostname": self.server_name})


def tls(authority: str | None, name: str) -> ssl.SSLContext:
    """Certificates are always checked, and for this name."""
    context = _Named(ssl.PROTOCOL_TLS_CLIENT)
    context.server_name = name
    if authority is None:
        context.load_default_certs()
    else:
        context.load_verify_locations(cadata=authority)
    return context


def _checked(pem: str) -> str:
    try:
        ssl.create_default_context(cadata=pem)
    except ssl.SSLError:
        raise ValueError("not a certificate in PEM") from None
    return pem
