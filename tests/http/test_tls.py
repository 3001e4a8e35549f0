"""HTTPS: served with the operator's certificate, nothing older than TLS 1.2, and settings that cannot work say which."""

import ssl
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from nova.config import HttpSettings
from nova.errors import NovaError
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.http.shares import Shares
from nova.http.tls import tls_context
from nova.listen import Address, listening_socket

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", str(key), "-out", str(cert), "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return cert, key


async def _app(scope: Any, receive: Any, send: Any) -> None:
    body = scope["scheme"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body * 200_000})


@pytest.mark.parametrize("shared", [False, True])
async def test_https_is_served_and_old_protocols_are_not(certificate: tuple[Path, Path], shared: bool) -> None:
    cert, key = certificate
    tls = tls_context(HttpSettings(tls_cert=str(cert), tls_key=str(key)))
    sock = listening_socket(Address("127.0.0.1", 0))
    url = f"https://localhost:{sock.getsockname()[1]}/"
    share = Shares(1).of(0) if shared else None
    server = HttpServer(_app, [sock], limits=ConnectionLimits(), drain_s=2, idle_grace_s=0.1, tls=tls, share=share)
    await server.start()
    try:
        trusting = ssl.create_default_context(cafile=str(cert))
        async with httpx.AsyncClient(verify=trusting, trust_env=False, timeout=60) as client:
            for _ in range(2):
                answer = await client.get(url)
                assert (answer.status_code, answer.text) == (200, "https" * 200_000)
        assert tls is not None
        assert tls.minimum_version is ssl.TLSVersion.TLSv1_2
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            with pytest.raises(httpx.TransportError):
                await client.get(url.replace("https", "http"))
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(url)
        async with httpx.AsyncClient(verify=trusting, trust_env=False, timeout=60) as client:
            assert (await client.get(url)).status_code == 200
    finally:
        await server.close()


def test_settings_that_cannot_work_are_named(certificate: tuple[Path, Path], tmp_path: Path) -> None:
    cert, key = (str(path) for path in certificate)
    other, locked, rubbish = tmp_path / "other.pem", tmp_path / "locked.pem", tmp_path / "rubbish.pem"
    subprocess.run(["openssl", "genrsa", "-out", str(other), "2048"], check=True, capture_output=True)
    subprocess.run(
        ["openssl", "rsa", "-in", str(other), "-aes128", "-passout", "pass:x", "-out", str(locked)],
        check=True,
        capture_output=True,
    )
    rubbish.write_text("no certificate")
    assert tls_context(HttpSettings()) is None
    for values, named in (
        ({"tls_cert": cert}, r"http\.tls_key: is missing"),
        ({"tls_key": key}, r"http\.tls_cert: is missing"),
        ({"tls_cert": "/nowhere", "tls_key": key}, r"http\.tls_cert: /nowhere cannot be read"),
        ({"tls_cert": cert, "tls_key": str(tmp_path)}, r"http\.tls_key: .* cannot be read"),
        ({"tls_cert": cert, "tls_key": str(other)}, "certificate and key cannot be used"),
        ({"tls_cert": str(rubbish), "tls_key": key}, r"http\.tls_cert: certificate and key cannot be used"),
        ({"tls_cert": cert, "tls_key": str(locked)}, "protected by a password"),
    ):
        with pytest.raises(NovaError, match=named):
            tls_context(HttpSettings(**values))
