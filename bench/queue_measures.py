"""Asynchronous calls: how fast they are accepted, how fast they are done, and what kills do to them."""

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic, perf_counter, sleep

import psycopg

from bench.driving import Burst, DriveError, Target, burst
from bench.measures import Run
from bench.model import Report
from bench.processes import calm
from bench.stats import middle, percentile
from bench.subjects import planes as apart
from bench.subjects import procrastinate as peer
from bench.subjects.control import PYTHON, Control, python
from bench.subjects.nova import NAME, Nova
from bench.subjects.planes import Planes
from bench.subjects.procrastinate import Procrastinate

NAP = python("nap.py")
PATIENT = {"max_attempts": 50, "backoff_base_ms": 1, "backoff_max_ms": 50}
"""More attempts than any job can lose to kills: a dead letter is then the platform's fault."""
_CHAOS_CALLERS = 16
_KILL_WITHIN_S = 0.3
_LEASES_S = 120.0
"""After the last kill: what a killed worker held is taken over when its lease has run out."""
_WATCH = """
CREATE TABLE bench_endings (id uuid NOT NULL, status text NOT NULL);
CREATE FUNCTION bench_ended() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO bench_endings VALUES (NEW.id, NEW.status); RETURN NEW; END $$;
CREATE TRIGGER bench_ended AFTER UPDATE ON async_invocations FOR EACH ROW
WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION bench_ended();
"""
"""Every end of a job, counted where it is written: a second one would show."""
_COUNTS = {
    "lost": "SELECT count(*) FROM unnest(%(ids)s::uuid[]) AS a (id) WHERE NOT EXISTS"
    " (SELECT FROM async_invocations AS j WHERE j.id = a.id AND j.status IN ('succeeded', 'dlq'))",
    "ended_twice": "SELECT count(*) FROM (SELECT id FROM bench_endings GROUP BY id HAVING count(*) > 1) AS t",
    "dead": "SELECT count(*) FROM async_invocations WHERE status = 'dlq'",
}
_ATTEMPTS = "SELECT coalesce(sum(attempt), 0) FROM async_invocations"


def queue(run: Run, only: Collection[str], report: Report, *, peers: bool) -> None:
    """Those of the group that are in ``only``."""
    if {"async_ack", "async_rate"} & set(only):
        with ExitStack() as stack, run.attempt(NAME, "queue"):
            run.say("starting nova up")
            nova = stack.enter_context(Nova(run.command, run.folder, "queue"))
            nova.ready()
            rivals = _start_peer(run, report, stack) if peers and "async_rate" in only else {}
            _accept_and_drain(run, only, NAME, nova, rivals)
        with ExitStack() as stack, run.attempt(apart.NAME, "queue"):
            run.say("starting the six planes")
            _accept_and_drain(
                run, only, apart.NAME, stack.enter_context(Planes(run.command.parent, run.folder / "queue-planes")), {}
            )
    if "chaos" in only:
        chaos(run)


def _deployed(run: Run, shape: Control) -> Target:
    """A function whose instances are warm, and whose first jobs are done."""
    shape.deploy("job", PYTHON)
    target = shape.accepting("job")
    burst(target, run.plan.job_callers, 200, max_s=run.plan.job_limit_s)
    shape.await_jobs(run.plan.job_limit_s)
    return target


def _accept_and_drain(
    run: Run, only: Collection[str], name: str, shape: Control, rivals: "Mapping[str, Drain]"
) -> None:
    """One shape at a time: what the idle processes of another take of two cores would count against it."""
    target = _deployed(run, shape)
    if "async_ack" in only:
        async_ack(run, name, shape, target)
    if "async_rate" in only:
        async_rate(run, {name: _drain(run, shape, target), **rivals})


def async_ack(run: Run, name: str, shape: Control, target: Target) -> None:
    """One caller; the jobs that it makes are worked on meanwhile. Each round starts with an empty queue."""
    plan, measure = run.plan, "async_ack"
    samples: list[float] = []
    rounds: list[float] = []
    with run.attempt(name, measure):
        for number in range(plan.warm_rounds):
            run.say(f"{name}: accepting, round {number + 1}/{plan.warm_rounds}")
            calm()
            us = run.caller.series(target, plan.warm_calls, skip=20, max_s=plan.round_limit_s).us
            samples += us
            rounds.append(percentile(us, 50))
            shape.await_jobs(plan.job_limit_s)
        facts = {"calls": len(samples), "p90_us": percentile(samples, 90), "p99_us": percentile(samples, 99)}
        run.add(measure, "p50", name, percentile(samples, 50), "µs", rounds=rounds, facts=facts)


Drain = Callable[[], tuple[float, dict[str, float]]]
"""Has jobs accepted and done; gives the jobs per second, and facts."""


