"""The network of machines: each has a namespace of its own with its TAP and its rules, and one way to the host's bridge.

Every machine sees the same addresses on its side, so that one snapshot serves many machines; on the bridge each has a leased
one. The end of the namespace ends everything in it, so nothing of a killed machine stays.
"""

import asyncio
import contextlib
import functools
import itertools
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final, TypeVar

import structlog

from nova.domain.function import NetworkPolicy
from nova.execution.backends.sandbox import kernel, names, rules
from nova.execution.backends.sandbox.namespaces import loopback_up
from nova.execution.backends.sandbox.netlink import Netlink
from nova.execution.backends.sandbox.nftables import Nftables
from nova.execution.backends.sandbox.rootfs import host_resolvers
from nova.execution.backends.vm import bridge, filtering
from nova.execution.backends.vm.leases import Leases

log = structlog.get_logger(__name__)

T = TypeVar("T")

ADDRESS: Final = "address"
"""The kind of its leases."""
GATEWAY: Final = IPv4Address("192.0.0.1")
GUEST: Final = IPv4Address("192.0.0.2")
GUEST_PREFIX: Final = 29
"""Addresses that no network outside uses (RFC 7335), the same in every machine."""
GUEST_MAC: Final = "06:00:c0:00:00:02"
KERNEL_ADDRESS: Final = f"{GUEST}::{GATEWAY}:255.255.255.248::eth0:off:{GATEWAY}"
"""For ``ip=`` of a machine's kernel; its name server is the last part."""


@dataclass(slots=True)
class Line:
    """A machine's network namespace. ``number`` 0: it leads nowhere and has no TAP."""

    namespace: int
    number: int = 0
    port: str = ""
    filter: Nftables | None = None
    server: names.NameServer | None = None
    sockets: tuple[socket.socket, socket.socket] | None = None

    @property
    def path(self) -> str:
        """For a program that is to join it, as long as this process has it."""
        return f"/proc/{os.getpid()}/fd/{self.namespace}"


class VmNetwork:
    """All namespaces of one daemon's machines. Work on namespaces and rules happens in one thread of its own."""

    def __init__(
        self,
        leases: Leases,
        bridge_name: str = "novabr0",
        subnet: str = "172.30.0.0/24",
        *,
        private: bool = True,
        blocked: Sequence[str] = (),
        resolvers: Sequence[str] = (),
        home: int | None = None,
    ) -> None:
        """``private``, ``blocked`` and ``resolvers`` as for the sandbox's network. ``home``: a descriptor of the network
        namespace to work in instead of this process's."""
        self._leases = leases
        self._bridge = bridge_name
        self._subnet = IPv4Network(subnet)
        self._private = private
        self._never = (*rules.NEVER, self._subnet, *(IPv4Network(text, strict=False) for text in blocked))
        self._resolvers = resolvers
        self._home = home
        self._uses = itertools.count(secrets.randbelow(1 << 31) + 1)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nova-vm-network")
        self._own = -1
        self._joined = 0
        self.shapes = False
        """this host can limit what a machine sends and gets"""

    async def start(self, *, bridge: bool = True) -> None:
        """See what this host can, and make the bridge and the host's rules; without ``bridge`` only when the first machine
        needs them. Raises NovaError, OSError when this host cannot."""
        await self._run(self._look)
        if bridge:
            await self._run(self._join)

    async def close(self) -> None:
        """Remove bridge and rules, unless another daemon uses them."""
        await self._run(self._close)
        self._thread.shutdown()

    async def lease(self, policy: NetworkPolicy, owner: int, net_mbps: int = 0) -> Line:
        """A namespace confined to ``policy``, and to ``net_mbps`` Mbit/s each way (0: not limited); its TAP may be opened by the
        host user ``owner``. An offline one has no TAP.

        Raises NovaError ``capacity`` or ``unsupported``, OSError.
        """
        if policy.offline:
            return Line(await self._made(self._namespace))
        chain = rules.compile_policy(
            policy, slot=filtering.SLOT, use=next(self._uses) & 0xFFFFFFFF or 1, private=self._private
        )
        line = await self._made(functools.partial(self._make, chain, owner, net_mbps))
        if chain is not None and line.sockets is not None:
            line.server = self._name_server(line, chain)
            await line.server.start(*line.sockets)
        return line

    async def tap(self, line: Line) -> int:
        """A descriptor of its TAP, which is the caller's. Raises OSError."""
        return await self._run(lambda: self._tap(line))

    async def release(self, line: Line) -> None:
        """Take it back, once the machine's process is dead. Idempotent."""
        if line.server is not None:
            await line.server.close()
            line.server = None
        await self._run(lambda: self._end(line))

    async def _made(self, make: Callable[[], T]) -> T:
        """A cancellation waits for what is being made and takes it back."""
        making = asyncio.ensure_future(self._run(make))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait({making})
            if making.exception() is None:
                made = making.result()
                await self.release(made if isinstance(made, Line) else Line(made))  # type: ignore[arg-type]
            raise

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _name_server(self, line: Line, chain: rules.Chain) -> names.NameServer:
        async def pin(found: list[rules.NameRule], addresses: list[IPv4Address], seconds: int) -> None:
            text = rules.pin(filtering.TABLE, filtering.SLOT, found, addresses, seconds)
            await self._run(lambda: line.filter.apply(text) if line.filter is not None else None)

        def refused(address: IPv4Address) -> bool:
            if any(address in network for network in self._never):
                return True
            private = any(address in network for network in rules.PRIVATE)
            return private and not self._private and not any(address in network for network in chain.private)

        return names.NameServer(chain.names, names.upstream(self._resolvers), pin, refused)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        if self._home is not None:
            kernel.setns(self._home, kernel.CLONE_NEWNET)
        self._own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        namespace = self._namespace()
        try:
            with self._inside(namespace):
                self._apply(f"add table inet {filtering.TABLE}\n")
                self.shapes = _can_shape()
        finally:
            os.close(namespace)

    def _join(self) -> None:
        gateway = self._subnet.network_address + 1
        with self._leases.joining(f"bridge {self._bridge}") as joined:
            bridge.ensure_bridge(self._bridge, gateway, self._subnet.prefixlen)
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            self._apply(filtering.host_rules(self._bridge, self._subnet))
        self._joined = joined

    def _apply(self, text: str) -> None:
        with contextlib.closing(Nftables()) as nftables:
            nftables.apply(text)

    def _close(self) -> None:
        if self._own < 0:
            return
        os.close(self._own)
        self._own = -1
        if not self._joined:
            return
        with self._leases.leaving(f"bridge {self._bridge}", self._joined) as last:
            if last:
                bridge.remove(self._bridge)
                self._apply(filtering.no_host_rules(self._bridge))
        self._joined = 0

    def _namespace(self) -> int:
        kernel.unshare(kernel.CLONE_NEWNET)
        try:
            for place in ("all", "default"):
                with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                    Path(f"/proc/sys/net/ipv6/conf/{place}/disable_ipv6").write_text("1")
            loopback_up()
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            kernel.setns(self._own, kernel.CLONE_NEWNET)

    def _tap(self, line: Line) -> int:
        with self._inside(line.namespace):
            return bridge.open_tap()

    def _make(self, chain: rules.Chain | None, owner: int, net_mbps: int) -> Line:
        if not self._joined:
            self._join()
        number = self._leases.take(ADDRESS, 2, self._subnet.num_addresses - 2)
        with contextlib.ExitStack() as undo:
            undo.callback(self._leases.release, ADDRESS, number)
            line = Line(self._namespace())
            undo.callback(self._end, line)
            line.port = f"{self._bridge[:9]}-{number:x}"
            bridge.attach(self._bridge, line.port, line.namespace)
            with self._inside(line.namespace):
                self._furnish(line, chain, owner, number)
                if net_mbps:
                    _hold(net_mbps)
            line.number = number
            undo.pop_all()
        return line

    def _furnish(self, line: Line, chain: rules.Chain | None, owner: int, number: int) -> None:
        line.filter = Nftables()
        line.filter.apply(
            filtering.machine_rules(
                chain, gateway=GATEWAY, never=self._never, private=self._private, resolver=self._resolver()
            )
        )
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        bridge.furnish(self._subnet.network_address + number, self._subnet.prefixlen, self._subnet.network_address + 1)
        bridge.add_tap(GATEWAY, GUEST_PREFIX, owner)
        if chain is not None and chain.names:
            line.sockets = _listen()

    def _resolver(self) -> IPv4Address | None:
        servers = self._resolvers or host_resolvers()
        usable = (IPv4Address(server) for server in servers if ":" not in server)
        return next((server for server in usable if not server.is_loopback), None)

    def _end(self, line: Line) -> None:
        if line.port:
            bridge.remove(line.port)
            line.port = ""
        if line.filter is not None:
            line.filter.close()
            line.filter = None
        for sock in line.sockets or ():
            sock.close()
        line.sockets = None
        if line.namespace >= 0:
            os.close(line.namespace)
            line.namespace = -1
        if line.number:
            self._leases.release(ADDRESS, line.number)
            line.number = 0

    @contextlib.contextmanager
    def _inside(self, namespace: int) -> Iterator[None]:
        kernel.setns(namespace, kernel.CLONE_NEWNET)
        try:
            yield
        finally:
            kernel.setns(self._own, kernel.CLONE_NEWNET)


def _can_shape() -> bool:
    """Tried on the loopback of the calling thread's namespace, which is nobody's."""
    try:
        with Netlink() as netlink:
            netlink.shape("lo", 1)
    except OSError as error:
        log.info("bandwidth cannot be limited by this host's kernel", reason=str(error))
        return False
    return True


def _hold(net_mbps: int) -> None:
    """Both ways of a machine, in the namespace of the calling thread."""
    with Netlink() as netlink:
        for name in (bridge.TAP, bridge.UPLINK):
            netlink.shape(name, net_mbps)


def _listen() -> tuple[socket.socket, socket.socket]:
    """Where a machine asks for names, in the namespace of the calling thread."""
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        datagrams.bind((str(GATEWAY), 53))
        return datagrams, socket.create_server((str(GATEWAY), 53))
    except OSError:
        datagrams.close()
        raise
