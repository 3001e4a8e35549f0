"""Where a broker is: URLs with the credentials in them, and which certificates are believed."""

import ssl
from typing import Annotated
from urllib.parse import SplitResult, unquote, urlsplit

from pydantic import AfterValidator, StringConstraints

Authority = Annotated[str, StringConstraints(min_length=1, max_length=65536), AfterValidator(lambda pem: _checked(pem))]
"""Certificates in PEM that are believed instead of the system's, for URLs of TLS."""


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


def tls(authority: str | None) -> ssl.SSLContext:
    """Certificates and names are always checked."""
    return ssl.create_default_context(cadata=authority)


def _checked(pem: str) -> str:
    try:
        ssl.create_default_context(cadata=pem)
    except ssl.SSLError:
        raise ValueError("not a certificate in PEM") from None
    return pem
