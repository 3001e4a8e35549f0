"""Just enough of rtnetlink to give an instance an interface: veth pairs, addresses, a default route, a bandwidth.

Used from one thread that visits network namespaces, where the big libraries would start processes or event loops of
their own.
"""

import errno
import os
import socket
import struct
from ipaddress import IPv4Address
from types import TracebackType
from typing import Self

_RTM_NEWLINK, _RTM_DELLINK = 16, 17
_RTM_NEWADDR = 20
_RTM_NEWROUTE = 24
_RTM_NEWQDISC, _RTM_DELQDISC = 36, 37
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_GROUP, _IFLA_NET_NS_FD = 3, 18, 27, 28
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 31, 32
_IFLA_INFO_KIND, _IFLA_INFO_DATA = 1, 2
_VETH_INFO_PEER = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_OIF, _RTA_GATEWAY = 4, 5
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_TBF_PARMS, _TCA_TBF_BURST = 1, 6
_TC_H_ROOT = 0xFFFFFFFF
_LINKLAYER_ETHERNET = 1
_BURST_LEAST = 64 << 10
"""Bytes: what the kernel hands to an interface in one piece."""
_BURST_S, _QUEUE_S = 0.01, 0.2
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 3, 0, 1
_IFF_UP = 1
_NLA_F_NESTED = 0x8000
_LINK_HEADER = "=BxHiII"


def _attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + bytes(-length % 4)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | _NLA_F_NESTED, b"".join(parts))


def _one_queue() -> bytes:
    """Unless told, the kernel makes a queue for each processor, takes all but one away again, and waits twice for every
    processor to have noticed: 12 ms in place of 0.5."""
    one = struct.pack("=I", 1)
    return _attribute(_IFLA_NUM_TX_QUEUES, one) + _attribute(_IFLA_NUM_RX_QUEUES, one)


def _name(name: str) -> bytes:
    return _attribute(_IFLA_IFNAME, name.encode() + b"\0")


class Netlink:
    """A route socket in the network namespace of the calling thread. Failures are OSError with the kernel's code."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        self._sock.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sock.close()

    def _request(self, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, _NLM_F_REQUEST | flags, self._sequence, 0)
        self._sock.send(header + body)
        answers: list[tuple[int, bytes]] = []
        while True:
            data = self._sock.recv(1 << 18)
            while data:
                length, answer, _flags, sequence, _pid = struct.unpack_from("=IHHII", data)
                payload, data = data[16:length], data[(length + 3) & ~3 :]
                if sequence != self._sequence:
                    continue
                if answer == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", payload)[0]
                    if code:
                        raise OSError(code, f"netlink request {kind}: {os.strerror(code)}")
                    return answers
                if answer == _NLMSG_DONE:
                    return answers
                answers.append((answer, payload))

    def add_veth(self, name: str, peer: str, peer_namespace: int, *, group: int = 0) -> None:
        """A pair of interfaces: ``name`` here, in ``group``, and ``peer`` in the namespace that the descriptor stands for."""
        link = struct.pack(_LINK_HEADER, socket.AF_UNSPEC, 0, 0, 0, 0)
        other = link + _name(peer) + _one_queue() + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
        info = _nested(
            _IFLA_LINKINFO,
            _attribute(_IFLA_INFO_KIND, b"veth"),
            _nested(_IFLA_INFO_DATA, _nested(_VETH_INFO_PEER, other)),
        )
        member = _attribute(_IFLA_GROUP, struct.pack("=I", group)) + _one_queue()
        self._request(_RTM_NEWLINK, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL, link + _name(name) + member + info)

    def delete(self, name: str) -> None:
        """Remove an interface; nothing happens when there is none."""
        link = struct.pack(_LINK_HEADER, socket.AF_UNSPEC, 0, 0, 0, 0)
        try:
            self._request(_RTM_DELLINK, _NLM_F_ACK, link + _name(name))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def delete_group(self, group: int) -> None:
        """Remove all interfaces of ``group`` (not 0), which takes no longer than removing one."""
        link = struct.pack(_LINK_HEADER, socket.AF_UNSPEC, 0, 0, 0, 0)
        try:
            self._request(_RTM_DELLINK, _NLM_F_ACK, link + _attribute(_IFLA_GROUP, struct.pack("=I", group)))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise

    def set_up(self, name: str) -> None:
        link = struct.pack(_LINK_HEADER, socket.AF_UNSPEC, 0, 0, _IFF_UP, _IFF_UP)
        self._request(_RTM_NEWLINK, _NLM_F_ACK, link + _name(name))

    def add_address(self, name: str, address: IPv4Address, prefix: int) -> None:
        body = struct.pack("=BBBBI", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(name))
        body += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
        self._request(_RTM_NEWADDR, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL, body)

    def add_default_route(self, gateway: IPv4Address, name: str) -> None:
        body = struct.pack(
            "=BBBBBBBBI",
            socket.AF_INET,
            0,
            0,
            0,
            _RT_TABLE_MAIN,
            _RTPROT_BOOT,
            _RT_SCOPE_UNIVERSE,
            _RTN_UNICAST,
            0,
        )
        body += _attribute(_RTA_GATEWAY, gateway.packed)
        body += _attribute(_RTA_OIF, struct.pack("=I", socket.if_nametoindex(name)))
        self._request(_RTM_NEWROUTE, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL, body)

    def shape(self, name: str, mbps: int) -> None:
        """Send out of ``name`` no more than ``mbps`` Mbit/s (at most 10,000). What waits longer than 0.2 s is dropped."""
        rate = mbps * 125_000
        burst = max(_BURST_LEAST, int(rate * _BURST_S))
        spec = struct.pack("=BBHhHI", 0, _LINKLAYER_ETHERNET, 0, 0, 0, rate)
        parameters = spec + bytes(12) + struct.pack("=III", burst + int(rate * _QUEUE_S), 0, 0)
        options = _nested(
            _TCA_OPTIONS,
            _attribute(_TCA_TBF_PARMS, parameters),
            _attribute(_TCA_TBF_BURST, struct.pack("=I", burst)),
        )
        body = self._traffic(name) + _attribute(_TCA_KIND, b"tbf\0") + options
        self._request(_RTM_NEWQDISC, _NLM_F_ACK | _NLM_F_CREATE | _NLM_F_EXCL, body)

    def unshape(self, name: str) -> None:
        """Undo :meth:`shape`; nothing happens when there is nothing to undo."""
        try:
            self._request(_RTM_DELQDISC, _NLM_F_ACK, self._traffic(name))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _traffic(self, name: str) -> bytes:
        index = socket.if_nametoindex(name)
        return struct.pack("=BxxxiIII", socket.AF_UNSPEC, index, 0, _TC_H_ROOT, 0)

    def names(self) -> list[str]:
        """The interfaces of this namespace."""
        return [name for _, name in socket.if_nameindex()]
