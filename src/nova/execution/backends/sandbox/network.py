"""Ways out for instances that may have one: prepared network namespaces, each with an address of its own.

A *slot* is a network namespace joined to the host by a veth pair with a /30 of the node's block of addresses. Slots are
made off the path of calls and used again. One nftables table per block holds the rules; they exist before the first slot
does: nothing reaches the host itself, other instances or link-local addresses, nothing new comes in, and a slot with a
policy of its own gets a chain. Everything but the table dies with the daemon's descriptors.

A block belongs to whoever holds the lock on its file, so two daemons on a host never share an address or a name.
"""

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import TypeVar

import structlog

from nova.domain.function import NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.sandbox import kernel
from nova.execution.backends.sandbox.namespaces import loopback_up
from nova.execution.backends.sandbox.netlink import Netlink

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEFAULT_SUBNET = "172.31.0.0/16"
BLOCK_PREFIX = 20
"""One daemon's share of the subnet: 1024 slots."""
SLOT_PREFIX = 30
KEEP_FREE = 32
"""Slots above this many are taken down when their instance ends."""
LOCK_DIRECTORY = Path("/run/lock/nova-sandbox")
INTERFACE = "nvs"
"""All interfaces of all daemons begin with this; instances of different daemons are strangers as well."""

_PRIVATE = "10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 100.64.0.0/10"
_NEVER = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4"


_OURS = re.compile(rf"(?:nova_|{INTERFACE})([0-9a-f]{{8}})(?:-[0-9a-f]+)?")


def _tag(block: IPv4Network) -> str:
    """What the names of a block's table and interfaces contain."""
    return block.network_address.packed.hex()


@dataclass(slots=True)
class Slot:
    """A prepared way out. ``namespace`` is the descriptor of its network namespace."""

    number: int
    namespace: int
    interface: str
    address: IPv4Address
    restricted: bool = False
    """it has a chain of its own in the table"""


def find_nft() -> str | None:
    return shutil.which("nft", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


class Network:
    """The slots of one daemon. All work on namespaces and rules happens in one thread of its own."""

    def __init__(self, subnet: str = DEFAULT_SUBNET, *, locks: Path = LOCK_DIRECTORY) -> None:
        self._subnet = IPv4Network(subnet)
        self._locks = locks
        self._nft = find_nft() or "nft"
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="nova-network")
        self._free: list[Slot] = []
        self._unused: list[int] = []
        self._block = self._subnet
        self._lock_fd = -1
        self._host_namespace = -1

    @property
    def table(self) -> str:
        return f"nova_{_tag(self._block)}"

    async def start(self) -> None:
        """Lease a block and install its rules. Raises OSError or NovaError ``capacity`` when that is not possible."""
        await self._run(self._start)

    async def close(self) -> None:
        await self._run(self._close)
        self._thread.shutdown()

    async def lease(self) -> Slot:
        """A slot that reaches everything but what no instance may reach.

        Raises NovaError ``capacity`` when the block has no address left.
        """
        if self._free:
            return self._free.pop()
        if not self._unused:
            raise NovaError("capacity", f"all network addresses of this node ({self._block}) are in use")
        number = self._unused.pop()
        try:
            return await self._run(lambda: self._make(number))
        except OSError:
            self._unused.append(number)
            raise

    async def restrict(self, slot: Slot, policy: NetworkPolicy) -> None:
        """Confine ``slot`` to ``policy``; in force when this returns. Nothing is done for a policy without rules."""
        rules = policy_rules(policy)
        if rules is not None:
            slot.restricted = True
            await self._run(lambda: self._apply(self._restriction(slot, rules)))

    async def release(self, slot: Slot) -> None:
        """Take a slot back once every process in it is dead."""
        if slot.restricted:
            await self._run(lambda: self._apply(self._relaxation(slot)))
            slot.restricted = False
        if len(self._free) < KEEP_FREE:
            self._free.append(slot)
        else:
            await self._run(lambda: self._drop(slot))
            self._unused.append(slot.number)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # -- in the thread -------------------------------------------------------------------------------------------

    def _start(self) -> None:
        self._host_namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._locks.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._lease_block()
        self._clean_up_after_the_dead()
        self._unused = list(range(self._block.num_addresses >> (32 - SLOT_PREFIX)))
        self._unused.reverse()
        log.debug("network block leased", block=str(self._block))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._apply(base_rules(self.table, self._block))

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
        tables = self._tables()
        with Netlink() as netlink:
            names = netlink.names()
        tags = {match[1] for name in [*tables, *names] if (match := _OURS.fullmatch(name))}
        for tag in tags:
            if tag == _tag(self._block):
                self._forget(tag, tables)
            elif (descriptor := self._try_lock(tag)) is not None:
                self._forget(tag, tables)
                os.close(descriptor)

    def _tables(self) -> list[str]:
        done = subprocess.run([self._nft, "list", "tables"], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"nft: {done.stderr.strip() or done.returncode}")
        return done.stdout.split()

    def _forget(self, tag: str, tables: list[str]) -> None:
        with Netlink() as netlink:
            for name in netlink.names():
                if name.startswith(f"{INTERFACE}{tag}-"):
                    netlink.delete(name)
        if f"nova_{tag}" in tables:
            self._apply(f"delete table inet nova_{tag}\n")

    def _close(self) -> None:
        while self._free:
            self._drop(self._free.pop())
        self._forget(_tag(self._block), [self.table])
        os.close(self._host_namespace)
        os.close(self._lock_fd)

    def _make(self, number: int) -> Slot:
        base = self._block.network_address + number * (1 << (32 - SLOT_PREFIX))
        gateway, address = base + 1, base + 2
        name = f"{INTERFACE}{_tag(self._block)}-{number:x}"
        namespace = self._new_namespace()
        try:
            with Netlink() as netlink:
                netlink.add_veth(name, "eth0", namespace)
                netlink.add_address(name, gateway, SLOT_PREFIX)
                netlink.set_up(name)
            kernel.setns(namespace, kernel.CLONE_NEWNET)
            try:
                with Netlink() as netlink:
                    netlink.add_address("eth0", address, SLOT_PREFIX)
                    netlink.set_up("eth0")
                    netlink.add_default_route(gateway, "eth0")
            finally:
                kernel.setns(self._host_namespace, kernel.CLONE_NEWNET)
        except OSError:
            os.close(namespace)
            raise
        return Slot(number, namespace, name, address)

    def _new_namespace(self) -> int:
        kernel.unshare(kernel.CLONE_NEWNET)
        try:
            with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
                Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
                Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
            loopback_up()
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            kernel.setns(self._host_namespace, kernel.CLONE_NEWNET)

    def _drop(self, slot: Slot) -> None:
        with Netlink() as netlink:
            netlink.delete(slot.interface)
        os.close(slot.namespace)

    def _restriction(self, slot: Slot, rules: list[str]) -> str:
        chain = f"slot_{slot.number:x}"
        lines = "\n".join(rules)
        return (
            f"table inet {self.table} {{\nchain {chain} {{\n{lines}\n}}\n}}\n"
            f'add element inet {self.table} policies {{ "{slot.interface}" : goto {chain} }}\n'
        )

    def _relaxation(self, slot: Slot) -> str:
        chain = f"slot_{slot.number:x}"
        return (
            f'delete element inet {self.table} policies {{ "{slot.interface}" }}\n'
            f"flush chain inet {self.table} {chain}\ndelete chain inet {self.table} {chain}\n"
        )

    def _apply(self, rules: str) -> None:
        """One transaction: all of ``rules`` or none."""
        done = subprocess.run([self._nft, "-f", "-"], input=rules, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"nft: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}")


