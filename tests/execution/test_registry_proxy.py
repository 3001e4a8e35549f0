import asyncio
import contextlib
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from nova.execution.buildbox import forward
from nova.execution.registry_proxy import Registry, RegistryProxy, Upstream, is_inside

pytestmark = pytest.mark.anyio


class Server:
    """A plain TCP server that remembers the head of each request and answers ``ok``."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.port = 0

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
            await writer.drain()
        writer.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Server"]:
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with Server().running() as server:
        yield server


@pytest.fixture
def door() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nova-t-") as folder:
        yield Path(folder, "s")


async def ask(door: Path, request: bytes) -> bytes:
    reader, writer = await asyncio.open_unix_connection(str(door))
    writer.write(request)
    async with asyncio.timeout(20):
        answer = await reader.read()
    writer.close()
    return answer


async def test_a_tunnel_leads_to_a_registry(server: Server, door: Path) -> None:
    refused: list[str] = []
    proxy = RegistryProxy([Registry("127.0.0.1", server.port, inside=True)], refused=refused.append)
    request = b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\nGET /x HTTP/1.1\r\n\r\n" % server.port
    async with proxy.serve(door):
        answer = await ask(door, request)
    assert answer.startswith(b"HTTP/1.1 200 Connection established\r\n\r\nHTTP/1.1 200 OK")
    assert server.heads == [b"GET /x HTTP/1.1\r\n\r\n"]
    assert refused == []
    assert not door.exists()


async def test_a_plain_request_is_passed_on_as_the_registry_wants_it(server: Server, door: Path) -> None:
    proxy = RegistryProxy([Registry("localhost", server.port, inside=True)], refused=lambda _text: None)
    request = (
        b"GET http://localhost:%d/simple/six/?a=1 HTTP/1.1\r\nHost: localhost\r\nProxy-Connection: keep-alive\r\n\r\n"
    )
    async with proxy.serve(door):
        answer = await ask(door, request % server.port)
    assert answer.endswith(b"\r\n\r\nok")
    assert server.heads == [b"GET /simple/six/?a=1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]


@pytest.mark.parametrize(
    "request_line",
    [
        b"CONNECT example.org:443 HTTP/1.1",
        b"CONNECT registry.test:22 HTTP/1.1",
        b"CONNECT registry.test.example.org:443 HTTP/1.1",
        b"CONNECT 169.254.169.254:80 HTTP/1.1",
        b"CONNECT [::1]:443 HTTP/1.1",
        b"GET http://example.org/ HTTP/1.1",
        b"GET /etc/passwd HTTP/1.1",
        b"CONNECT registry.test:99999 HTTP/1.1",
    ],
)
async def test_other_hosts_are_refused(door: Path, request_line: bytes) -> None:
    """BU1: neither the planes, nor the metadata address, nor the internet."""
    refused: list[str] = []
    async with RegistryProxy([Registry("registry.test", 443)], refused=refused.append).serve(door):
        answer = await ask(door, request_line + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert len(refused) == 1


async def test_a_registry_name_that_means_this_host_is_refused(server: Server, door: Path) -> None:
    """BU1: a default registry whose name resolves to a private address leads nowhere."""
    refused: list[str] = []
    async with RegistryProxy([Registry("localhost", server.port)], refused=refused.append).serve(door):
        answer = await ask(door, b"CONNECT localhost:%d HTTP/1.1\r\n\r\n" % server.port)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert "private address" in refused[0]
    assert server.heads == []


async def test_the_proxy_of_the_host_is_used(server: Server, door: Path) -> None:
    upstream = Upstream.of(f"http://user:p%40ss@127.0.0.1:{server.port}")
    proxy = RegistryProxy([Registry("registry.test", 443)], upstream=upstream, refused=lambda _text: None)
    async with proxy.serve(door):
        answer = await ask(door, b"CONNECT registry.test:443 HTTP/1.1\r\n\r\n")
    assert answer.endswith(b"ok")
    assert server.heads == [
        b"CONNECT registry.test:443 HTTP/1.1\r\nHost: registry.test:443\r\n"
        b"Proxy-Authorization: Basic dXNlcjpwQHNz\r\n\r\n"
    ]


async def test_garbage_and_endless_heads_end(door: Path) -> None:
    async with RegistryProxy([], refused=lambda _text: None).serve(door):
        assert (await ask(door, b"x" * 20_000)).startswith(b"HTTP/1.1 400 ")
        assert await ask(door, b"\x16\x03\x01\r\n\r\n") == b""


async def test_a_registry_that_does_not_answer_is_a_bad_gateway(door: Path) -> None:
    async with Server().running() as gone:
        port = gone.port
    async with RegistryProxy([Registry("127.0.0.1", port, inside=True)], refused=lambda _text: None).serve(door):
        assert (await ask(door, b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n\r\n" % port)).startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("::1", True),
        ("::ffff:192.168.1.1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("::ffff:8.8.8.8", False),
    ],
)
def test_which_addresses_lie_inside(address: str, inside: bool) -> None:
    assert is_inside(address) is inside


async def test_the_forwarder_leads_a_command_to_the_proxy(server: Server, door: Path) -> None:
    code = (
        "import os, sys, urllib.request\n"
        "print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())\n"
        "sys.exit(7)\n"
    )
    url = f"http://registry.test:{server.port}/x"
    proxy = RegistryProxy(
        [Registry("registry.test", server.port)],
        upstream=Upstream("127.0.0.1", server.port),
        refused=lambda _text: None,
    )
    env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    async with proxy.serve(door):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(forward.__file__), str(door), sys.executable, "-I", "-c", code, url),
            stdout=asyncio.subprocess.PIPE,
            env=env,
        )
        async with asyncio.timeout(30):
            out, _ = await process.communicate()
    assert (out, process.returncode) == (b"ok\n", 7)
    assert server.heads[0].startswith(f"GET {url} HTTP/1.1\r\n".encode())


@pytest.mark.parametrize("url", ["socks5://127.0.0.1:1080", "https://proxy.test", "http://"])
def test_other_kinds_of_proxies_are_named(url: str) -> None:
    with pytest.raises(ValueError, match="http:// proxy"):
        Upstream.of(url)
