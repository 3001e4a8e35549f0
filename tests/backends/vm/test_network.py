"""What machines reach and do not reach: real packets through a machine's TAP, rules and bridge, on a host of our own."""

import functools
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import dns.message
import dns.rrset
import pytest
from pyroute2 import IPRoute

from nova.domain.function import EgressRule, NetworkPolicy
from nova.execution.backends.sandbox import names
from nova.execution.backends.vm import bridge
from nova.execution.backends.vm.leases import Leases
from nova.execution.backends.vm.network import ADDRESS, VmNetwork
from tests.backends.vm.ground import Space, guest, reaches

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="making interfaces needs root")]

OUTSIDE = "198.51.100.7"
PRIVATE = "10.66.0.7"
REFUSED = 5


@pytest.fixture(scope="module")
def host() -> Iterator[Space]:
    """It has an address of its own and a way to two servers outside, one of them with a private address."""
    host, world = Space(), Space()

    def wire() -> None:
        with IPRoute() as route:
            route.link("add", ifname="up0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": world.descriptor})
            index = route.link_lookup(ifname="up0")[0]
            route.addr("add", index=index, address="203.0.113.1", prefixlen=24)
            route.link("set", index=index, state="up")
            route.route("add", dst="default", gateway="203.0.113.2")

    def serve() -> list[socket.socket]:
        with IPRoute() as route:
            index = route.link_lookup(ifname="eth0")[0]
            route.addr("add", index=index, address="203.0.113.2", prefixlen=24)
            for address in (OUTSIDE, PRIVATE, "169.254.169.254"):
                route.addr("add", index=index, address=address, prefixlen=32)
            route.link("set", index=index, state="up")
        return [socket.create_server(("0.0.0.0", port)) for port in (80, 81)]

    host.do(wire)
    servers = world.do(serve)
    on_host = host.do(lambda: socket.create_server(("0.0.0.0", 5432)))
    yield host
    for server in (*servers, on_host):
        server.close()
    host.close()
    world.close()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Leases:
    return Leases(tmp_path_factory.mktemp("leases"), "a")


@pytest.fixture(scope="module")
async def network(anyio_backend: str, host: Space, table: Leases) -> AsyncIterator[VmNetwork]:
    made = VmNetwork(table, home=host.descriptor)
    await made.start()
    yield made
    await made.close()
    assert host.do(interfaces) == {"lo", "up0"}


def interfaces() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


RULE = EgressRule(host=OUTSIDE, port=80, protocol="tcp")
POLICIES = {
    "open": (NetworkPolicy(), {(OUTSIDE, 80), (OUTSIDE, 81), (PRIVATE, 80)}),
    "one rule": (NetworkPolicy(egress_rules=(RULE,)), {(OUTSIDE, 80)}),
    "strict with a rule": (NetworkPolicy(isolation_mode="strict", egress_rules=(RULE,)), {(OUTSIDE, 80)}),
    "private only": (NetworkPolicy(deny_external_access=True), {(PRIVATE, 80)}),
}


@pytest.mark.host_side("firecracker", "network")
@pytest.mark.parametrize("name", POLICIES)
async def test_a_machine_reaches_what_its_policy_allows_and_nothing_else(network: VmNetwork, name: str) -> None:
    """BE3."""
    policy, allowed = POLICIES[name]
    line = await network.lease(policy, 0)
    try:
        with guest(line) as inside:
            for target in ((OUTSIDE, 80), (OUTSIDE, 81), (PRIVATE, 80)):
                timeout_s = 5.0 if target in allowed else 0.2
                found = inside.do(functools.partial(reaches, *target, timeout_s))
                assert found == (target in allowed), target
    finally:
        await network.release(line)


