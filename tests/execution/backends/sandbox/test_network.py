"""Network policies, tried from inside instances against hosts that the test makes."""

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import EgressRule, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.sandbox import nftables
from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.execution.backends.sandbox.netlink import Netlink
from nova.execution.backends.sandbox.network import Network
from nova.execution.backends.sandbox.rules import check_policy
from tests.execution.backends.sandbox.harness import OFFLINE, Function, load
from tests.execution.backends.sandbox.world import World, world

pytestmark = [pytest.mark.anyio, pytest.mark.root]

PROBE = """
    import concurrent.futures, socket

    def probe(target):
        kind, host, port = target
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as sock:
            sock.settimeout(0.4)
            try:
                sock.connect((host, port))
                if kind == "udp":
                    sock.send(b"ping")
                else:
                    sock.settimeout(5)
                return sock.recv(16) != b""
            except OSError:
                return False

    def handler(event):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            return list(pool.map(probe, event))
"""


SMALL = "172.30.255.252/30"
"""Two slots; nobody else's."""


@pytest.fixture(scope="module")
def outside() -> Iterator[World]:
    with world() as place:
        yield place


async def reach(
    backend: SandboxBackend, folder: Path, policy: NetworkPolicy, targets: list[tuple[str, str, int]]
) -> list[bool]:
    """Which targets a fresh instance under ``policy`` gets an answer from."""
    function = await load(backend, folder, PROBE, network=policy)
    answers: list[bool] = await function.value(targets)
    await function.stop()
    return answers


def tcp(host: str, port: int = 8080) -> tuple[str, str, int]:
    return ("tcp", host, port)


async def test_offline(sandbox: SandboxBackend, tmp_path: Path, outside: World) -> None:
    """BE3: strict without rules reaches nothing, yet has a loopback of its own."""
    assert (
        await reach(sandbox, tmp_path, OFFLINE, [tcp(outside.near), tcp(outside.far), tcp("127.0.0.1")]) == [False] * 3
    )
    function = await load(
        sandbox,
        tmp_path,
        """
        import socket
        def handler():
            with socket.create_server(("127.0.0.1", 0)) as door:
                with socket.create_connection(door.getsockname(), 1):
                    return sorted(name for _, name in socket.if_nameindex())
        """,
    )
    result = await function.answer()
    # Listing interfaces needs netlink, which is closed; the connection before it worked.
    assert result.error is None or result.error.type == "OSError"
    await function.stop()


async def test_egress_only_without_rules_reaches_the_world(
    sandbox: SandboxBackend, tmp_path: Path, outside: World
) -> None:
    """BE3: the default policy reaches other hosts."""
    targets = [tcp(outside.near), tcp(outside.other, 9090), tcp(outside.far), ("udp", outside.near, 5353)]
    assert await reach(sandbox, tmp_path, NetworkPolicy(), targets) == [True] * 4


