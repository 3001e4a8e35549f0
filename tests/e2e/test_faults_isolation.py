"""Functions that look around and reach out: what they find, and whom they reach, on a running platform."""

import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.misuse import Neighbour, Platform, platform_at
from tests.e2e.server import NovaServer
from tests.execution.backends.sandbox.world import World, world

NAME, VICTIM = "curious", "victim"
DIALLING = """
import socket
from concurrent.futures import ThreadPoolExecutor

def dial(target):
    host, port = target
    try:
        with socket.create_connection((host, port), timeout=1) as peer:
            return peer.recv(16).decode()
    except OSError:
        return None

def handler(targets):
    with ThreadPoolExecutor(len(targets)) as pool:
        return list(pool.map(dial, targets))
"""
LISTENING = """
import socket, threading

door = socket.create_server(("0.0.0.0", 8080))

def serve():
    while True:
        guest, _ = door.accept()
        guest.sendall(b"victim")
        guest.close()

threading.Thread(target=serve, daemon=True).start()

def handler(event):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((event, 9))
        own = probe.getsockname()[0]
    with socket.create_connection((own, 8080)) as itself:
        return own, itself.recv(16).decode()
"""
READING = """
def handler(paths):
    answers = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                answers[path] = file.read(1 << 16).decode("latin-1")
        except OSError as exc:
            answers[path] = type(exc).__name__
    return answers
"""
SEARCHING = """
import os

def handler(words):
    "Where any of the words is: in names, small files, and what /proc tells of processes."
    with open("/tmp/own", "w") as file:
        file.write(words[-1])
    found = []
    for folder, folders, files in os.walk("/", onerror=lambda _: None):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in ("/sys", "/usr")]
        for name in files:
            path = os.path.join(folder, name)
            if path.startswith(("/proc/kcore", "/proc/kmsg", "/code/")):
                continue
            try:
                file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                content = os.read(file, 1 << 16)
            except OSError:
                continue
            finally:
                os.close(file)
            found += [(word, path) for word in words if word.encode() in content or word in path]
    return found
"""


@pytest.fixture(scope="module")
def platform(nova_server: NovaServer) -> Iterator[Platform]:
    with platform_at(nova_server.url) as platform:
        yield platform


@pytest.fixture(scope="module")
def neighbour(platform: Platform) -> Iterator[Neighbour]:
    yield Neighbour(platform)
    platform.delete(Neighbour.NAME)


@pytest.fixture(autouse=True)
def around(platform: Platform, neighbour: Neighbour) -> Iterator[None]:
    with neighbour.unharmed():
        yield
    platform.delete(NAME)
    platform.delete(VICTIM)


@pytest.fixture(scope="module")
def outside() -> Iterator[World]:
    with world() as place:
        yield place


@pytest.fixture
def host_port() -> Iterator[int]:
    """A server on every address of this host."""
    with socket.create_server(("0.0.0.0", 0)) as door:

        def serve() -> None:
            while True:
                try:
                    guest, _ = door.accept()
                except OSError:
                    return
                with guest:
                    guest.sendall(b"host")

        thread = threading.Thread(target=serve)
        thread.start()
        port = door.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as peer:
            assert peer.recv(16) == b"host"
        yield port
        door.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.root
def test_the_default_policy_reaches_others_but_never_the_host(
    platform: Platform, outside: World, host_port: int
) -> None:
    """BE3: the world answers; loopback, the host, its gateway, the platform, metadata and other instances do not."""
    platform.deploy(VICTIM, LISTENING)
    victim, itself = platform.call(VICTIM, outside.near)
    assert itself == "victim", "the listener works"
    gateway = socket.inet_ntoa((int.from_bytes(socket.inet_aton(victim)) - 1).to_bytes(4))
    forbidden = [
        *((address, host_port) for address in ("127.0.0.1", gateway, outside.router, *host_addresses())),
        *((address, platform.address[1]) for address in ("127.0.0.1", gateway, outside.router)),
        (outside.metadata, 8080),
        (victim, 8080),
    ]
    platform.deploy(NAME, DIALLING)
    answers = platform.call(NAME, [(outside.near, 8080), (outside.far, 8080), *forbidden])
    assert answers[:2] == ["hello", "hello"], "the way out works"
    assert dict(zip(forbidden, answers[2:], strict=True)) == dict.fromkeys(forbidden)


