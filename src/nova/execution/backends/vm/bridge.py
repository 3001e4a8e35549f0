"""The interfaces of machines: the host's bridge, a way from it into a machine's network namespace, the TAP inside.

All functions work in the network namespace of the calling thread and raise OSError.
"""

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

TAP: Final = "tap0"
TAP_MAC: Final = "06:00:c0:00:00:01"
"""The same for every machine, as one that goes on from a snapshot remembers it."""
_TUNSETIFF: Final = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
UPLINK: Final = "eth0"
"""The namespace's end of the way to the bridge."""


@contextlib.contextmanager
def _route() -> Iterator[Any]:
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise OSError(error.code, f"netlink: {error}") from error


def ensure_bridge(name: str, gateway: IPv4Address, prefix: int) -> None:
    """A bridge with that address, made now or found. Its address is what machines send to, so a strange one is refused."""
    with _route() as route:
        found = route.link_lookup(ifname=name)
        if not found:
            with _unless(errno.EEXIST):
                route.link("add", ifname=name, kind="bridge")
            found = route.link_lookup(ifname=name)
        index = found[0]
        addresses = [entry.get_attr("IFA_LOCAL") for entry in route.get_addr(index=index, family=2)]
        if addresses and str(gateway) not in addresses:
            raise OSError(errno.EADDRNOTAVAIL, f"the bridge {name} has the address {addresses[0]}, not {gateway}")
        if not addresses:
            with _unless(errno.EEXIST):
                route.addr("add", index=index, address=str(gateway), prefixlen=prefix)
        route.link("set", index=index, state="up")


def remove(name: str) -> None:
    """Nothing happens when there is no such interface."""
    with _route() as route:
        for index in route.link_lookup(ifname=name):
            with _unless(errno.ENODEV):
                route.link("del", index=index)


def attach(bridge: str, name: str, namespace: int) -> None:
    """A pair: ``name`` as an isolated port of ``bridge``, and :data:`UPLINK` in the namespace of that descriptor.

    Isolated ports reach the bridge itself and nothing of each other.
    """
    with _route() as route:
        for index in route.link_lookup(ifname=name):
            with _unless(errno.ENODEV):
                route.link("del", index=index)
        route.link("add", ifname=name, kind="veth", peer={"ifname": UPLINK, "net_ns_fd": namespace})
        index = route.link_lookup(ifname=name)[0]
        route.link("set", index=index, master=route.link_lookup(ifname=bridge)[0])
        route.brport("set", index=index, isolated=1)
        route.link("set", index=index, state="up")


def furnish(address: IPv4Address, prefix: int, gateway: IPv4Address) -> None:
    """In a machine's namespace: the way out gets its address, and everything goes there."""
    with _route() as route:
        index = route.link_lookup(ifname=UPLINK)[0]
        route.addr("add", index=index, address=str(address), prefixlen=prefix)
        route.link("set", index=index, state="up")
        route.route("add", dst="default", gateway=str(gateway))


def add_tap(address: IPv4Address, prefix: int, owner: int) -> None:
    """In a machine's namespace: the TAP, which the host user ``owner`` may open, with this end's address."""
    with _route() as route:
        route.link("add", ifname=TAP, kind="tuntap", mode="tap", uid=owner)
        index = route.link_lookup(ifname=TAP)[0]
        route.link("set", index=index, address=TAP_MAC)
        route.addr("add", index=index, address=str(address), prefixlen=prefix)
        route.link("set", index=index, state="up")


def open_tap() -> int:
    """A descriptor of the TAP, for a program that is to be the machine's network card and may not open it itself."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", TAP.encode(), flags))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _unless(code: int) -> Iterator[None]:
    """Two daemons may do the same at once."""
    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise
