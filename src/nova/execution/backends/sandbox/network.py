"""Ways out for instances that may have one: prepared network namespaces, each with an address of its own.

A *slot* is a network namespace joined to the host by a veth pair with a /31 of the node's block of addresses. Slots are
made off the path of calls and used again. One nftables table per block holds the rules (:mod:`rules`); they exist before
the first slot does. A slot whose function has a policy of its own gets a chain, one with rules by name a name server
(:mod:`names`), one with a bandwidth a token bucket at both ends. Everything but the table dies with the daemon's descriptors.

A block belongs to whoever holds the lock on its file, so two daemons on a host never share an address or a name.
"""

import asyncio
import contextlib
import fcntl
import functools
import itertools
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

import structlog

from nova.domain.function import NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.sandbox import kernel, names, rules
from nova.execution.backends.sandbox.namespaces import loopback_up
from nova.execution.backends.sandbox.netlink import Netlink
from nova.execution.backends.sandbox.nftables import Nftables
from nova.execution.backends.sandbox.rootfs import host_resolvers
from nova.execution.backends.sandbox.rules import INTERFACE, Chain, NameRule
from nova.service import Background

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEFAULT_SUBNET = "172.31.0.0/16"
BLOCK_PREFIX = 20
"""One daemon's share of the subnet: 2048 slots."""
SLOT_PREFIX = 31
KEEP_FREE = 256
"""Free slots above this many are taken down, slowly: the kernel ends network namespaces one after the other, and nothing
can be made meanwhile. One takes 0.1 MiB of the kernel's memory."""
SPARE = 16
"""Free slots below this many are made, off the path of calls."""
_DROP_EACH_S = 0.05
LOCK_DIRECTORY = Path("/run/lock/nova-sandbox")
_OURS = re.compile(rf"(?:nova_|{INTERFACE})([0-9a-f]{{8}})(?:-[0-9a-f]+)?")


def _tag(block: IPv4Network) -> str:
    """What the names of a block's table and interfaces contain."""
    return block.network_address.packed.hex()


def _interfaces(tag: str) -> str:
    """How the names of a block's interfaces begin."""
    return f"{INTERFACE}{tag}-"


@dataclass(slots=True)
class Slot:
    """A prepared way out. ``namespace`` is the descriptor of its network namespace."""

    number: int
    namespace: int
    interface: str
    address: IPv4Address
    chain: Chain | None = None
    """what it has of its own in the table"""
    server: names.NameServer | None = None
    """answers at :data:`names.ADDRESS` inside; a guest whose slot has one must be told to ask there"""
    shaped: bool = False
    sockets: tuple[socket.socket, socket.socket] | None = None
    """the name server's: datagrams, connections"""
    touched: bool = False
    """its user has, or was about to get, some of the above"""
    lent: bool = False
    """the namespace is somebody else's, and the slot is not used again"""

    @property
    def tag(self) -> str:
        """What its chain and sets are called by."""
        return f"{self.number:x}"


class Network:
    """The slots of one daemon. All work on namespaces and rules happens in one thread of its own."""

    def __init__(
        self,
        subnet: str = DEFAULT_SUBNET,
        *,
        locks: Path = LOCK_DIRECTORY,
        private: bool = True,
        blocked: Sequence[str] = (),
        resolvers: Sequence[str] = (),
        spare: int = SPARE,
    ) -> None:
        """``private`` false: private networks are reachable only where a rule names them by address; ``blocked`` never are.

        ``resolvers``: name servers for rules by name; none: the host's. ``spare``: as :data:`SPARE`; 0 where every slot is
        made in a namespace that is there already.
        """
        self._spare = spare
        self._subnet = IPv4Network(subnet)
        self._locks = locks
        self._private = private
        self._never = (*rules.NEVER, *(IPv4Network(text, strict=False) for text in blocked))
        self._resolvers = resolvers
        self._uses = itertools.count(secrets.randbelow(1 << 31) + 1)
        self._shapes = False
        self._background = Background("network")
        self._tidying: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nova-network")
        self._free: list[Slot] = []
        self._unused: list[int] = []
        self._block = self._subnet
        self._lock_fd = -1
        self._host_namespace = -1

    @property
    def table(self) -> str:
        return f"nova_{_tag(self._block)}"

    @property
    def shapes(self) -> bool:
        """Whether the kernel can limit bandwidth."""
        return self._shapes

    async def start(self) -> None:
        """Lease a block and install its rules. Raises OSError or NovaError ``capacity`` when that is not possible."""
        await self._run(self._start)
        self._tidy_up()

    async def close(self) -> None:
        await self._background.close()
        await self._run(self._close)
        self._thread.shutdown()

    async def lease(self, namespace: int | None = None) -> Slot:
        """A slot that reaches everything but what no instance may reach. With ``namespace`` it is made in that one.

        Raises NovaError ``capacity`` when the block has no address left.
        """
        if self._free and namespace is None:
            self._tidy_up()
            return self._free.pop()
        if not self._unused:
            raise NovaError("capacity", f"all network addresses of this node ({self._block}) are in use")
        number = self._unused.pop()
        try:
            return await self._made(lambda: self._make(number, namespace))
        except OSError:
            self._unused.append(number)
            raise

    async def _made(self, make: Callable[[], Slot]) -> Slot:
        """A slot that nobody waits for any more serves the next."""
        making = asyncio.ensure_future(self._run(make))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            making.add_done_callback(self._keep)
            raise

    def _keep(self, made: "asyncio.Future[Slot]") -> None:
        if not made.cancelled() and made.exception() is None:
            self._background.spawn("keep", self.release(made.result()))

    async def restrict(self, slot: Slot, policy: NetworkPolicy, net_mbps: int = 0) -> None:
        """Confine ``slot`` to ``policy``, and to ``net_mbps`` Mbit/s each way (0: not limited); in force when this returns.

        Nothing is done for a policy that adds nothing. After a failure the slot has to be released. Raises OSError.
        """
        use = next(self._uses) & 0xFFFFFFFF or 1
        chain = rules.compile_policy(policy, slot=slot.tag, use=use, private=self._private)
        if chain is None and not net_mbps:
            return
        slot.touched = True
        await self._run(lambda: self._confine(slot, chain, net_mbps))
        if chain is not None and slot.sockets is not None:
            slot.server = self._name_server(slot, chain)
            await slot.server.start(*slot.sockets)

    async def release(self, slot: Slot) -> None:
        """Take a slot back once every process in it is dead."""
        if slot.server is not None:
            await slot.server.close()
            slot.server = None
        if slot.touched:
            # In the thread that confines, so after it, also when whoever asked for that has been cancelled.
            await self._run(lambda: self._relax(slot))
        if slot.lent:
            self._abandon(slot)
        else:
            self._free.append(slot)
        self._tidy_up()

    def _tidy_up(self) -> None:
        untidy = not self._spare <= len(self._free) <= KEEP_FREE
        if untidy and (self._tidying is None or self._tidying.done()):
            self._tidying = self._background.spawn("tidy", self._tidy())

    def _abandon(self, slot: Slot) -> None:
        """Its interface ends with its namespace, some time later. Deleting it would hold the thread for 30 ms."""
        os.close(slot.namespace)
        self._unused.insert(0, slot.number)

    async def _tidy(self) -> None:
        """Bring the number of free slots between :data:`SPARE` and :data:`KEEP_FREE`; those used last stay on top."""
        while True:
            if len(self._free) > KEEP_FREE:
                slot = self._free.pop(0)
                self._abandon(slot)
                await asyncio.sleep(_DROP_EACH_S)
            elif len(self._free) < self._spare and len(self._unused) > self._spare:
                number = self._unused.pop()
                try:
                    await self._run(functools.partial(self._make_spare, number))
                except OSError as error:
                    self._unused.append(number)
                    log.warning("no way out could be made", reason=str(error))
                    return
            else:
                return

    def _name_server(self, slot: Slot, chain: Chain) -> names.NameServer:
        async def pin(found: list[NameRule], addresses: list[IPv4Address], seconds: int) -> None:
            await self._run(lambda: self._nftables.apply(rules.pin(self.table, slot.tag, found, addresses, seconds)))

        def refused(address: IPv4Address) -> bool:
            if any(address in network for network in (*self._never, self._subnet)) or _is_of_this_host(address):
                return True
            private = any(address in network for network in rules.PRIVATE)
            return private and not self._private and not any(address in network for network in chain.private)

        # Read anew for each: the host's name servers may change while the daemon runs.
        return names.NameServer(chain.names, names.upstream(self._resolvers), pin, refused)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._host_namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._nftables = Nftables()
        self._locks.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lease_block()
        self._clean_up_after_the_dead()
        self._unused = list(range(self._block.num_addresses >> (32 - SLOT_PREFIX)))
        self._unused.reverse()
        log.debug("network block leased", block=str(self._block))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        base = rules.base_rules(
            self.table,
            _interfaces(_tag(self._block)),
            self._block,
            never=self._never,
            private=self._private,
            resolvers=host_resolvers(),
        )
        self._nftables.apply(base)
        self._shapes = self._can_shape()

    def _can_shape(self) -> bool:
        namespace = self._new_namespace()
        try:
            with self._inside(namespace), Netlink() as netlink:
                netlink.shape("lo", 1)
        except OSError as error:
            log.warning("limits.net_mbps is not available", reason=str(error))
            return False
        finally:
            os.close(namespace)
        return True

    def _lease_block(self) -> None:
        blocks = self._subnet.subnets(new_prefix=max(BLOCK_PREFIX, self._subnet.prefixlen))
        for block in blocks:
            descriptor = self._try_lock(_tag(block))
            if descriptor is not None:
                self._block, self._lock_fd = block, descriptor
                return
        raise NovaError("capacity", f"every block of addresses in {self._subnet} is in use on this host")

    def _try_lock(self, tag: str) -> int | None:
        descriptor = os.open(self._locks / tag, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _clean_up_after_the_dead(self) -> None:
        """Rules and interfaces of blocks that nobody holds, or that were left in the one just leased, go."""
        tables = self._nftables.tables()
        with Netlink() as netlink:
            names = netlink.names()
        tags = {match[1] for name in [*tables, *names] if (match := _OURS.fullmatch(name))}
        for tag in tags:
            if tag == _tag(self._block):
                self._forget(tag, tables)
            elif (descriptor := self._try_lock(tag)) is not None:
                self._forget(tag, tables)
                os.close(descriptor)

    def _forget(self, tag: str, tables: list[str]) -> None:
        with Netlink() as netlink:
            netlink.delete_group(int(tag, 16))
            for name in netlink.names():
                if name.startswith(_interfaces(tag)):
                    netlink.delete(name)
        if f"nova_{tag}" in tables:
            # declared first: another process that starts may have deleted it meanwhile
            self._nftables.apply(f"add table inet nova_{tag}\ndelete table inet nova_{tag}\n")

    def _close(self) -> None:
        self._forget(_tag(self._block), [self.table])
        while self._free:
            os.close(self._free.pop().namespace)
        self._nftables.close()
        os.close(self._host_namespace)
        os.close(self._lock_fd)

    def _make(self, number: int, lent: int | None = None) -> Slot:
        base = self._block.network_address + number * (1 << (32 - SLOT_PREFIX))
        gateway, address = base, base + 1
        name = f"{_interfaces(_tag(self._block))}{number:x}"
        namespace = self._new_namespace() if lent is None else self._take(lent)
        try:
            with Netlink() as netlink:
                netlink.delete(name)
                netlink.add_veth(name, "eth0", namespace, group=int(_tag(self._block), 16))
                netlink.add_address(name, gateway, SLOT_PREFIX)
                netlink.set_up(name)
            with self._inside(namespace), Netlink() as netlink:
                netlink.add_address("eth0", address, SLOT_PREFIX)
                netlink.set_up("eth0")
                netlink.add_default_route(gateway, "eth0")
        except OSError:
            os.close(namespace)
            raise
        return Slot(number, namespace, name, address, lent=lent is not None)

    def _make_spare(self, number: int) -> None:
        # Here and not where it is awaited, so that a cancellation loses no slot.
        self._free.insert(0, self._make(number))

    def _new_namespace(self) -> int:
        kernel.unshare(kernel.CLONE_NEWNET)
        try:
            _disable_ipv6()
            loopback_up()
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            kernel.setns(self._host_namespace, kernel.CLONE_NEWNET)

    def _take(self, namespace: int) -> int:
        with self._inside(namespace):
            _disable_ipv6()
        return os.dup(namespace)

    @contextlib.contextmanager
    def _inside(self, namespace: int) -> Iterator[None]:
        kernel.setns(namespace, kernel.CLONE_NEWNET)
        try:
            yield
        finally:
            kernel.setns(self._host_namespace, kernel.CLONE_NEWNET)

    def _confine(self, slot: Slot, chain: Chain | None, net_mbps: int) -> None:
        """Rules and bandwidth; the sockets of a name server when there are rules by name."""
        if chain is not None:
            self._nftables.apply(rules.add_chain(self.table, slot.tag, slot.interface, chain))
            slot.chain = chain
        if net_mbps:
            slot.shaped = True
            with Netlink() as netlink:
                netlink.shape(slot.interface, net_mbps)
            with self._inside(slot.namespace), Netlink() as netlink:
                netlink.shape("eth0", net_mbps)
        if chain is not None and chain.names:
            with self._inside(slot.namespace):
                slot.sockets = names.listen()

    def _relax(self, slot: Slot) -> None:
        if slot.chain is not None:
            self._nftables.apply(rules.remove_chain(self.table, slot.tag, slot.interface, slot.chain))
            slot.chain = None
        if slot.shaped:
            with Netlink() as netlink:
                netlink.unshape(slot.interface)
            with self._inside(slot.namespace), Netlink() as netlink:
                netlink.unshape("eth0")
            slot.shaped = False
        for sock in slot.sockets or ():
            sock.close()
        slot.sockets = None
        slot.touched = False


def _disable_ipv6() -> None:
    """In the network namespace of this thread."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
        for kind in ("all", "default"):
            descriptor = os.open(f"/proc/sys/net/ipv6/conf/{kind}/disable_ipv6", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, b"1")
            finally:
                os.close(descriptor)


def _is_of_this_host(address: IPv4Address) -> bool:
    """Only an address of this host can be bound."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.bind((str(address), 0))
        except OSError:
            return False
    return True
