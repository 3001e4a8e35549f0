"""Whatever makes instances, killed at random under load; and bursts and idleness, again and again. Nothing may be left behind."""

import contextlib
import hashlib
import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from nova.execution.backends.sandbox.backend import TEMPLATES_MOST
from tests.e2e.load import Load, load
from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.server import RunningNova

CHAOS_S = float(os.environ.get("NOVA_CHAOS_S", "5"))
SLACK_S = 60
"""What a busy machine may add until enough has happened."""
CYCLES = int(os.environ.get("NOVA_CHURN_CYCLES", "2"))
SETTLING = 8
"""More cycles than that, at most, until one leaves no more than the one before it."""
SETTINGS = {"pool": {"idle_ttl": "1s", "cleanup_interval": "250ms", "health_check_interval": "1s"}}
PYTHON = "import time\ndef handler(event):\n    time.sleep(0.005)\n    return 'fine'\n"
ASYNC = "import asyncio\nasync def handler(event):\n    await asyncio.sleep(0.005)\n    return 'fine'\n"
NODE = "exports.handler = async () => { await new Promise(done => setTimeout(done, 5)); return 'fine' }\n"
FUNCTIONS: Mapping[str, tuple[str, dict[str, object]]] = {
    "plain": (PYTHON, {}),
    "fresh": (PYTHON, {"mode": "process"}),
    "many": (ASYNC, {"instance_concurrency": 8}),
    "pair": (PYTHON, {"instance_concurrency": 2}),
    "node": (NODE, {"runtime": "node", "handler": None}),
}
CAUSES = frozenset({"Nova.Signal", "Nova.ExitError", "Nova.WorkerLost", "Nova.InstanceLost", "Nova.InitError"})
"""How a function's own end is told when somebody killed it."""
REFUSALS = frozenset({"instance_lost", "capacity", "queue_timeout", "queue_full", "timeout"})
NAMESPACES = ("mnt", "net", "pid", "user", "ipc", "uts")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNova]:
    folder = tmp_path_factory.mktemp("chaos")
    config = folder / "nova.json"
    config.write_text(json.dumps(SETTINGS))
    with RunningNova(folder / "data", "--config", str(config)) as running:
        yield running
        born = family(running.process.pid)
        running.stop()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in born), "no process is left")
        assert groups(running) == 0
        assert {path.name for path in (folder / "data" / "sandbox").glob("*/")} <= {"roots"}, "no place is left"


@pytest.fixture(scope="module")
def platform(server: RunningNova) -> Iterator[Platform]:
    with platform_at(server.url) as platform:
        for name, (code, fields) in FUNCTIONS.items():
            platform.deploy(name, code, **fields)
        yield platform


def family(pid: int) -> list[int]:
    """All descendants of the daemon but PostgreSQL, whose processes are others' business here."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, _, rest = (entry / "stat").read_text().partition("(")[2].rpartition(")")
                state, parent = rest.split()[:2]
                if state != "Z":
                    children.setdefault(int(parent), []).append(int(entry.name))
                    names[int(entry.name)] = name
    found = [child for child in children.get(pid, ()) if names[child] != "postgres"]
    for child in found:
        found.extend(children.get(child, ()))
    return found


def inventory(server: RunningNova) -> dict[str, int]:
    """What could be left behind."""
    daemon = server.process.pid
    processes = family(daemon)
    seen = set()
    for pid in processes:
        for name in NAMESPACES:
            with contextlib.suppress(OSError):
                seen.add(os.readlink(f"/proc/{pid}/ns/{name}"))
    own = str(server.data_dir).encode()  # others mount, too, where the daemon is; where its launcher is, nobody else
    mounts = sum(own in line for line in Path(f"/proc/{daemon}/mountinfo").read_bytes().splitlines())
    mounts += sum(len(Path(f"/proc/{pid}/mountinfo").read_bytes().splitlines()) for pid in processes[:1])
    return {
        "processes": len(processes),
        "namespaces": len(seen),
        "descriptors": len(os.listdir(f"/proc/{daemon}/fd")),
        "mounts": mounts,
        "groups": groups(server),
        "folders": sum(1 for _ in (server.data_dir / "sandbox").glob("**/")),
    }


def groups(server: RunningNova) -> int:
    """Control groups of this server's node, over all hierarchies."""
    own = "nova-" + hashlib.sha256(str(server.data_dir).encode()).hexdigest()[:8]
    return sum(len(folders) for folder, folders, _ in os.walk("/sys/fs/cgroup") if own in folder.split("/"))


