"""The pool under pressure: many first calls at once, many instances at once, heavy imports, and what cycles leave behind."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from bench.driving import DriveError, Target, volley
from bench.measures import KEPT_S, PHASE, Run, must_be_cold
from bench.plan import GROUPS
from bench.processes import PROC, Process, rss_mb, total_pss_mb
from bench.stats import middle, percentile
from bench.subjects.control import PYTHON, ApiError, Language, python
from bench.subjects.nova import NAME, Nova

FRAMES = python("frames.py")
_TOGETHER = 100
"""Functions that are warmed at the same moment: their calls must not wait in the queue beyond its time."""
_SHORT = {"NOVA_POOL_CLEANUP_INTERVAL": "500ms", "NOVA_POOL_IDLE_TTL": "1s"}
_GONE_LIMIT_S = 30.0
_GROWTH = 8.0
"""MiB by which the daemon may have grown without being called a leak: its caches fill in the first cycles."""


def pool(run: Run, only: Collection[str]) -> None:
    """Those of the group that are in ``only``; each on a platform of its own, so that none counts another's leftovers."""
    for measure in GROUPS["pool"]:
        if measure in only:
            with run.attempt(NAME, measure):
                _MEASURES[measure](run)


def burst(run: Run) -> None:
    """Deploy many functions; then the first call of each, all at the same moment."""
    count = run.plan.burst_functions
    with _ready(run, "burst") as nova:
        rounds: list[float] = []
        for number in range(run.plan.crowd_rounds):
            targets = _deploy(run, nova, f"burst-{number}", count)
            nova.settle()
            run.say(f"{count} first calls at once, round {number + 1}/{run.plan.crowd_rounds}")
            us = volley(targets, run.plan.cold_call_limit_s).us
            rounds.append(max(us) / 1e6)
            facts = {"functions": count, "p50_ms": percentile(us, 50) / 1000, "p99_ms": percentile(us, 99) / 1000}
            for target in range(count):
                nova.delete(f"burst-{number}-{target}")
        run.add("burst", "all_answered", NAME, middle(rounds), "s", rounds=rounds, facts=facts)


def density(run: Run) -> None:
    """What instances of many different functions, all warm at once, add to the memory of the platform."""
    with _ready(run, "density") as nova:
        nova.settle()
        guests, guests_mb = len(nova.guests()), total_pss_mb(nova.guests())
        daemon_mb, available_mb = rss_mb(nova.server.pid), _available_mb()
        deadline, warm = monotonic() + run.plan.dense_limit_s, 0
        while warm < run.plan.dense_functions and monotonic() < deadline:
            step = min(_TOGETHER, run.plan.dense_functions - warm)
            volley(_deploy(run, nova, f"dense-{warm}", step, idle_ttl_s=KEPT_S), run.plan.cold_call_limit_s)
            warm += step
        run.say(f"{warm} warm instances come to rest")
        nova.rest()
        now = nova.guests()
        if len(now) - guests < warm:
            raise DriveError(f"{warm} instances, but only {len(now) - guests} new processes under the daemon")
        added, daemon = total_pss_mb(now) - guests_mb, rss_mb(nova.server.pid) - daemon_mb
        facts = {"instances": warm, "processes_each": (len(now) - guests) / warm, **_by_command(now)}
        run.add("density", "each", NAME, added / warm, "MiB", facts=facts)
        facts = {"instances": warm, "daemon_grew_mb": daemon, "less_available_mb": available_mb - _available_mb()}
        run.add("density", "thousand", NAME, (added + daemon) * 1000 / warm, "MiB", facts=facts)


def cold_numpy(run: Run) -> None:
    """The second cold start: what a platform keeps of a function that has loaded once shows in it."""
    measure, count = "cold_numpy", run.plan.cold_numpy
    with _ready(run, measure, _SHORT) as nova:
        run.say("building with numpy and pandas")
        targets = _deploy(run, nova, "frames", count, FRAMES, memory_mb=512, dependency_files=_REQUIREMENTS)
        first = [_first_call(run, nova, target).ms for target in targets]
        _await_idle(nova)
        calls = [_first_call(run, nova, target) for target in targets]
        times = [call.ms for call in calls]
        facts = {f"{phase}_ms": middle([call.phases.get(phase, 0.0) for call in calls]) for phase in calls[0].phases}
        facts |= {"first_ms": middle(first), "max_ms": max(times), "calls": count}
        run.add(measure, "p50", NAME, percentile(times, 50), "ms", rounds=times, facts=facts)


_REQUIREMENTS = {"requirements.txt": "numpy\npandas\n"}


@dataclass(frozen=True, slots=True)
class _Cold:
    """The time of one call that had to be a cold start, and its phases, in milliseconds."""

    ms: float
    phases: dict[str, float]


