"""One whole run: set the peers up, start everybody, measure in turns, and write the report."""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench import (
    backend_measures,
    core_measures,
    flow_measures,
    measures,
    plane_measures,
    pool_measures,
    queue_measures,
    trigger_measures,
    wasm_measures,
)
from bench.driving import Caller, Target, crowd, crowd_driver
from bench.measures import Run
from bench.model import Bar, Machine, Problem, Ratio, Report, Row
from bench.plan import EITHER, FULL, GROUPS, OURS, QUICK, RATIO_BARS
from bench.processes import rss_mb
from bench.subjects import nova as nova_subject
from bench.subjects.base import Peer, Say, SetupFailed
from bench.subjects.control import PYTHON
from bench.subjects.functions_framework import FunctionsFramework
from bench.subjects.installing import CACHE
from bench.subjects.nova import NAME, Nova
from bench.subjects.workerd import Workerd

FROM_ZERO = {"cold_python": FunctionsFramework.name, "cold_node": Workerd.name}
"""The peer that stands beside each cold start: the one that runs the same language."""
WARM = ("warm_latency", "warm_throughput", "warm_default")
SPREAD_S = 4.0
"""A function has to be hot for two seconds before all workers serve it."""
BESIDE_PEERS = {*FROM_ZERO, *WARM}


@dataclass(frozen=True, slots=True)
class Options:
    quick: bool = False
    peers: bool = True
    nova: Path = Path(sys.executable).parent / "nova"
    """the command to measure: another checkout's, for A beside B"""
    label: str | None = None
    """names what was measured, where the commit of this checkout does not"""


def benchmark(only: Collection[str], options: Options, say: Say) -> Report:
    """Measure what ``only`` names. Nothing raises for a failing subject: it is in the report's problems."""
    report = Report(
        taken_at=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=options.label or revision(),
        quick=options.quick,
        crowd_driver=crowd_driver(),
        machine=machine(),
        subjects={NAME: nova_subject.described()},
    )
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="nova-bench-"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        run = Run(QUICK if options.quick else FULL, options.nova, folder, stack.enter_context(Caller()), say)
        ready_peers = set_up_peers(run, report) if options.peers and set(only) & BESIDE_PEERS else []
        if "startup" in only:
            measures.startup(run)
        for peer in ready_peers:
            for measure in only:
                if FROM_ZERO.get(measure) == peer.name:
                    measures.from_zero(run, peer, measure)
        if set(only) - {"startup", *(measure for group in GROUPS.values() for measure in group)}:
            with ExitStack() as servers:
                _on_running_subjects(run, only, ready_peers, servers)
        pool_measures.pool(run, only)
        plane_measures.planes(run, only)
        core_measures.cores(run, only)
        backend_measures.backends(run, only)
        wasm_measures.wasm(run, only)
        queue_measures.queue(run, only, report, peers=options.peers)
        flow_measures.flows(run, only, report, peers=options.peers)
        trigger_measures.triggers(run, only)
        report.rows, report.problems = run.rows, [*report.problems, *run.problems]
    report.ratios = ratios(report.rows)
    report.machine.load_after = os.getloadavg()[0]
    return report


def set_up_peers(run: Run, report: Report) -> list[Peer]:
    """Install what is missing. A peer that cannot be set up is a problem in the report, never a made-up number."""
    ready: list[Peer] = []
    for peer in (FunctionsFramework(), Workerd()):
        try:
            report.subjects[peer.name] = peer.set_up(CACHE, run.say)
        except SetupFailed as error:
            run.problems.append(Problem(subject=peer.name, measure="all", reason=str(error)))
        else:
            ready.append(peer)
    return ready