def _drain(run: Run, shape: Control, target: Target) -> Drain:
    plan = run.plan

    def drain() -> tuple[float, dict[str, float]]:
        before = shape.jobs()["succeeded"]
        accepted = burst(target, plan.job_callers, plan.jobs, max_s=plan.job_limit_s)
        after = shape.await_jobs(plan.job_limit_s)
        took = monotonic() - accepted.began
        facts = {"jobs": plan.jobs, "accepted_per_s": plan.jobs / accepted.seconds, "dead": after["dlq"]}
        return (after["succeeded"] - before) / took, facts

    return drain


def _start_peer(run: Run, report: Report, stack: ExitStack) -> dict[str, Drain]:
    with run.attempt(peer.NAME, "async_rate"):
        run.say(f"starting {peer.NAME}")
        report.subjects[peer.NAME] = peer.described()
        worker = stack.enter_context(Procrastinate(run.folder / peer.NAME))
        worker.drain(50, run.plan.job_limit_s)

        def drain() -> tuple[float, dict[str, float]]:
            jobs = run.plan.peer_jobs
            found = worker.drain(jobs, run.plan.job_limit_s)
            return jobs / found.seconds, {"jobs": jobs, "accepted_per_s": jobs / found.accepted_s}

        return {peer.NAME: drain}
    return {}


def async_rate(run: Run, drains: Mapping[str, Drain]) -> None:
    """From the first request to the last result, in turns. A peer is taken at its best round, as everywhere."""
    plan, measure = run.plan, "async_rate"
    rates: dict[str, list[float]] = {name: [] for name in drains}
    facts: dict[str, dict[str, float]] = {}
    for number in range(plan.job_rounds):
        for name, drain in drains.items():
            run.say(f"{name}: jobs, round {number + 1}/{plan.job_rounds}")
            calm()
            with run.attempt(name, measure):
                rate, facts[name] = drain()
                rates[name].append(rate)
    for name, values in rates.items():
        if len(values) == plan.job_rounds:
            rate = max(values) if name == peer.NAME else middle(values)
            run.add(measure, "rate", name, rate, "jobs/s", better="higher", rounds=values, facts=facts[name])


def chaos(run: Run) -> None:
    """Comets and nebulas, two each, are killed one after another while jobs are accepted and run; then all must be well.

    The function never fails, so a dead letter is a job that died although it succeeded or would have.
    """
    plan, chance = run.plan, random.Random(10_000)
    with run.attempt(NAME, "chaos"):
        run.say("starting two comets and two nebulas")
        accepted: list[str] = []
        unanswered = 0
        with Planes(run.command.parent, run.folder / "chaos", comets=2, nebulas=2) as cluster:
            cluster.deploy("job", NAP, async_policy=PATIENT)
            target = cluster.accepting("job")
            with psycopg.connect(cluster.dsn, autocommit=True) as conn:
                conn.execute(_WATCH)
            start = perf_counter()
            for kill in range(plan.kills):
                run.say(f"chaos: kill {kill + 1}/{plan.kills}")
                share = plan.chaos_jobs * (kill + 1) // plan.kills - len(accepted)
                found = _accept_and_kill(cluster, target, share, chance)
                accepted += found.collected
                unanswered += found.wrong
                if perf_counter() - start > plan.chaos_limit_s:
                    raise DriveError(f"{kill + 1} of {plan.kills} kills within {plan.chaos_limit_s:.0f} s")
            run.say("chaos: waiting for the last jobs")
            left = cluster.drained(_LEASES_S)
            took = perf_counter() - start
            with psycopg.connect(cluster.dsn, autocommit=True) as conn:
                counts = {name: _count(conn, text, accepted) for name, text in _COUNTS.items()}
                attempts = _count(conn, _ATTEMPTS, accepted)
        facts = {"jobs": len(set(accepted)), "kills": plan.kills, "attempts": attempts, "seconds": took}
        facts |= {"requests_refused": unanswered, "left": left}
        for name, count in counts.items():
            run.add("chaos", name, NAME, count, "jobs", facts=facts if name == "lost" else None)


def _accept_and_kill(cluster: Planes, target: Target, jobs: int, chance: random.Random) -> Burst:
    """The kill hits while jobs are accepted and run. The next one waits until the successor serves."""
    victim = chance.choice([*cluster.comets, *cluster.nebulas])
    with ThreadPoolExecutor(1) as pool:
        accepting = pool.submit(burst, target, _CHAOS_CALLERS, jobs, max_s=60, collect="invocation_id", faults=True)
        sleep(chance.uniform(0, _KILL_WITHIN_S))
        cluster.kill(victim)
        found = accepting.result()
    cluster.await_ready(cluster.running[victim])
    return found


def _count(conn: "psycopg.Connection[tuple[int]]", text: str, ids: Sequence[str]) -> int:
    row = conn.execute(text, {"ids": list(ids)}).fetchone()
    if row is None:
        raise DriveError(f"PostgreSQL did not count: {text}")
    return int(row[0])