def _first_call(run: Run, nova: Nova, target: Target) -> _Cold:
    run.say(f"a cold start of {target.path.split('/')[2]}")
    nova.settle()
    answer = run.caller.series(target, 1, max_s=run.plan.cold_call_limit_s)
    must_be_cold(target.path, answer)
    found = PHASE.findall(answer.header("server-timing") or "")
    return _Cold(answer.us[0] / 1000, {name: float(took) for name, took in found})


def churn(run: Run) -> None:
    """Cycles of a burst to many functions and idleness until their instances are gone; then what is left of all that.

    What comes first is not counted: functions that were loaded are kept as snapshots, up to their bounds. Templates grow with
    demand, so both times it is counted when that is forgotten.
    """
    measure = "churn"
    with _ready(run, measure, _SHORT) as nova:
        targets = _deploy(run, nova, "churn", run.plan.churn_functions)
        _cycles(run, nova, targets, run.plan.churn_s / 2, "settling")
        nova.rest()
        before, grew = leftovers(nova), rss_mb(nova.server.pid)
        kept = _kept(nova)
        cycles = _cycles(run, nova, targets, run.plan.churn_s / 2, "churn")
        nova.rest()
        after, grew = leftovers(nova), rss_mb(nova.server.pid) - grew
        more = {name: float(after[name] - before[name]) for name in after}
        left = sum(max(0.0, value) for value in more.values()) + (grew > _GROWTH)
        facts = {
            **more,
            "kept_functions": float(_kept(nova) - kept),
            "daemon_grew_mb": grew,
            "cycles": cycles,
            "calls": cycles * len(targets),
        }
        run.add(measure, "left", NAME, left, "things", facts=facts)


def _kept(nova: Nova) -> int:
    """How many functions stay loaded as snapshots: each has processes of its own, which are no leak."""
    return len(nova.call("GET", "/snapshots", 200)["items"])


def _cycles(run: Run, nova: Nova, targets: list[Target], seconds: float, what: str) -> int:
    """How many there were in that time; at least one."""
    deadline, cycles = monotonic() + seconds, 0
    while not cycles or monotonic() < deadline:
        run.say(f"{what}, cycle {cycles + 1}")
        _cycle(run, nova, targets)
        cycles += 1
    return cycles


def _cycle(run: Run, nova: Nova, targets: list[Target]) -> None:
    volley(targets, run.plan.cold_call_limit_s)
    _await_idle(nova)


def _await_idle(nova: Nova) -> None:
    """Until the platform has no instance and its templates are made again; ApiError when that takes too long."""
    deadline = monotonic() + _GONE_LIMIT_S
    while nova.stats()["instances"]:
        if monotonic() > deadline:
            raise ApiError(f"there are still instances after {_GONE_LIMIT_S:.0f} s of idleness")
        sleep(0.1)
    nova.settle()


def leftovers(nova: Nova) -> dict[str, int]:
    """What may leak: processes, namespaces, file descriptors, mounts and control groups of a platform."""
    namespaces = set()
    family, daemon = nova.processes(), PROC / str(nova.server.pid)
    for process in family:
        for name in ("mnt", "net", "pid", "user", "ipc", "uts"):
            try:
                namespaces.add(os.readlink(PROC / str(process.pid) / "ns" / name))
            except OSError:
                continue
    own = f"nova-{hashlib.sha256(str(nova.data).encode()).hexdigest()[:8]}"
    return {
        "processes": len(family),
        "namespaces": len(namespaces),
        "fds": len(os.listdir(daemon / "fd")),
        "mounts": len((daemon / "mountinfo").read_text().splitlines()),
        "cgroups": sum(len(folders) for folder, folders, _ in os.walk("/sys/fs/cgroup") if own in folder.split("/")),
    }


@contextmanager
def _ready(run: Run, data: str, settings: Mapping[str, str] | None = None) -> Iterator[Nova]:
    """A platform of this measure's own. Its first start's leftovers are not what idle means, so it is the second."""
    run.say("starting Nova")
    with Nova(run.command, run.folder, data) as first:
        first.ready()
    with Nova(run.command, run.folder, data, settings) as nova:
        nova.ready()
        nova.settle()
        yield nova


def _deploy(run: Run, nova: Nova, name: str, count: int, language: Language = PYTHON, **more: Any) -> list[Target]:
    targets = []
    for number in range(count):
        run.say(f"deploying {name} {number + 1}/{count}")
        targets.append(nova.deploy(f"{name}-{number}", language, number=number, **more))
    return targets


def _by_command(processes: Collection[Process]) -> dict[str, float]:
    """Where the memory is: MiB by name of the process."""
    found: Counter[str] = Counter()
    for process in processes:
        found[f"{process.command.split(' ')[0].replace(':', '')}_mb"] += int(total_pss_mb([process]) * 1024)
    return {name: kb / 1024 for name, kb in found.most_common(4)}


def _available_mb() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) / 1024


_MEASURES: dict[str, Callable[[Run], None]] = {
    "burst": burst,
    "density": density,
    "cold_numpy": cold_numpy,
    "churn": churn,
}
