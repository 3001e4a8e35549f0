"""The measurements. Each takes the running subjects and yields rows; a subject that fails costs only its own rows."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType

import psycopg

from bench.driving import Answer, Caller, DriveError, Target, answers, crowd
from bench.model import Better, Problem, Row
from bench.plan import BARS, OURS, Plan
from bench.processes import Server, ServerFailed, calm, pss_mb, rss_mb, total_pss_mb
from bench.stats import middle, percentile
from bench.subjects.base import Peer, Say, SetupFailed
from bench.subjects.control import NODE, PYTHON, ApiError, Language
from bench.subjects.nova import NAME, Nova

PEER_READY_LIMIT_S = 30.0
WARM_UP_S = 1.0
PHASE = re.compile(r"([a-z_]+);dur=([0-9.]+)")


class Attempt:
    """A block whose failure is written down as a problem of the report; the run goes on after it."""

    EXPECTED = (DriveError, ApiError, ServerFailed, SetupFailed, PermissionError, psycopg.Error)

    def __init__(self, problems: list[Problem], subject: str, measure: str) -> None:
        self._problems, self._subject, self._measure = problems, subject, measure

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> bool:
        if not isinstance(error, self.EXPECTED):
            return False
        self._problems.append(Problem(subject=self._subject, measure=self._measure, reason=str(error)))
        return True


@dataclass
class Run:
    """The state of one benchmark run: what is running, and what has been found so far."""

    plan: Plan
    command: Path
    folder: Path
    caller: Caller
    say: Say
    rows: list[Row] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def attempt(self, subject: str, measure: str) -> Attempt:
        return Attempt(self.problems, subject, measure)

    def add(
        self,
        measure: str,
        metric: str,
        subject: str,
        value: float,
        unit: str,
        *,
        better: Better = "lower",
        rounds: list[float] | None = None,
        facts: Mapping[str, float] | None = None,
        note: str = "",
    ) -> None:
        self.rows.append(
            Row(
                measure=measure,
                metric=metric,
                subject=subject,
                value=value,
                unit=unit,
                better=better,
                bar=BARS.get((measure, metric)) if subject == NAME else None,
                rounds=rounds or [],
                facts=dict(facts or {}),
                note=note,
            )
        )


@dataclass
class Rounds:
    """A subject's values round by round, and all its samples."""

    target: Target
    values: list[float] = field(default_factory=list)
    samples: list[float] = field(default_factory=list)
    p90: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)


def startup(run: Run) -> None:
    """Launch to the first 200 of /health/ready: a new data directory, then the same one again."""
    empty: list[float] = []
    existing: list[float] = []
    with run.attempt(NAME, "startup"):
        for number in range(run.plan.startup_rounds):
            for found, kind in ((empty, "an empty"), (existing, "an existing")):
                run.say(f"start-up on {kind} data directory, round {number + 1}")
                with Nova(run.command, run.folder, f"startup-{number}") as nova:
                    found.append(nova.ready())
        run.add("startup", "empty", NAME, middle(empty), "s", rounds=empty)
        run.add("startup", "existing", NAME, middle(existing), "s", rounds=existing)


def daemon_memory(run: Run, nova: Nova) -> None:
    """The daemon before its first call, and the whole tree with its zygotes and templates."""
    with run.attempt(NAME, "daemon_memory"):
        run.say("memory of the idle daemon")
        nova.settle()
        facts = {"pss_mb": pss_mb(nova.server.pid), "processes": len(nova.processes())}
        run.add("daemon_memory", "rss", NAME, rss_mb(nova.server.pid), "MiB", facts=facts)
        run.add("daemon_memory", "tree_pss", NAME, total_pss_mb(nova.processes()), "MiB")


