"""A piece of network for tests: hosts behind a veth pair, in a namespace of the test's own.

Run as a program inside that namespace it serves: TCP on 8080 and 9090 answers ``hello``, UDP on 5353 echoes, TCP on 7070
takes or gives bytes, and port 53 is a name server.
"""

import contextlib
import selectors
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rrset

TCP_PORTS = (8080, 9090)
UDP_PORT = 5353
BULK_PORT = 7070
BULK_BYTES = 1_000_000
"""What the bulk server gives to who sends it ``d``; from who sends ``u`` it takes everything and says ``ok``."""


@dataclass(frozen=True)
class World:
    """``near`` is an ordinary private address, ``other`` another one, ``far`` a public one, ``metadata`` the forbidden one.
    ``router`` is the host's own address on the way there."""

    router: str
    near: str
    other: str
    far: str
    metadata: str = "169.254.169.254"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _reserved() -> tuple[int, socket.socket]:
    """The second number of a network that no other world has, kept as long as the socket is open."""
    for net in range(200, 240):
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0nova-tests-world-{net}")
        except OSError:
            held.close()
        else:
            return net, held
    raise RuntimeError("forty worlds at once")


@contextlib.contextmanager
def world() -> Iterator[World]:
    net, held = _reserved()
    namespace, here, there = f"world-{net}", f"w{net}a", f"w{net}b"
    place = World(f"10.{net}.7.1", f"10.{net}.7.2", f"10.{net}.7.3", f"203.0.113.{net}")
    subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)  # of tests that were killed
    _ip("netns", "add", namespace)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", namespace)
        _ip("addr", "add", f"{place.router}/24", "dev", here)
        _ip("link", "set", here, "up")
        for address in (f"{place.near}/24", f"{place.other}/24", f"{place.far}/32", f"{place.metadata}/32"):
            _ip("-n", namespace, "addr", "add", address, "dev", there)
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "link", "set", there, "up")
        _ip("-n", namespace, "route", "add", "default", "via", place.router)
        # Other tests may have a world at this moment: the metadata service is in any of them.
        for address in (place.far, place.metadata):
            _ip("route", "add", f"{address}/32", "via", place.near, "dev", here, "metric", str(1000 + net))
        server = subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                namespace,
                sys.executable,
                __file__,
                place.near,
                place.other,
                place.far,
                place.router,
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == "serving\n"
            yield place
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
    finally:
        _ip("netns", "del", namespace)
        held.close()


def zone(near: str, other: str, far: str, router: str) -> str:
    """Names of the world. Time to live: 0, so that what stays reachable does so by the platform's own minimum."""
    return f"""
        api.example.test. 0 IN A {near}
        svc.example.test. 0 IN CNAME cdn.elsewhere.test.
        cdn.elsewhere.test. 0 IN A {other}
        far.example.test. 0 IN A {far}
        metadata.example.test. 0 IN A 169.254.169.254
        loopback.example.test. 0 IN A 127.0.0.1
        host.example.test. 0 IN A {router}
        mixed.example.test. 0 IN A {near}
        mixed.example.test. 0 IN A {router}
        six.example.test. 0 IN AAAA 2001:db8::1
        long.example.test. 0 IN TXT {" ".join(['"' + "x" * 250 + '"'] * 20)}
    """


class Names:
    """A name server for a few names; everything else does not exist."""

    def __init__(self, text: str) -> None:
        self.records: dict[tuple[str, str], list[str]] = {}
        for line in text.strip().splitlines():
            name, _, _, kind, data = line.strip().split(" ", 4)
            self.records.setdefault((name, kind), []).append(data)

    def answer(self, wire: bytes, most: int) -> bytes:
        query = dns.message.from_wire(wire)
        response = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name, kind = question.name.to_text().lower(), question.rdtype.name
        if not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        while (name, "CNAME") in self.records:
            response.answer.append(dns.rrset.from_text(name, 0, "IN", "CNAME", *self.records[name, "CNAME"]))
            name = self.records[name, "CNAME"][0]
        if (name, kind) in self.records:
            response.answer.append(dns.rrset.from_text(name, 0, "IN", kind, *self.records[name, kind]))
        whole = response.to_wire(max_size=65535)
        if len(whole) <= most:
            return whole
        response.answer.clear()
        response.flags |= dns.flags.TC
        return response.to_wire()


def _names_by_tcp(server: Names) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while size := self.rfile.read(2):
                answer = server.answer(self.rfile.read(int.from_bytes(size)), 65535)
                self.wfile.write(len(answer).to_bytes(2) + answer)

    return Handler


def _names_by_udp(server: Names) -> type[socketserver.BaseRequestHandler]:
    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, sock = self.request
            sock.sendto(server.answer(data, 512), self.client_address)

    return Handler


class _Bulk(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        if self.rfile.read(1) == b"d":
            self.wfile.write(bytes(BULK_BYTES))
        else:
            while self.rfile.read(1 << 16):
                pass
            self.wfile.write(b"ok")


def _serve_names_and_bulk(addresses: list[str]) -> None:
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    names = Names(zone(*addresses))
    servers: list[socketserver.BaseServer] = [
        socketserver.ThreadingUDPServer((addresses[0], 53), _names_by_udp(names)),
        socketserver.ThreadingTCPServer((addresses[0], 53), _names_by_tcp(names)),
        socketserver.ThreadingTCPServer(("0.0.0.0", BULK_PORT), _Bulk),
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()


def _serve(addresses: list[str]) -> None:
    _serve_names_and_bulk(addresses)
    selector = selectors.DefaultSelector()
    for port in TCP_PORTS:
        door = socket.create_server(("0.0.0.0", port))
        selector.register(door, selectors.EVENT_READ)
    echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    echo.bind(("0.0.0.0", UDP_PORT))
    selector.register(echo, selectors.EVENT_READ)
    print("serving", flush=True)
    while True:
        for key, _ in selector.select():
            if key.fileobj is echo:
                data, peer = echo.recvfrom(2048)
                echo.sendto(data, peer)
            else:
                assert isinstance(key.fileobj, socket.socket)
                guest, _ = key.fileobj.accept()
                guest.sendall(b"hello")
                guest.close()


if __name__ == "__main__":
    _serve(sys.argv[1:])
