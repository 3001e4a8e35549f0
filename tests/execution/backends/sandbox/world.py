"""A piece of network for tests: hosts behind a veth pair, in a namespace of the test's own.

Run as a program inside that namespace it serves: TCP on 8080 and 9090 answers ``hello``, UDP on 5353 echoes.
"""

import contextlib
import selectors
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

TCP_PORTS = (8080, 9090)
UDP_PORT = 5353


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


@contextlib.contextmanager
def world(net: int = 213) -> Iterator[World]:
    tag = uuid.uuid4().hex[:6]
    namespace, here, there = f"world-{tag}", f"w{tag}a", f"w{tag}b"
    place = World(f"10.{net}.7.1", f"10.{net}.7.2", f"10.{net}.7.3", f"203.0.113.{net % 250 + 1}")
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
        for address in (place.far, place.metadata):
            _ip("route", "add", f"{address}/32", "via", place.near, "dev", here)
        server = subprocess.Popen(
            ["ip", "netns", "exec", namespace, sys.executable, __file__], stdout=subprocess.PIPE, text=True
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


def _serve() -> None:
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
    _serve()