def cold(run: Run, nova: Nova, measure: str, language: Language, count: int) -> None:
    """Deploy ``count`` different functions; then, each time from an idle platform, the first call of one of them."""
    with run.attempt(NAME, measure):
        targets = {}
        for number in range(1, count + 1):
            run.say(f"deploying {language.runtime} functions {number}/{count}")
            name = f"{measure.replace('_', '-')}-{number}"
            targets[name] = nova.deploy(name, language, number=number)
        times: list[float] = []
        phases: dict[str, list[float]] = {}
        restless = 0
        for number, (name, target) in enumerate(targets.items(), 1):
            run.say(f"{language.runtime} cold starts {number}/{count}")
            restless += not nova.settle()
            answer = run.caller.series(target, 1, max_s=run.plan.cold_call_limit_s)
            must_be_cold(name, answer)
            times.append(answer.us[0] / 1000)
            for phase, took in PHASE.findall(answer.header("server-timing") or ""):
                phases.setdefault(phase, []).append(float(took))
            nova.delete(name)
        facts = {f"{phase}_ms": middle(values) for phase, values in phases.items()}
        facts |= {"calls": count, "not_idle_before": restless, "max_ms": max(times)}
        run.add(measure, "p50", NAME, percentile(times, 50), "ms", rounds=_halves(times, 50), facts=facts)
        run.add(measure, "p99", NAME, percentile(times, 99), "ms", rounds=_halves(times, 99))


def must_be_cold(name: str, answer: Answer) -> None:
    if answer.header("x-nova-cold-start") != "true" or '"cold_start":true' not in answer.body.replace(" ", ""):
        raise DriveError(f"the first call of {name} was not a cold start: {answer.head} {answer.body[:200]}")


def _halves(times: list[float], percent: float) -> list[float]:
    """The same percentile of the first and of the second half: rounds for a measurement that has none."""
    half = len(times) // 2
    return [percentile(times[:half], percent), percentile(times[half:], percent)]


def from_zero(run: Run, peer: Peer, measure: str) -> None:
    """What a peer pays where we pay a cold start: its process is launched, to the first good answer. No isolation."""
    with run.attempt(peer.name, measure):
        times = []
        for number in range(run.plan.from_zero_rounds):
            run.say(f"{peer.name} from zero {number + 1}/{run.plan.from_zero_rounds}")
            server = peer.start(run.folder)
            try:
                times.append(await_peer(peer, server) * 1000)
            finally:
                server.stop()
        run.add(measure, "p50", peer.name, middle(times), "ms", rounds=times)


def await_peer(peer: Peer, server: Server) -> float:
    """Seconds from the launch to its first good answer."""
    target = peer.target(server)
    return server.wait(partial(answers, target), PEER_READY_LIMIT_S)


KEPT_S = 3600
"""Idle life of functions that must stay warm while they are counted."""


def instance_memory(run: Run, nova: Nova, language: Language, count: int) -> None:
    """What ``count`` warm instances add to the memory of the platform, over all processes but daemon and PostgreSQL."""
    measure = "instance_memory"
    with run.attempt(NAME, measure):
        run.say(f"memory of {count} {language.runtime} instances")
        names = [f"memory-{language.runtime}-{number}" for number in range(1, count + 1)]
        targets = [nova.deploy(name, language, number=n, idle_ttl_s=KEPT_S) for n, name in enumerate(names, 1)]
        nova.rest()  # what was measured before this has templates of its own
        before, before_mb = nova.guests(), total_pss_mb(nova.guests())
        for target in targets:
            run.caller.series(target, 3)
        nova.rest()
        after, after_mb = nova.guests(), total_pss_mb(nova.guests())
        if len(after) - len(before) < count:
            raise DriveError(f"{count} instances, but only {len(after) - len(before)} new processes under the daemon")
        each = (after_mb - before_mb) / count
        facts = {
            "instances": count,
            "processes_each": (len(after) - len(before)) / count,
            "per_gib": 1024 / each if each > 0 else 0.0,
        }
        run.add(measure, language.runtime, NAME, each, "MiB", facts=facts)
        for name in names:
            nova.delete(name)


