"""Handlers that want more than their limits. ``attacks.py FOLDER`` runs them as whoever starts it and prints what came of each.

The same ones run as root and as an ordinary user; :data:`EXPECTED` says what each comes to where limits are hard, and where
they hold per process only. Each takes a small multiple of its limit at most, so that one that succeeds harms nobody.
"""

import asyncio
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nova.domain.function import EgressRule, Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import InstanceSpec
from nova.execution.backends.sandbox.backend import SandboxBackend
from nova.telemetry import configure_logging
from tests.execution.backends.sandbox.harness import OFFLINE, PythonOnly, load, options

MEMORY_MB, PIDS, TMP_MB, OPEN_FILES = 128, 40, 8, 128
LIMITS = Limits(memory_mb=MEMORY_MB, pids=PIDS, tmp_mb=TMP_MB, open_files=OPEN_FILES)
WIDE_TMP = Limits(memory_mb=MEMORY_MB, pids=PIDS, tmp_mb=4 * MEMORY_MB, open_files=1024)

SOURCE = """
    import errno, mmap, os, resource, socket, sys, threading, time

    MB = 1 << 20
    TWICE = 2 * 128

    def code_of(error):
        return errno.errorcode.get(error.errno, str(error))

    def heap():
        return len([bytearray(b"x" * MB) for _ in range(TWICE)])

    def child():
        pid = os.fork()
        if pid == 0:
            try:
                heap()
            except MemoryError:
                os._exit(9)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        time.sleep(2)  # control groups of version 1 end the child; the rest of the group a moment later
        return code

    def shared_mapping():
        held = mmap.mmap(-1, TWICE * MB)
        for start in range(0, TWICE * MB, MB):
            held[start : start + MB] = b"x" * MB
        return "held"

    def memory_file():
        fd = os.memfd_create("hoard")
        for _ in range(TWICE):
            os.write(fd, b"x" * MB)
        return "held"

    def files_in_tmp():
        with open("/tmp/hoard", "wb", buffering=0) as file:
            for _ in range(TWICE):
                file.write(b"x" * MB)
        return "held"

    def sockets():
        held = []
        for _ in range(450):
            for end in (pair := socket.socketpair()):
                end.setblocking(False)
                try:
                    while True:
                        end.send(bytes(60000))
                except BlockingIOError:
                    pass
            held.append(pair)
        return "held"

    def processes():
        made = 0
        try:
            while made < 200:
                if os.fork() == 0:
                    time.sleep(600)
                made += 1
        except OSError as error:
            return [made, code_of(error)]

    def threads():
        made = 0
        try:
            while made < 200:
                threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
                made += 1
        except RuntimeError:
            return [made, "refused"]

    def disk():
        written = 0
        try:
            with open("/tmp/big", "wb", buffering=0) as file:
                while True:
                    written += file.write(bytes(MB))
        except OSError as error:
            return [written // MB, code_of(error)]

    def inodes():
        made = 0
        try:
            while made < 100_000:
                os.mkdir(f"/tmp/{made}")
                made += 1
        except OSError as error:
            return [made <= 8 * 1024, code_of(error)]

    def sparse_file():
        try:
            os.truncate(os.open("/tmp/sparse", os.O_CREAT | os.O_RDWR), 17 << 30)
        except OSError as error:
            return code_of(error)

    def elsewhere():
        refused = {}
        for folder in ("/code", "/", "/etc", "/usr/bin", "/run", "/var", "/dev", "/proc"):
            try:
                open(f"{folder}/mine", "w")
            except OSError as error:
                refused[folder] = code_of(error)
        try:
            os.chmod("/code/main.py", 0o777)
        except OSError as error:
            refused["chmod"] = code_of(error)
        return sorted(refused), sorted(set(refused.values()) - {"EROFS", "EACCES", "EPERM", "ENOENT"})

    def descriptors():
        held = []
        try:
            while len(held) < 5000:
                held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            return [len(held) < 128, code_of(error)]

    def higher_limits():
        raised = []
        for name in ("RLIMIT_NOFILE", "RLIMIT_NPROC", "RLIMIT_FSIZE", "RLIMIT_CORE", "RLIMIT_DATA"):
            kind = getattr(resource, name)
            _, hard = resource.getrlimit(kind)
            if hard != resource.RLIM_INFINITY:
                try:
                    resource.setrlimit(kind, (hard, hard * 2 + 1))
                    raised.append(name)
                except (ValueError, OSError):
                    pass
        try:
            os.nice(-5)
            raised.append("nice")
        except OSError:
            pass
        return raised

    def prints():
        for _ in range(400):
            os.write(1, b"x" * 65535 + b"\\n")
            os.write(2, b"x" * 65535 + b"\\n")
        return "said"

    def large_output():
        return "x" * (7 * MB)

    def endless():
        threading.Thread(target=endless_loop, daemon=True).start()
        endless_loop()

    def endless_loop():
        while True:
            pass

    def network():
        reached = []
        for host in ("127.0.0.1", "169.254.169.254", "10.0.0.1", "192.0.2.1"):
            try:
                socket.create_connection((host, 9000), 0.2).close()
                reached.append(host)
            except OSError:
                pass
        for family in (socket.AF_PACKET, socket.AF_NETLINK, socket.AF_VSOCK):
            try:
                socket.socket(family, socket.SOCK_RAW).close()
                reached.append(family.name)
            except OSError:
                pass
        return reached

    def handler(event):
        return globals()[event]()
"""