async def test_host_neighbours_and_metadata_are_out_of_reach_under_every_policy(
    network: VmNetwork, host: Space
) -> None:
    """BE3."""
    first, second = (
        await network.lease(NetworkPolicy(isolation_mode="none"), 0),
        await network.lease(NetworkPolicy(), 0),
    )
    try:
        with guest(first) as one, guest(second) as other:
            server = other.do(lambda: socket.create_server(("0.0.0.0", 80)))
            assert one.do(lambda: reaches(OUTSIDE, 80, 5.0))
            for address in ("172.30.0.1", "203.0.113.1", f"172.30.0.{second.number}", "192.0.0.1"):
                for port in (5432, 80):
                    assert not one.do(functools.partial(reaches, address, port, 0.1)), (address, port)
            assert not one.do(lambda: reaches("169.254.169.254", 80, 0.1))
            assert not host.do(lambda: reaches(f"172.30.0.{second.number}", 80, 0.1))
            server.close()
    finally:
        await network.release(first)
        await network.release(second)


async def test_a_machine_without_network_has_no_interface(network: VmNetwork) -> None:
    line = await network.lease(NetworkPolicy(isolation_mode="strict"), 0)
    space = Space(line.namespace)
    assert space.do(interfaces) == {"lo"}
    space.close()
    await network.release(line)
    await network.release(line)


async def test_a_rule_by_name_opens_what_the_name_answers(network: VmNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine asks its gateway; what is answered is open when the answer arrives, and other names have none."""
    resolver, stop = _resolver(OUTSIDE)
    port = resolver.getsockname()[1]
    upstream = names.upstream
    monkeypatch.setattr(names, "upstream", lambda _: upstream(("127.0.0.1",), port=port))
    policy = NetworkPolicy(egress_rules=(EgressRule(host="example.com", port=80, protocol="tcp"),))
    line = await network.lease(policy, 0)
    try:
        with guest(line) as inside:
            assert not inside.do(lambda: reaches(OUTSIDE, 80, 0.1))
            assert (await inside.later(lambda: _ask("other.org")))[3] & 0xF == REFUSED
            assert socket.inet_aton(OUTSIDE) in await inside.later(lambda: _ask("example.com"))
            assert inside.do(lambda: reaches(OUTSIDE, 80, 5.0))
            assert not inside.do(lambda: reaches(OUTSIDE, 81, 0.1))
    finally:
        await network.release(line)
        stop()


def _resolver(address: str) -> tuple[socket.socket, Callable[[], None]]:
    """A name server that gives every name the same address."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))

    def serve() -> None:
        while question := sock.recvfrom(512):
            if not question[0]:
                return
            query = dns.message.from_wire(question[0])
            answer = dns.message.make_response(query)
            answer.answer = [dns.rrset.from_text(query.question[0].name, 60, "IN", "A", address)]
            sock.sendto(answer.to_wire(), question[1])

    serving = threading.Thread(target=serve)
    serving.start()

    def stop() -> None:
        sock.sendto(b"", sock.getsockname())
        serving.join()
        sock.close()

    return sock, stop


def _ask(name: str) -> bytes:
    question = dns.message.make_query(name, "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(question, ("192.0.0.1", 53))
        return sock.recv(512)


async def test_a_failure_while_a_line_is_made_leaves_nothing(
    network: VmNetwork, host: Space, table: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BE1."""

    def fail(*_: object) -> None:
        raise OSError("injected")

    for step in ("attach", "furnish", "add_tap"):
        with monkeypatch.context() as patch:
            patch.setattr(bridge, step, fail)
            with pytest.raises(OSError, match="injected"):
                await network.lease(NetworkPolicy(), 0)
        assert host.do(interfaces) == {"lo", "up0", "novabr0"}
        assert table.held(ADDRESS) == []


async def test_the_bridge_stays_while_another_daemon_has_machines_on_it(host: Space, tmp_path: Path) -> None:
    ours = VmNetwork(Leases(tmp_path, "a"), "novabr2", "172.30.2.0/24", home=host.descriptor)
    theirs = VmNetwork(Leases(tmp_path, "b"), "novabr2", "172.30.2.0/24", home=host.descriptor)
    await ours.start()
    await theirs.start()
    line = await theirs.lease(NetworkPolicy(), 0)
    await ours.close()
    with guest(line) as inside:
        assert inside.do(lambda: reaches(OUTSIDE, 80, 5.0))
    await theirs.release(line)
    await theirs.close()
    assert "novabr2" not in host.do(interfaces)