def warm_latency(run: Run, targets: Mapping[str, Target], measure: str = "warm_latency") -> dict[str, list[float]]:
    """One caller; returns the median of each round by subject.

    The subjects take turns round by round, so that a busy moment of the machine hits all of them.
    """
    plan = run.plan
    series = {name: Rounds(target) for name, target in targets.items()}
    for number in range(plan.warm_rounds):
        for name, rounds in list(series.items()):
            run.say(f"{name}: one caller, round {number + 1}/{plan.warm_rounds}")
            skip = plan.warm_skip if number == 0 else 20
            calm()
            with run.attempt(name, measure):
                us = run.caller.series(rounds.target, plan.warm_calls, skip=skip, max_s=plan.round_limit_s).us
                rounds.samples.extend(us)
                rounds.values.append(percentile(us, 50))
                rounds.p90.append(percentile(us, 90))
                rounds.p99.append(percentile(us, 99))
            if len(rounds.values) != number + 1:
                del series[name]
    for name, rounds in series.items():
        facts = {"calls": len(rounds.samples), "min_us": min(rounds.samples)}
        run.add(measure, "p50", name, percentile(rounds.samples, 50), "µs", rounds=rounds.values, facts=facts)
        run.add(measure, "p90", name, percentile(rounds.samples, 90), "µs", rounds=rounds.p90)
        run.add(measure, "p99", name, percentile(rounds.samples, 99), "µs", rounds=rounds.p99)
    return {name: rounds.values for name, rounds in series.items()}


def throughput(run: Run, measure: str, targets: Mapping[str, Target], callers: int) -> dict[str, list[float]]:
    """Calls per second at so many callers, the subjects in turns; returns each round's by subject.

    Nova is taken at its median round and a peer at its best: how gunicorn's workers share the connections is chance,
    and can halve what functions-framework does.
    """
    plan = run.plan
    series = {name: Rounds(target) for name, target in targets.items()}
    for number in range(plan.crowd_rounds):
        for name, rounds in list(series.items()):
            run.say(f"{name}: {callers} callers, round {number + 1}/{plan.crowd_rounds}")
            calm()
            with run.attempt(name, measure):
                if number == 0:
                    crowd(rounds.target, callers, WARM_UP_S)
                totals = crowd(rounds.target, callers, plan.crowd_s)
                rounds.values.append(totals.per_s)
                rounds.samples.extend([totals.p50_us] if totals.p50_us else [])
                rounds.p99.extend([totals.p99_us] if totals.p99_us else [])
            if len(rounds.values) != number + 1:
                del series[name]
    for name, rounds in series.items():
        facts = {"callers": float(callers)}
        if rounds.p99:
            facts |= {"p50_us": middle(rounds.samples), "p99_us": middle(rounds.p99)}
        rate = middle(rounds.values) if name in OURS else max(rounds.values)
        run.add(measure, "rate", name, rate, "calls/s", better="higher", rounds=rounds.values, facts=facts)
    return {name: rounds.values for name, rounds in series.items()}


def process_mode(run: Run, nova: Nova) -> None:
    """A fresh process for every call: one caller's latency, then the rate at a few callers."""
    plan, measure = run.plan, "process_mode"
    with run.attempt(NAME, measure):
        run.say("process mode: one caller")
        target = nova.deploy("process-mode", PYTHON, mode="process")
        us = run.caller.series(target, plan.warm_calls // 2, skip=20, max_s=plan.round_limit_s).us
        facts = {"calls": len(us), "p99_us": percentile(us, 99)}
        run.add(measure, "p50", NAME, percentile(us, 50), "µs", rounds=_halves(us, 50), facts=facts)
        throughput(run, measure, {NAME: target}, plan.process_callers)
        nova.delete("process-mode")


def cold_python(run: Run, nova: Nova) -> None:
    cold(run, nova, "cold_python", PYTHON, run.plan.cold_python)


def cold_node(run: Run, nova: Nova) -> None:
    cold(run, nova, "cold_node", NODE, run.plan.cold_node)


def warm_instances(run: Run, nova: Nova) -> None:
    instance_memory(run, nova, PYTHON, run.plan.instances_python)
    instance_memory(run, nova, NODE, run.plan.instances_node)


ON_IDLE_NOVA: dict[str, Callable[[Run, Nova], None]] = {
    "daemon_memory": daemon_memory,
    "cold_python": cold_python,
    "cold_node": cold_node,
    "instance_memory": warm_instances,
}
"""Measures that want a platform without load, in the order in which they disturb it least."""
