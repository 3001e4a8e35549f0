"""What users make the platform connect to: public addresses only, whatever a name says and whenever it says it."""

import asyncio
import ipaddress
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from nova.config import EgressSettings
from nova.security import egress
from nova.security.egress import EgressRefused, client, is_public

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.168.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff0e::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
    ],
)
def test_addresses_inside_are_not_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"])
def test_addresses_outside_are(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


@asynccontextmanager
async def listening(tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[str]]]:
    """A server on 127.0.0.1 that keeps the Host headers it got."""
    hosts: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        hosts.append(next(line[6:] for line in head.split("\r\n") if line.startswith("host: ")))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1], hosts


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0"])
async def test_no_spelling_of_loopback_is_reached(host: str) -> None:
    async with listening() as (port, hosts), client(EgressSettings(), timeout_s=5) as http:
        with pytest.raises((EgressRefused, httpx.TransportError)):
            await http.get(f"http://{host}:{port}/")
    assert hosts == []


async def test_what_the_operator_allows_is_reached_and_nothing_beside_it() -> None:
    settings = EgressSettings(allow=["127.0.0.0/31"])
    async with listening() as (port, hosts), client(settings, timeout_s=5) as http:
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"
        assert (await http.get(f"http://[::ffff:127.0.0.1]:{port}/")).text == "ok"
        with pytest.raises(EgressRefused):
            await http.get(f"http://127.0.0.2:{port}/")
    assert len(hosts) == 2


async def test_a_name_is_resolved_once_and_the_checked_address_is_dialled() -> None:
    """EV11: a name server that answers something else the second time is not asked a second time."""
    answers = [["1.2.3.4", "127.0.0.1"], ["127.0.0.2"]]
    asked: list[str] = []

    async def resolve(host: str, _port: int) -> Sequence[str]:
        asked.append(host)
        return answers.pop(0)

    settings = EgressSettings(allow=["127.0.0.1"])
    async with listening() as (port, hosts), client(settings, timeout_s=5, resolve=_only_local(resolve)) as http:
        assert (await http.get(f"http://hooks.example:{port}/")).text == "ok"
        with pytest.raises(EgressRefused) as refused:
            await http.get(f"http://hooks.example:{port}/")
    assert asked == ["hooks.example", "hooks.example"]
    assert hosts == [f"hooks.example:{port}"]
    assert refused.value.code == "forbidden"


def _only_local(resolve: egress.Resolve) -> egress.Resolve:
    """Tests send nothing to public addresses."""

    async def local(host: str, port: int) -> Sequence[str]:
        return [address for address in await resolve(host, port) if address.startswith("127.")]

    return local


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate of hooks.example that it signed itself, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=hooks.example"
    named = ["-addext", "subjectAltName=DNS:hooks.example", "-keyout", key, "-out", cert]
    subprocess.run([*made.split(), *named], check=True, capture_output=True)
    return cert, key


async def test_tls_is_checked_against_the_name_and_not_the_address(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cert, key = certificate
    server, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context(cafile=cert)
    server.load_cert_chain(cert, key)
    names: list[str | None] = []
    server.sni_callback = lambda _socket, name, _context: names.append(name)
    monkeypatch.setattr(egress, "_tls", lambda: trusting)

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    settings = EgressSettings(allow=["127.0.0.1"])
    async with listening(server) as (port, hosts), client(settings, timeout_s=5, resolve=resolve) as http:
        assert (await http.get(f"https://hooks.example:{port}/")).text == "ok"
        with pytest.raises(httpx.TransportError):
            await http.get(f"https://other.example:{port}/")
    assert hosts == [f"hooks.example:{port}"]
    assert names == ["hooks.example", "other.example"]


async def test_failures_are_errors_of_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")  # proxies of the environment are not asked
    settings = EgressSettings(allow=["127.0.0.1"])

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        raise OSError(-2, "Name or service not known")

    async with client(settings, timeout_s=5) as http, listening() as (port, _):
        with pytest.raises(httpx.TransportError):
            await http.get("http://127.0.0.1:1/")
        assert (await http.get(f"http://127.0.0.1:{port}/")).text == "ok"
    async with client(settings, timeout_s=5, resolve=resolve) as http:
        with pytest.raises(httpx.TransportError, match="not known"):
            await http.get("http://ghost.example/")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with client(settings, timeout_s=0.1) as http:
            with pytest.raises(httpx.TimeoutException):
                await http.get(f"http://127.0.0.1:{silent.getsockname()[1]}/")