def base_rules(table: str, addresses: IPv4Network) -> str:
    """The rules that hold for every slot."""
    every = f'"{INTERFACE}*"'
    return f"""
table inet {table} {{
  map policies {{ type ifname : verdict; }}
  chain host {{
    type filter hook input priority filter - 10; policy accept;
    iifname {every} drop
  }}
  chain ways {{
    type filter hook forward priority filter - 10; policy accept;
    iifname {every} jump out
    oifname {every} ct state established,related accept
    oifname {every} drop
  }}
  chain out {{
    meta nfproto ipv6 drop
    oifname {every} drop
    ip daddr {{ {_NEVER} }} drop
    iifname vmap @policies
    accept
  }}
  chain address {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {addresses} oifname != {every} masquerade
  }}
}}
"""


def policy_rules(policy: NetworkPolicy) -> list[str] | None:
    """The chain of a policy, last rule included; None when the policy adds nothing to :func:`base_rules`.

    Raises NovaError ``unsupported`` for a rule with an IPv6 address: instances have none.
    """
    lines = [f"ip daddr != {{ {_PRIVATE} }} drop"] if policy.deny_external_access else []
    if policy.isolation_mode != "none" and (policy.egress_rules or policy.isolation_mode == "strict"):
        for index, rule in enumerate(policy.egress_rules):
            target = ip_network(rule.host, strict=False)
            if not isinstance(target, IPv4Network):
                field = f"network_policy.egress_rules[{index}].host"
                raise NovaError("unsupported", f"{field}: the sandbox backend gives instances no IPv6 address")
            protocols = "{ tcp, udp }" if rule.protocol == "any" else rule.protocol
            match = f"ip daddr {target}"
            if rule.port:
                match += f" meta l4proto {protocols} th dport {rule.port}"
            elif rule.protocol != "any":
                match += f" meta l4proto {protocols}"
            lines.append(f"{match} accept")
        lines.append("drop")
    elif lines:
        lines.append("accept")
    return lines or None