@pytest.mark.parametrize("mode", ["egress-only", "none"])
async def test_the_host_and_metadata_are_always_out_of_reach(
    sandbox: SandboxBackend, tmp_path: Path, outside: World, mode: Any
) -> None:
    """BE3: no policy reaches the host under any of its addresses, or link-local services."""
    with socket.create_server(("0.0.0.0", 0)) as door:
        port = door.getsockname()[1]
        function = await load(sandbox, tmp_path, PROBE, network=NetworkPolicy(isolation_mode=mode))
        assert function.instance.slot is not None
        gateway = str(function.instance.slot.address - 1)
        own = {address[4][0] for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
        hosts = [
            gateway,
            outside.router,
            "127.0.0.1",
            *sorted(str(name) for name in own if not str(name).startswith("127.")),
        ]
        targets = [tcp(host, port) for host in hosts] + [tcp(outside.metadata)]
        assert await function.value(targets) == [False] * len(targets)
        assert await function.value([tcp(outside.near)]) == [True], "the way out itself works"
        await function.stop()


async def test_rules(sandbox: SandboxBackend, tmp_path: Path, outside: World) -> None:
    """BE3: with rules, exactly what they name is reached: by address, network, port and protocol."""
    rules = (EgressRule(outside.near, 8080, "tcp"), EgressRule(f"{outside.other}/32"))
    targets = {
        tcp(outside.near, 8080): True,
        tcp(outside.other, 8080): True,
        tcp(outside.other, 9090): True,
        tcp(outside.near, 9090): False,
        ("udp", outside.near, 5353): False,
        tcp(outside.far, 8080): False,
    }
    for policy in (NetworkPolicy(egress_rules=rules), NetworkPolicy(isolation_mode="strict", egress_rules=rules)):
        assert await reach(sandbox, tmp_path, policy, [*targets]) == [*targets.values()]
    datagrams = NetworkPolicy(egress_rules=(EgressRule("10.0.0.0/8", 5353, "udp"),))
    found = await reach(sandbox, tmp_path, datagrams, [("udp", outside.near, 5353), tcp(outside.near)])
    assert found == [True, False]


async def test_rules_end_with_the_instance(sandbox: SandboxBackend, tmp_path: Path, outside: World) -> None:
    """A way out that was narrowed for one function is whole for the next."""
    narrow = NetworkPolicy(egress_rules=(EgressRule(outside.near, 8080, "tcp"),))
    held: list[Function] = []
    function = await load(sandbox, tmp_path, PROBE, network=narrow)
    assert function.instance.slot is not None
    assert function.instance.slot.chain is not None
    number = function.instance.slot.number
    await function.stop()
    used: set[int] = set()
    while number not in used and len(used) < 20:
        following = await load(sandbox, tmp_path, PROBE, network=NetworkPolicy())
        assert await following.value([tcp(outside.other)]) == [True]
        assert following.instance.slot is not None
        assert following.instance.slot.number not in used
        used.add(following.instance.slot.number)
        held.append(following)
    assert number in used
    for following in held:
        await following.stop()


async def test_deny_external_access(sandbox: SandboxBackend, tmp_path: Path, outside: World) -> None:
    """BE3: only private addresses are left, with and without rules."""
    policy = NetworkPolicy(deny_external_access=True)
    assert await reach(sandbox, tmp_path, policy, [tcp(outside.near), tcp(outside.far)]) == [True, False]
    ruled = NetworkPolicy(deny_external_access=True, egress_rules=(EgressRule(outside.far), EgressRule(outside.other)))
    targets = [tcp(outside.far), tcp(outside.other), tcp(outside.near)]
    assert await reach(sandbox, tmp_path, ruled, targets) == [False, True, False]


async def test_instances_do_not_reach_each_other(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """BE3: an instance that listens is out of reach for others, and for the host."""
    listener = await load(
        sandbox,
        tmp_path,
        """
        import socket
        doors = []
        def handler():
            doors.append(socket.create_server(("0.0.0.0", 8080)))
        """,
        network=NetworkPolicy(isolation_mode="none"),
    )
    await listener.value()
    assert listener.instance.slot is not None
    address = str(listener.instance.slot.address)
    assert await reach(sandbox, tmp_path, NetworkPolicy(isolation_mode="none"), [tcp(address)]) == [False]
    await listener.stop()


async def test_no_ipv6(sandbox: SandboxBackend, tmp_path: Path) -> None:
    """The rules speak of IPv4; nothing gets out by the other family."""
    function = await load(
        sandbox, tmp_path, "def handler():\n    return open('/proc/net/if_inet6').read()", network=NetworkPolicy()
    )
    assert await function.value() == ""
    await function.stop()
    with pytest.raises(NovaError, match=r"egress_rules\[0\]\.host"):
        check_policy(NetworkPolicy(egress_rules=(EgressRule("2001:db8::/32"),)))


async def test_two_networks_on_a_host() -> None:
    """BE2: each takes a block of its own; the end of one leaves the other's rules and interfaces alone."""
    first, second = Network(), Network()
    await first.start()
    await second.start()
    try:
        one, two = await first.lease(), await second.lease()
        assert first.table != second.table
        assert one.address != two.address
    finally:
        await first.close()
    try:
        assert two.interface in [name for _, name in socket.if_nameindex()]
        assert second.table in _tables()
        assert first.table not in _tables()
    finally:
        os.close(one.namespace)
        await second.release(two)
        await second.close()
    assert second.table not in _tables()
    assert two.interface not in [name for _, name in socket.if_nameindex()]


async def test_the_block_of_a_killed_daemon_is_cleaned() -> None:
    """BE2: rules and interfaces that nobody holds go at the next start."""
    probe = Network(SMALL)
    await probe.start()
    table = probe.table
    interface = f"nvs{table.removeprefix('nova_')}-3ff"
    await probe.close()
    _nft("add", "table", "inet", table)
    with Netlink() as netlink:
        namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        netlink.add_veth(interface, "left-peer", namespace)
        os.close(namespace)
    following = Network()
    await following.start()
    try:
        assert interface not in [name for _, name in socket.if_nameindex()]
        assert table not in _tables()
    finally:
        await following.close()


@pytest.mark.parametrize("library", [True, False])
async def test_the_filter_by_library_and_by_program(monkeypatch: pytest.MonkeyPatch, library: bool) -> None:
    """Both change it as a whole or not at all, and say what was wrong."""
    if not library:
        monkeypatch.setattr(nftables, "_load", _no_library)
    table = f"nova_test{os.getpid():x}"
    nft = nftables.Nftables()
    try:
        nft.apply(f"table inet {table} {{ chain c {{ counter; }}; }}\n")
        assert table in nft.tables()
        with pytest.raises(OSError, match="nft: "):
            nft.apply(f"add chain inet {table} d\nadd rule inet {table} nowhere accept\n")
        assert "chain d" not in _nft("list", "table", "inet", table)
        nft.apply(f"delete table inet {table}\n")
        assert table not in nft.tables()
    finally:
        nft.close()


def _no_library() -> Any:
    raise OSError("not installed")


async def test_addresses_run_out() -> None:
    """A full block is ``capacity``, and a slot that comes back can be leased again."""
    network = Network(SMALL)
    await network.start()
    try:
        slots = [await network.lease() for _ in range(2)]
        with pytest.raises(NovaError) as full:
            await network.lease()
        assert full.value.code == "capacity"
        await network.release(slots.pop())
        again = await network.lease()
        await asyncio.gather(network.release(again), network.release(slots.pop()))
    finally:
        await network.close()


def _nft(*words: str) -> str:
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True).stdout


def _tables() -> list[str]:
    return _nft("list", "tables").split()