def _on_running_subjects(run: Run, only: Collection[str], peers: Sequence[Peer], stack: ExitStack) -> None:
    """Nova alone first, while it is idle; then the warm rows, everybody running and taking turns; process mode last."""
    nova = _start_nova(run, stack)
    if nova is not None:
        for measure, function in measures.ON_IDLE_NOVA.items():
            if measure in only:
                function(run, nova)
    if set(WARM) & set(only):
        targets = {}
        if nova is not None:
            with run.attempt(NAME, "warm"):
                targets[NAME] = nova.deploy("warm", PYTHON)
        targets |= _start_peers(run, peers, stack)
        if "warm_latency" in only:
            measures.warm_latency(run, targets)
        if "warm_default" in only:
            measures.throughput(run, "warm_default", targets | _as_installed(run, peers, stack), run.plan.callers)
        if "warm_throughput" in only:
            measures.throughput(run, "warm_throughput", _on_all_cores(run, targets, stack), run.plan.callers)
    if nova is not None and "process_mode" in only:
        measures.process_mode(run, nova)
    if nova is not None and "daemon_memory" in only:
        with run.attempt(NAME, "daemon_memory"):
            run.add("daemon_memory", "rss_after_the_run", NAME, rss_mb(nova.server.pid), "MiB")


def _start_nova(run: Run, stack: ExitStack) -> Nova | None:
    """Nova on a data directory that it has seen before: the first start's leftovers are not what idle means."""
    run.say("starting Nova")
    with run.attempt(NAME, "all"):
        with Nova(run.command, run.folder) as first:
            first.ready()
        nova = stack.enter_context(Nova(run.command, run.folder))
        nova.ready()
        return nova
    return None


def _on_all_cores(run: Run, targets: dict[str, Target], stack: ExitStack) -> dict[str, Target]:
    """The peers, and Nova with a worker for each core as they have it where they can."""
    run.say("starting Nova with a worker for each core")
    found = {name: target for name, target in targets.items() if name != NAME}
    with run.attempt(NAME, "warm_throughput"):
        nova = stack.enter_context(
            Nova(run.command, run.folder, "all-cores", {"NOVA_DAEMON_WORKERS": str(os.cpu_count() or 1)})
        )
        nova.ready()
        found[NAME] = nova.deploy("warm", PYTHON)
        crowd(found[NAME], run.plan.callers, SPREAD_S)
    return found


def _as_installed(run: Run, peers: Sequence[Peer], stack: ExitStack) -> dict[str, Target]:
    """Peers that have a worker for each core only when they are told to."""
    if not any(peer.name == FunctionsFramework.name for peer in peers):
        return {}
    plain = FunctionsFramework(each_core=False)
    plain.set_up(CACHE, run.say)
    return _start_peers(run, [plain], stack)


def _start_peers(run: Run, peers: Sequence[Peer], stack: ExitStack) -> dict[str, Target]:
    targets = {}
    for peer in peers:
        with run.attempt(peer.name, "warm"):
            server = peer.start(run.folder)
            stack.callback(server.stop)
            measures.await_peer(peer, server)
            targets[peer.name] = peer.target(server)
    return targets


def ratios(rows: Sequence[Row]) -> list[Ratio]:
    """Nova beside each peer, for each metric that both have."""
    ours = {(row.measure, row.metric): row for row in rows if row.subject == NAME}
    found = []
    for row in rows:
        mine = ours.get((row.measure, row.metric))
        if row.subject in OURS or mine is None or not mine.value or not row.value:
            continue
        better = mine.value / row.value if row.better == "higher" else row.value / mine.value
        found.append(
            Ratio(
                measure=row.measure,
                metric=row.metric,
                peer=row.subject,
                ours=mine.value,
                theirs=row.value,
                unit=row.unit,
                times_better=better,
                bar=_bar(mine, row.subject),
            )
        )
    return found


def _bar(mine: Row, peer: str) -> Bar | None:
    """What is asked of the ratio. Where a number of our own would do as well and is reached, that is shown instead."""
    own = EITHER.get((mine.measure, mine.metric))
    if own is not None and own.met(mine.value, mine.better):
        mine.bar = own
        return None
    return RATIO_BARS.get((mine.measure, mine.metric, peer))


def machine() -> Machine:
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    system = next(
        (line.partition("=")[2].strip('"') for line in _lines("/etc/os-release") if "PRETTY_NAME" in line), ""
    )
    memory_kb = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return Machine(
        cpu=cpu,
        cores=os.cpu_count() or 1,
        memory_mb=memory_kb // 1024,
        kernel=platform.release(),
        system=system,
        python=platform.python_version(),
        load_before=os.getloadavg()[0],
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def revision() -> str:
    """The commit that was measured, marked when the tree had changes; "unknown" outside a git clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()