def at_rest(server: RunningNova, platform: Platform) -> dict[str, int]:
    """The inventory without instances, once nothing changes any more: templates are made again by then."""
    until(lambda: platform.http.get("/stats").json()["instances"] == 0, "no instance is left")
    seen = [inventory(server)]
    deadline = time.monotonic() + 30
    while (len(seen) < 5 or any(one != seen[-1] for one in seen[-5:])) and time.monotonic() < deadline:
        time.sleep(0.15)
        seen.append(inventory(server))
    return seen[-1]


def everything_works(platform: Platform) -> bool:
    """Each function answers; one whose instance died a moment ago may say so first."""
    return all(platform.post(name).json().get("output") == "fine" for name in FUNCTIONS)


def told(running: Load) -> Counter[str]:
    """How the calls that did not end well ended, each by its cause."""
    return Counter(
        call.code or str((call.answer.get("error") or {}).get("type")) for call in running.calls if not call.well
    )


def test_every_call_has_an_answer_while_instances_and_what_makes_them_are_killed(
    server: RunningNova, platform: Platform
) -> None:
    """Workers, agents, templates, and the launcher that all of them come from."""
    chance, killed = random.Random(5), 0
    until(lambda: everything_works(platform), "every function works")
    before = at_rest(server, platform)
    with contextlib.ExitStack() as stack:
        loads = {name: stack.enter_context(load(server.url, name, callers=2)) for name in FUNCTIONS}
        began = time.monotonic()

        def enough() -> bool:
            return killed > CHAOS_S * 4 and all(sum(call.well for call in one.calls) > 10 for one in loads.values())

        while (took := time.monotonic() - began) < CHAOS_S or (took < CHAOS_S + SLACK_S and not enough()):
            victims = family(server.process.pid)
            launcher, others = victims[:1], victims[1:]
            for victim in chance.sample(others if chance.random() < 0.97 else launcher, 1 if others else 0):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed += 1
            time.sleep(chance.uniform(0.03, 0.15))
    outcomes = {name: told(running) for name, running in loads.items()}
    assert server.process.poll() is None
    assert killed > CHAOS_S * 4
    for name, running in loads.items():
        assert sum(call.well for call in running.calls) > 10, (name, outcomes[name])
        assert set(outcomes[name]) <= CAUSES | REFUSALS, (name, outcomes[name])
    assert sum(sum(outcome.values()) for outcome in outcomes.values()) > 0, "nobody was hit"
    until(lambda: everything_works(platform), "every function works again")
    after = at_rest(server, platform)
    assert not beyond(before, after), (before, after)


def test_bursts_and_idleness_leave_nothing_behind(server: RunningNova, platform: Platform) -> None:
    """Each cycle makes instances of every function and lets all of them go."""

    def cycle() -> dict[str, int]:
        with contextlib.ExitStack() as stack:
            loads = [stack.enter_context(load(server.url, name, callers=4)) for name in FUNCTIONS]
            until(lambda: all(sum(c.well for c in running.calls) >= 8 for running in loads), "all were called")
        assert not [running.codes for running in loads if running.failed]
        return at_rest(server, platform)

    seen, memory = [cycle()], resident_mb(server)
    for _ in range(CYCLES):
        seen.append(cycle())
    while len(seen) < CYCLES + SETTLING and grown(seen[-2], seen[-1]):
        seen.append(cycle())
    assert not grown(seen[-2], seen[-1]), seen
    assert resident_mb(server) - memory < 3 + len(seen) / 10


def beyond(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What there is more of than may be at all: templates grow with demand, up to a bound, and a function that was loaded may be
    kept once more as a snapshot."""
    places = max(0, 2 * TEMPLATES_MOST + len(FUNCTIONS) - before["namespaces"] // len(NAMESPACES)) + 1
    each = {"processes": 2, "namespaces": len(NAMESPACES), "descriptors": 8, "groups": 8}
    most = {name: before[name] + places * each.get(name, 0) + 4 * (name == "descriptors") for name in before}
    return {name: after[name] - before[name] for name in before if after[name] > most[name]}


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What there is more of than a cycle ago. Templates and snapshots grow with demand for a while; what leaks never stops.
    Connections to the database come and go."""
    return {
        name: after[name] - before[name] for name in before if after[name] > before[name] + 4 * (name == "descriptors")
    }


def resident_mb(server: RunningNova) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
