"""HTTPS for the server itself. Without a certificate it speaks plain HTTP, for loopback or behind a proxy that has one."""

import ssl

from nova.config import HttpSettings
from nova.errors import invalid


def tls_context(http: HttpSettings) -> ssl.SSLContext | None:
    """What ``http.tls_cert`` and ``http.tls_key`` say; None when neither is set. TLS 1.2 or newer, HTTP/1.1 only.

    Raises ``validation_failed`` with the setting's name for one without the other, and for files that do not fit.
    """
    if not http.tls_cert and not http.tls_key:
        return None
    if not http.tls_key:
        raise invalid("http.tls_key", "is missing; http.tls_cert needs it")
    if not http.tls_cert:
        raise invalid("http.tls_cert", "is missing; http.tls_key needs it")
    for name, path in (("http.tls_cert", http.tls_cert), ("http.tls_key", http.tls_key)):
        try:
            with open(path, "rb"):
                pass
        except OSError as exc:
            raise invalid(name, f"{path} cannot be read: {exc.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(http.tls_cert, http.tls_key, password=_no_password)
    except (ssl.SSLError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or str(exc)
        raise invalid("http.tls_cert", f"certificate and key cannot be used: {reason}") from None
    return context


def _no_password() -> str:
    """A key with a password must not make the server wait at a terminal."""
    raise ValueError("the key is protected by a password")
