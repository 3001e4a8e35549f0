"""A host of our own in a network namespace, and machines that are no more than a TAP's user in another."""

import asyncio
import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pyroute2 import IPRoute

from nova.execution.backends.sandbox import kernel
from nova.execution.backends.vm.bridge import TAP
from nova.execution.backends.vm.network import GATEWAY, GUEST, GUEST_PREFIX, Line

T = TypeVar("T")

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000


class Space:
    """A network namespace with a thread that lives in it."""

    def __init__(self, namespace: int | None = None) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.descriptor: int = self._thread.submit(_enter, namespace).result()

    def do(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result(timeout=20)

    async def later(self, work: Callable[[], T]) -> T:
        """As :meth:`do`, while the loop of this thread goes on."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self.descriptor)


def _enter(namespace: int | None) -> int:
    if namespace is None:
        kernel.unshare(kernel.CLONE_NEWNET)
        with IPRoute() as route:
            route.link("set", index=1, state="up")
    else:
        kernel.setns(namespace, kernel.CLONE_NEWNET)
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


@contextlib.contextmanager
def guest(line: Line) -> Iterator[Space]:
    """What a machine's kernel would be: it has the machine's addresses, and its frames go through the TAP."""
    outside, inside = Space(line.namespace), Space()
    taps = [outside.do(lambda: _open_tap(TAP)), inside.do(lambda: _open_tap("eth0"))]
    inside.do(_configure)
    stop, stopped = os.pipe()
    pump = threading.Thread(target=_pump, args=(*taps, stop))
    pump.start()
    try:
        yield inside
    finally:
        os.close(stopped)
        pump.join()
        for descriptor in (*taps, stop):
            os.close(descriptor)
        inside.close()
        outside.close()


def _open_tap(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    return descriptor


def _configure() -> None:
    with IPRoute() as route:
        index = route.link_lookup(ifname="eth0")[0]
        route.addr("add", index=index, address=str(GUEST), prefixlen=GUEST_PREFIX)
        route.link("set", index=index, state="up")
        route.route("add", dst="default", gateway=str(GATEWAY))


def _pump(one: int, other: int, stop: int) -> None:
    while True:
        ready, _, _ = select.select([one, other, stop], [], [])
        if stop in ready:
            return
        for source in ready:
            frame = os.read(source, 65536)
            with contextlib.suppress(OSError):
                os.write(other if source == one else one, frame)


def reaches(address: str, port: int, timeout_s: float = 0.3) -> bool:
    """Whether a connection comes about from the calling thread's namespace; one that should is given longer."""
    with socket.socket() as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect((address, port))
        except OSError:
            return False
        return True


def add_address(interface: str, address: str) -> None:
    with IPRoute() as route:
        found: Any = route.link_lookup(ifname=interface)
        route.addr("add", index=found[0], address=address, prefixlen=32)