MEMORY = "error Nova.OutOfMemory"
PLACES = [sorted(["/", "/code", "/dev", "/etc", "/proc", "/run", "/usr/bin", "/var", "chmod"]), []]


@dataclass(frozen=True, slots=True)
class Attack:
    """``hard`` and ``soft`` are outcomes, or what they must satisfy. ``soft`` None: the same as ``hard``."""

    name: str
    hard: Any
    soft: Any = None
    limits: Limits = LIMITS
    timeout_s: float = 10

    def expects(self, hard: bool, outcome: Any) -> bool:
        expected = self.hard if hard or self.soft is None else self.soft
        return bool(expected(outcome)) if isinstance(expected, Callable) else outcome == expected  # type: ignore[arg-type]


ATTACKS = (
    Attack("heap", MEMORY, "error MemoryError"),
    Attack("child", MEMORY, 9),
    Attack("shared_mapping", MEMORY, "held"),
    Attack("memory_file", MEMORY, "held"),
    Attack("files_in_tmp", MEMORY, "held", limits=WIDE_TMP),
    Attack("sockets", MEMORY, "held", limits=WIDE_TMP),
    Attack("processes", lambda seen: seen == [PIDS - 2, "EAGAIN"], lambda seen: seen[0] < PIDS and seen[1] == "EAGAIN"),
    Attack("threads", [PIDS - 2, "refused"], lambda seen: seen[0] < PIDS and seen[1] == "refused"),
    Attack("disk", [TMP_MB, "ENOSPC"]),
    Attack("inodes", [True, "ENOSPC"]),
    Attack("sparse_file", "EFBIG"),
    Attack("elsewhere", PLACES),
    Attack("descriptors", [True, "EMFILE"]),
    Attack("higher_limits", []),
    Attack("prints", lambda seen: seen[0] == "said" and all(200 << 10 < size < (256 << 10) + 200 for size in seen[1:])),
    Attack("large_output", "error Nova.OutputTooLarge"),
    Attack("endless", "error Nova.Timeout", timeout_s=0.4),
    Attack("network", []),
)


async def outcome(backend: SandboxBackend, folder: Path, attack: Attack) -> Any:
    function = await load(backend, folder, SOURCE, limits=attack.limits)
    try:
        result = await function.answer(attack.name, timeout_s=attack.timeout_s)
    finally:
        await function.stop()
    if result.error is not None:
        return f"error {result.error.type}"
    value = json.loads(result.output or b"null")
    return [value, len(result.stdout), len(result.stderr)] if attack.name == "prints" else value


REFUSED: tuple[tuple[str, Limits, NetworkPolicy], ...] = (
    ("vcpus", Limits(vcpus=1), OFFLINE),
    ("net_mbps", Limits(net_mbps=10), OFFLINE),
    ("isolation_mode egress-only", Limits(), NetworkPolicy()),
    ("isolation_mode strict", Limits(), NetworkPolicy("strict", (EgressRule("*.example.test"),))),
)
"""What an ordinary user's host cannot hold, by the word that the refusal has."""


async def refusals(backend: SandboxBackend) -> list[str]:
    """The words of :data:`REFUSED` whose refusal names them."""
    named = []
    for word, limits, network in REFUSED:
        try:
            instance = await backend.create(InstanceSpec(word, "python", "3.11", None, limits, network))
            await backend.stop(instance, reason="test")
        except NovaError as error:
            if error.code == "unsupported" and word in error.detail:
                named.append(word)
    return named


async def main(folder: Path) -> None:
    backend = SandboxBackend(options(folder), PythonOnly())
    await backend.start()
    capabilities = await backend.capabilities()
    report: dict[str, Any] = {"available": capabilities.available, "enforces": dict(capabilities.enforces)}
    if capabilities.available:
        report["outcomes"] = {attack.name: await outcome(backend, folder, attack) for attack in ATTACKS}
        report["refusals"] = await refusals(backend)
    await backend.close()
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    configure_logging("error")
    asyncio.run(main(Path(sys.argv[1])))