@pytest.mark.root
def test_a_strict_policy_without_rules_reaches_nothing(platform: Platform, outside: World, host_port: int) -> None:
    """BE3: strict means what the rules name, and nothing else."""
    platform.deploy(NAME, DIALLING, network_policy={"isolation_mode": "strict"})
    targets = [(outside.near, 8080), (outside.far, 8080), (outside.router, host_port), (outside.metadata, 8080)]
    assert platform.call(NAME, [*targets, ("127.0.0.1", host_port)]) == [None] * 5


@pytest.mark.root
def test_rules_reach_what_they_name(platform: Platform, outside: World) -> None:
    """BE3: a rule by address is the way there; with a rule by name other names do not resolve, and nothing is asked outside."""
    rules = [{"host": f"{outside.near}/32", "port": 8080, "protocol": "tcp"}, {"host": "*.example.test"}]
    policy = {"isolation_mode": "strict", "egress_rules": rules}
    platform.deploy(NAME, DIALLING, network_policy=policy, limits={"net_mbps": 100})
    targets = [(outside.near, 8080), (outside.near, 9090), (outside.other, 8080), ("api.other.test", 8080)]
    assert platform.call(NAME, targets) == ["hello", None, None, None]


def test_nothing_of_the_host_can_be_read(platform: Platform, nova_server: NovaServer) -> None:
    """AG23: process 1 is the sandbox's own and says nothing; the host's secrets and the platform's files are not there."""
    platform.deploy(NAME, READING)
    data = nova_server.data_dir
    own = [data / "postgres" / "PG_VERSION", data / "nova.lock", nova_server.log, Path(__file__)]
    assert all(path.exists() for path in own)
    paths = [
        "/etc/shadow",
        "/root/.bashrc",
        "/proc/1/environ",
        "/proc/1/mem",
        "/proc/kcore",
        "/dev/mem",
        *map(str, own),
    ]
    paths += [f"/proc/1/root{path}" for path in ("/etc/shadow", own[0])]
    answers = platform.call(NAME, paths)
    assert {
        path: answer for path, answer in answers.items() if answer not in ("FileNotFoundError", "PermissionError")
    } == {}


def test_no_secret_of_another_is_found_anywhere(platform: Platform, nova_server: NovaServer) -> None:
    """AG23: a search through every file finds neither another function's code, environment or /tmp nor the platform's."""
    code, variable, file = (uuid.uuid4().hex for _ in range(3))
    platform.deploy(
        VICTIM,
        f"SECRET = {code!r}\ndef handler(event):\n    open('/tmp/kept', 'w').write({file!r})\n    return 1\n",
        env_vars={"SECRET": variable},
    )
    assert platform.call(VICTIM) == 1
    planted = planted_in(nova_server.pid)
    platform.deploy(NAME, SEARCHING, timeout_s=60)
    mine = uuid.uuid4().hex
    found = platform.call(NAME, [code, variable, file, *planted, mine])
    assert found == [[mine, "/tmp/own"]]


def host_addresses() -> list[str]:
    """The addresses that this host has towards others."""
    found = {str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("198.51.100.1", 9))
        found.add(probe.getsockname()[0])
    return sorted(found - {"127.0.0.1"})


def planted_in(pid: int) -> list[str]:
    """Long values of a process's environment: what must not be found elsewhere."""
    values = {entry.partition("=")[2] for entry in Path(f"/proc/{pid}/environ").read_text().split("\0")}
    return sorted(value for value in values if len(value) > 40)
