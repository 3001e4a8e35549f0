"""Egress rules by name, tried from inside instances that want more than their rules give them."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import pytest

from nova.domain.function import EgressRule, NetworkPolicy
from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.execution.backends.sandbox.names import _BURST, ADDRESS, NameServer, upstream
from nova.execution.backends.sandbox.network import Network
from nova.execution.backends.sandbox.rules import PINNED_MOST, NameRule, check_policy, compile_policy
from tests.execution.backends.sandbox import harness
from tests.execution.backends.sandbox.harness import Function, PythonOnly, load, options
from tests.execution.backends.sandbox.world import World, world

pytestmark = [pytest.mark.anyio, pytest.mark.root]

GUEST = """
    import concurrent.futures, socket, struct, time

    def connects(host, port):
        try:
            with socket.create_connection((host, port), 0.4) as sock:
                sock.settimeout(5)
                return sock.recv(16) == b"hello"
        except OSError:
            return False

    def resolves(host):
        try:
            return sorted({found[4][0] for found in socket.getaddrinfo(host, 80)})
        except socket.gaierror:
            return []

    def question(name, kind):
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        return struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack(">HH", kind, 1)

    def asks(server, name, kind=1):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5 if server.startswith("127.") else 0.4)
            try:
                sock.connect((server, 53))  # so that a closed port is an error at once
                sock.send(question(name, kind))
                answer = sock.recv(4096)
            except OSError:
                return None
        return {"rcode": answer[3] & 15, "answers": answer[7], "cut": bool(answer[2] & 2)}

    def asks_tcp(server, name, kind):
        with socket.create_connection((server, 53), 2) as sock:
            message = question(name, kind)
            sock.sendall(struct.pack(">H", len(message)) + message)
            with sock.makefile("rb") as file:
                answer = file.read(int.from_bytes(file.read(2)))
        return {"rcode": answer[3] & 15, "answers": answer[7], "size": len(answer)}

    def flood(server, name, count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(count):
                sock.sendto(question(name, 1), (server, 53))
            sock.settimeout(0.2)
            got, end = 0, time.monotonic() + 0.5
            try:
                while time.monotonic() < end:
                    sock.recv(4096)
                    got += 1
            except OSError:
                pass
            return got

    def handler(event):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            return [task.result() for task in [pool.submit(globals()[name], *rest) for name, *rest in event]]
"""


@pytest.fixture(scope="module")
def outside() -> Iterator[World]:
    with world() as place:
        yield place


@pytest.fixture(scope="module")
async def backend(
    anyio_backend: str, outside: World, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[SandboxBackend]:
    """Its instances' questions go to the world's name server."""
    made = SandboxBackend(options(tmp_path_factory.mktemp("names"), resolvers=(outside.near,)), PythonOnly())
    await made.start()
    yield made
    await made.close()


def rules(*given: EgressRule) -> NetworkPolicy:
    return NetworkPolicy(isolation_mode="strict", egress_rules=given)


async def guest(backend: SandboxBackend, folder: Path, policy: NetworkPolicy) -> Function:
    return await load(backend, folder, GUEST, network=policy)


async def test_a_name_opens_the_addresses_it_has_and_nothing_else(
    backend: SandboxBackend, tmp_path: Path, outside: World
) -> None:
    """A rule by name is reached under that name, with its port and protocol; its address is closed until it was asked for."""
    function = await guest(
        backend, tmp_path, rules(EgressRule("api.example.test", 8080, "tcp"), EgressRule("svc.example.test"))
    )
    before = await function.value([("connects", outside.near, 8080), ("connects", outside.other, 9090)])
    assert before == [False, False]
    seen = await function.value(
        [
            ("connects", "api.example.test", 8080),
            ("connects", "svc.example.test", 9090),
            ("resolves", "API.Example.test"),
            ("resolves", "far.example.test"),
            ("resolves", "nowhere.example.test"),
        ]
    )
    assert seen == [True, True, [outside.near], [], []]
    after = await function.value(
        [
            ("connects", "api.example.test", 9090),
            ("connects", outside.near, 8080),
            ("connects", outside.far, 8080),
            ("asks", outside.near, "api.example.test"),
            ("asks", outside.far, "api.example.test"),
        ]
    )
    assert after == [False, True, False, None, None], "no other port, no other host, no other name server"
    await function.stop()


async def test_a_restored_instance_has_its_rules(
    backend: SandboxBackend, tmp_path: Path, outside: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came from a snapshot stands in a network of its own, with the function's policy and name server."""
    monkeypatch.setattr(harness, "FROM_SNAPSHOT", True)
    function = await guest(backend, tmp_path, rules(EgressRule("api.example.test", 8080, "tcp")))
    targets = [
        ("connects", "api.example.test", 8080),
        ("connects", outside.other, 8080),
        ("resolves", "far.example.test"),
    ]
    assert await function.value(targets) == [True, False, []]
    assert await function.value([("connects", outside.metadata, 8080)]) == [False]
    await function.stop()


async def test_names_below_a_domain(backend: SandboxBackend, tmp_path: Path, outside: World) -> None:
    """``*.example.test`` is every name below it; a name that ends alike is another's."""
    function = await guest(backend, tmp_path, rules(EgressRule("*.example.test", 8080, "tcp")))
    seen = await function.value(
        [
            ("connects", "api.example.test", 8080),
            ("connects", "svc.example.test", 8080),
            ("asks", ADDRESS, "example.test"),
            ("asks", ADDRESS, "bad-example.test"),
            ("asks", ADDRESS, "cdn.elsewhere.test"),
            ("asks", ADDRESS, "missing.example.test"),
            ("asks", ADDRESS, "six.example.test", 28),
            ("asks", ADDRESS, "long.example.test", 16),
            ("asks_tcp", ADDRESS, "long.example.test", 16),
        ]
    )
    refused = {"rcode": dns.rcode.REFUSED, "answers": 0, "cut": False}
    assert seen[:2] == [True, True], "also where the name leads to another domain's"
    assert seen[2:5] == [refused] * 3
    assert seen[5] == {"rcode": dns.rcode.NXDOMAIN, "answers": 0, "cut": False}
    assert seen[6] == {"rcode": dns.rcode.NOERROR, "answers": 0, "cut": False}, "instances have no IPv6"
    assert seen[7]["cut"]
    assert seen[8]["answers"] == 1
    assert seen[8]["size"] > 5000, "what does not fit into a datagram is had by TCP"
    await function.stop()


async def test_a_name_cannot_lead_to_what_is_always_blocked(
    backend: SandboxBackend, tmp_path: Path, outside: World
) -> None:
    """DNS rebinding: an answer with the metadata address, the loopback or the host in it is refused as a whole."""
    function = await guest(backend, tmp_path, rules(EgressRule("*.example.test")))
    names = [f"{name}.example.test" for name in ("metadata", "loopback", "host", "mixed")]
    answers = await function.value([("asks", ADDRESS, name) for name in names])
    assert [answer["rcode"] for answer in answers] == [dns.rcode.REFUSED] * 4
    assert await function.value([("connects", outside.metadata, 8080), ("connects", "mixed.example.test", 8080)]) == [
        False,
        False,
    ]
    await function.stop()


async def test_a_flood_of_questions(backend: SandboxBackend, tmp_path: Path) -> None:
    """One instance's questions cannot take the daemon's time: beyond its allowance they are dropped unread."""
    function = await guest(backend, tmp_path, rules(EgressRule("api.example.test")))
    (answered,) = await function.value([("flood", ADDRESS, "api.example.test", 1000)])
    assert 0 < answered < _BURST * 2
    assert (await function.value([("resolves", "other.example.test")])) == [[]]
    await function.stop()


async def test_pins_end_with_the_instance(backend: SandboxBackend, tmp_path: Path, outside: World) -> None:
    """The next user of a way out inherits neither addresses nor connections nor the name server of the one before."""
    first = await guest(backend, tmp_path, rules(EgressRule("*.example.test")))
    assert await first.value([("connects", "api.example.test", 8080)]) == [True]
    slot = first.instance.slot
    assert slot is not None
    await first.stop()
    assert (slot.chain, slot.server) == (None, None)
    held: list[Function] = []
    while not held or (held[-1].instance.slot is not slot and len(held) < 20):
        held.append(await guest(backend, tmp_path, rules(EgressRule("far.example.test", 8080, "tcp"))))
    second = held[-1]
    assert second.instance.slot is slot
    targets = [("connects", outside.near, 8080), ("connects", "far.example.test", 8080)]
    assert await second.value(targets) == [False, True]
    free = await guest(backend, tmp_path, NetworkPolicy())
    assert await free.value([("connects", outside.near, 8080), ("asks", ADDRESS, "far.example.test")]) == [True, None]
    for function in (*held, free):
        await function.stop()


async def test_private_networks_can_be_closed(tmp_path: Path, outside: World) -> None:
    """``network_policy.private_egress: false``: private addresses only by a rule that names them by address."""
    closed = SandboxBackend(options(tmp_path, resolvers=(outside.near,), private_networks=False), PythonOnly())
    await closed.start()

    async def seen(policy: NetworkPolicy, *hosts: str) -> list[bool]:
        return await _connects(closed, tmp_path, policy, *hosts)

    addresses = (outside.near, outside.far, outside.other)
    given = (EgressRule("0.0.0.0/0"), EgressRule("*.example.test"), EgressRule(f"{outside.other}/32"))
    try:
        free, default, ruled, private = await asyncio.gather(
            seen(NetworkPolicy(isolation_mode="none"), *addresses),
            seen(NetworkPolicy(), *addresses),
            seen(rules(*given), *addresses, "api.example.test", "far.example.test", "svc.example.test"),
            seen(NetworkPolicy(deny_external_access=True), *addresses),
        )
    finally:
        await closed.close()
    assert free == default == [False, True, False]
    assert ruled == [False, True, True, False, True, True], "svc leads to an address that a rule names"
    assert private == [False, False, False]


async def test_a_daemon_speaks_for_its_own_instances_only(
    backend: SandboxBackend, tmp_path: Path, outside: World
) -> None:
    """What one daemon closes to all of its instances is open to those of another on the same host."""
    settings = {"private_networks": False, "blocked": (f"{outside.far}/32",)}
    strict = SandboxBackend(options(tmp_path, resolvers=(outside.near,), **settings), PythonOnly())
    await strict.start()
    try:
        held = await _connects(strict, tmp_path, NetworkPolicy(), outside.near, outside.far)
        free = await _connects(backend, tmp_path, NetworkPolicy(), outside.near, outside.far)
    finally:
        await strict.close()
    assert (held, free) == ([False, False], [True, True])


async def test_what_is_blocked_stays_blocked(tmp_path: Path, outside: World) -> None:
    """``network_policy.blocked``: neither by the default, nor by a rule, nor under a name."""
    backend = SandboxBackend(
        options(tmp_path, resolvers=(outside.near,), blocked=(f"{outside.other}/32",)), PythonOnly()
    )
    await backend.start()
    ruled = rules(EgressRule(outside.other), EgressRule("svc.example.test"), EgressRule(outside.near))
    try:
        free, named = await asyncio.gather(
            _connects(backend, tmp_path, NetworkPolicy(), outside.other, outside.near),
            _connects(backend, tmp_path, ruled, outside.other, "svc.example.test", outside.near),
        )
    finally:
        await backend.close()
    assert free == [False, True]
    assert named == [False, False, True]


async def _connects(backend: SandboxBackend, folder: Path, policy: NetworkPolicy, *hosts: str) -> list[bool]:
    function = await guest(backend, folder, policy)
    answers: list[bool] = await function.value([("connects", host, 8080) for host in hosts])
    await function.stop()
    return answers


async def test_pins_are_bounded() -> None:
    """A rule by name cannot be made to fill the kernel's memory: what is too much is not let in, and not answered."""
    network = Network("172.30.255.240/28")
    await network.start()
    try:
        slot = await network.lease()
        await network.restrict(slot, rules(EgressRule("*.example.test")))
        assert slot.chain is not None
        assert slot.server is not None
        addresses = [IPv4Address("192.0.2.0") + offset for offset in range(PINNED_MOST + 1)]
        await slot.server._pin(list(slot.chain.names), addresses[:1000], 60)
        await slot.server._pin(list(slot.chain.names), addresses[:1000], 60)
        with pytest.raises(OSError, match="nft"):
            await slot.server._pin(list(slot.chain.names), addresses, 60)
        await network.release(slot)
    finally:
        await network.close()


async def test_whoever_is_cancelled_leaves_nothing() -> None:
    """Rules that were on their way when their instance was given up are gone before the next one has the way out."""
    network = Network("172.30.255.240/28")
    await network.start()
    try:
        leases = [asyncio.ensure_future(network.lease()) for _ in range(4)]
        await asyncio.sleep(0)
        leases[3].cancel()
        slots = await asyncio.gather(*leases[:3])
        for slot in slots:
            given_up = asyncio.ensure_future(network.restrict(slot, rules(EgressRule("a.test")), 10))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.gather(given_up, network.release(slot), return_exceptions=True)
            assert (slot.chain, slot.server, slot.sockets, slot.shaped) == (None, None, None, False)
        again = [await network.lease() for _ in range(4)]
        for slot in again:
            await network.restrict(slot, rules(EgressRule("b.test")), 10)
        for slot in again:
            await network.release(slot)
    finally:
        await network.close()


async def test_what_is_no_question_gets_no_answer() -> None:
    """The name server's parser sees whatever a guest sends."""
    resolver = upstream(("127.0.0.1",), port=1)
    resolver.lifetime = 0.1
    server = NameServer([NameRule(0, ("a.test",))], resolver, _never, lambda address: False)
    for junk in (b"", b"\0" * 11, bytes(range(256)), b"\xff" * 512):
        assert await server.answer(junk, stream=False) == b""
    for text in ("a.test", "b.test"):
        wire = dns.message.make_query(text, "A", use_edns=True).to_wire()
        answer = dns.message.from_wire(await server.answer(wire, stream=False))
        assert answer.rcode() == (dns.rcode.SERVFAIL if text == "a.test" else dns.rcode.REFUSED)
    assert "no rule of this function's network policy names b.test" in str(answer.options[0])
    twice = dns.message.make_query("a.test", "A")
    twice.question.append(twice.question[0])
    assert dns.message.from_wire(await server.answer(twice.to_wire(), stream=False)).rcode() == dns.rcode.NOTIMP
    assert await server.answer(answer.to_wire(), stream=False) == b"", "an answer is no question"


async def _never(*_: Any) -> None:
    raise AssertionError("nothing is to be pinned")


def test_chains() -> None:
    """Rules by name share a set for each port and protocol; a policy without effect has no chain."""
    assert compile_policy(NetworkPolicy(), slot="1", use=1) is None
    chain = compile_policy(
        rules(EgressRule("a.test", 443, "tcp"), EgressRule("b.test", 443, "tcp"), EgressRule("a.test", 53, "udp")),
        slot="1",
        use=7,
    )
    assert chain is not None
    assert [(rule.number, rule.names) for rule in chain.names] == [(0, ("a.test", "b.test")), (1, ("a.test",))]
    assert chain.lines[0] == "ct state established ct mark 0x7 accept"
    assert chain.lines[-1] == "drop"
    check_policy(rules(EgressRule("192.0.2.1")))
