"""What runs without a person waiting, beside plain jobs: events to many, chains of steps, quiet tenants, full tables."""

import json
from collections.abc import Callable, Collection
from contextlib import ExitStack
from itertools import pairwise
from time import monotonic, perf_counter, sleep, time
from typing import Any

import psycopg

from bench import filling
from bench.driving import DriveError, Target, burst
from bench.measures import Run
from bench.model import Report
from bench.plan import GROUPS
from bench.processes import calm
from bench.stats import middle, percentile
from bench.subjects import dbos as peer
from bench.subjects import restate
from bench.subjects.control import PYTHON, python
from bench.subjects.nova import NAME, Nova
from nova.store.embedded import EmbeddedPostgres

STEPS = 40
_TOPIC, _FLOW, _PAST = "bench", "chain", "past"
_PUBLISHED = 500
"""Messages of one request."""
_LAG_GAP_S = 0.02
_RUNS_AT_ONCE = 16
_POLL_S = 0.02
_PAIRS = 7


def flows(run: Run, only: Collection[str], report: Report, *, peers: bool) -> None:
    """Those of the group that are in ``only``, on one platform; the peer after it, alone."""
    wanted = [measure for measure in GROUPS["flows"] if measure in only]
    if not wanted:
        return
    with ExitStack() as stack, run.attempt(NAME, "flows"):
        run.say("starting nova up")
        nova = stack.enter_context(Nova(run.command, run.folder, "flows"))
        nova.ready()
        for measure in wanted:
            with run.attempt(NAME, measure):
                _MEASURES[measure](run, nova)
    if peers and {"workflow_chain", "durable_chain"} & set(wanted):
        with run.attempt(peer.NAME, "workflow_chain"):
            run.say(f"starting {peer.NAME}")
            report.subjects[peer.NAME] = peer.described()
            calm()
            _peer(run)
    if peers and "durable_chain" in wanted:
        with run.attempt(restate.NAME, "durable_chain"):
            run.say(f"starting {restate.NAME}")
            _restate(run, report)


def fanout(run: Run, nova: Nova) -> None:
    """One topic, ten subscriptions of ten functions: from the first request to the last delivery; then one message at a time."""
    plan = run.plan
    nova.call("POST", "/topics", 201, {"name": _TOPIC})
    subscriptions = []
    for number in range(plan.fanout_subscriptions):
        name = f"fan-{number}"
        nova.deploy(name, python("lag.py"))
        body = {"name": name, "type": "function", "function_name": name, "max_inflight": 10, "ordered": False}
        subscriptions.append(nova.call("POST", f"/topics/{_TOPIC}/subscriptions", 201, body)["id"])
    _publish(nova, 200)
    _delivered(nova, subscriptions, plan.job_limit_s)
    rates = []
    for number in range(plan.job_rounds):
        run.say(f"events to ten subscriptions, round {number + 1}/{plan.job_rounds}")
        calm()
        start = perf_counter()
        _publish(nova, plan.fanout_messages)
        _delivered(nova, subscriptions, plan.job_limit_s)
        rates.append(plan.fanout_messages * len(subscriptions) / (perf_counter() - start))
    facts = {"messages": plan.fanout_messages, "subscriptions": len(subscriptions)}
    run.add("fanout", "rate", NAME, middle(rates), "deliveries/s", better="higher", rounds=rates, facts=facts)
    calm()
    run.say("one event at a time")
    since = nova.call("GET", "/invocations?function=fan-0&limit=1", 200)["items"][0]["id"]
    for _ in range(plan.fanout_lags):
        _publish(nova, 1)
        sleep(_LAG_GAP_S)
    _delivered(nova, subscriptions, plan.job_limit_s)
    lags = _lags(nova, plan.fanout_lags, since)
    tail = {"messages": float(len(lags)), "p90_ms": percentile(lags, 90), "p99_ms": percentile(lags, 99)}
    run.add("fanout", "p50", NAME, percentile(lags, 50), "ms", facts=tail)


def _publish(nova: Nova, count: int) -> None:
    while count > 0:
        size = min(count, _PUBLISHED)
        messages = [{"payload": {"at": time()}} for _ in range(size)]
        nova.call("POST", f"/topics/{_TOPIC}/publish-batch", 201, {"messages": messages})
        count -= size


def _delivered(nova: Nova, subscriptions: list[str], limit_s: float) -> None:
    deadline = monotonic() + limit_s
    left = list(subscriptions)
    while left:
        shown = nova.call("GET", f"/subscriptions/{left[-1]}", 200)
        if not (shown["lag"] or shown["queued"]):
            left.pop()
        elif monotonic() > deadline:
            raise DriveError(f"{shown['lag']} messages wait after {limit_s:.0f} s")
        else:
            sleep(_POLL_S)


def _lags(nova: Nova, count: int, since: str) -> list[float]:
    deadline, found = monotonic() + 30, dict[str, float]()
    while len(found) < count and monotonic() < deadline:
        for row in nova.call("GET", f"/invocations?function=fan-0&limit={min(500, count)}", 200)["items"]:
            if row["id"] > since and row["id"] not in found:
                detail = nova.call("GET", f"/invocations/{row['id']}", 200)
                found[row["id"]] = detail["output"]["lag_ms"]
    return list(found.values())


def workflow_chain(run: Run, nova: Nova) -> None:
    """A workflow of 40 functions one after another, started and awaited in one request; then many such runs at once."""
    plan = run.plan
    nova.deploy("link", PYTHON)
    _publish_chain(nova, _FLOW, "link")
    _run_chain(nova)
    calm()
    run.say(f"a workflow of {STEPS} nodes")
    times = [_timed(lambda: _run_chain(nova)) for _ in range(plan.chains)]
    facts = {"runs": len(times), "p90_ms": percentile(times, 90)}
    run.add("workflow_chain", "p50", NAME, percentile(times, 50), "ms", facts=facts)
    rates = []
    for number in range(plan.job_rounds):
        run.say(f"{plan.chain_runs} runs at once, round {number + 1}/{plan.job_rounds}")
        calm()
        start = perf_counter()
        ids = [nova.call("POST", f"/workflows/{_FLOW}/runs", 201, {"input": {}})["id"] for _ in range(plan.chain_runs)]
        for run_id in reversed(ids):
            _ended(nova, run_id, plan.job_limit_s)
        rates.append(plan.chain_runs * STEPS / (perf_counter() - start))
    run.add("workflow_chain", "nodes", NAME, middle(rates), "nodes/s", better="higher", rounds=rates)


def _publish_chain(nova: Nova, flow: str, function: str) -> None:
    keys = [f"n{number}" for number in range(STEPS)]
    link = {"node_type": "function", "function_name": function, "input_mapping": {"name": "bench"}}
    nodes = [{"node_key": key, **link} for key in keys]
    edges = [{"from": a, "to": b} for a, b in pairwise(keys)]
    nova.call("POST", "/workflows", 201, {"name": flow})
    version = nova.call("POST", f"/workflows/{flow}/versions", 201, {"nodes": nodes, "edges": edges})["version"]
    nova.call("POST", f"/workflows/{flow}/versions/{version}/activate", 200)


def _run_chain(nova: Nova, flow: str = _FLOW) -> None:
    shown = nova.call("POST", f"/workflows/{flow}/runs?wait_s=30", 201, {"input": {"name": "bench"}})
    if shown["status"] != "succeeded":
        raise DriveError(f"the workflow is {shown['status']}: {json.dumps(shown.get('error'))}")


def _ended(nova: Nova, run_id: str, limit_s: float) -> None:
    deadline = monotonic() + limit_s
    while (shown := nova.call("GET", f"/workflows/{_FLOW}/runs/{run_id}", 200))["status"] in ("pending", "running"):
        if monotonic() > deadline:
            raise DriveError(f"the run {run_id} is {shown['status']} after {limit_s:.0f} s")
        sleep(_POLL_S)
    if shown["status"] != "succeeded":
        raise DriveError(f"the run {run_id} is {shown['status']}")


def durable_chain(run: Run, nova: Nova) -> None:
    """A durable function of 40 steps, each committed before the next begins; called and awaited in one request."""
    nova.deploy("steps", python("steps.py"), mode="durable")
    body: dict[str, Any] = {"steps": STEPS}
    for _ in range(3):
        nova.call("POST", "/functions/steps/invoke", 200, body)
    calm()
    run.say(f"a durable function of {STEPS} steps")
    times = [_timed(lambda: nova.call("POST", "/functions/steps/invoke", 200, body)) for _ in range(run.plan.chains)]
    facts = {"runs": len(times), "p90_ms": percentile(times, 90)}
    run.add("durable_chain", "p50", NAME, percentile(times, 50), "ms", facts=facts)


def quiet_tenant(run: Run, nova: Nova) -> None:
    """Jobs of one tenant now and then, alone and beside a tenant with fifty times as many: from acceptance to the end."""
    plan = run.plan
    nova.call("POST", "/tenants", 201, {"name": "quiet", "id": "quiet"})
    headers = {"X-Nova-Tenant": "quiet"}
    nova.deploy("loud", PYTHON)
    nova.deploy("calm", PYTHON, headers=headers)
    alone = _quiet_jobs(run, nova, headers)
    target = nova.accepting("loud")
    burst(target, plan.job_callers, plan.quiet_jobs * 50, max_s=plan.job_limit_s)
    beside = _quiet_jobs(run, nova, headers)
    nova.await_jobs(plan.job_limit_s)
    p99 = percentile(alone, 99), percentile(beside, 99)
    facts = {"alone_p99_ms": p99[0], "beside_p99_ms": p99[1], "alone_p50_ms": percentile(alone, 50)}
    facts |= {"beside_p50_ms": percentile(beside, 50), "jobs": len(beside)}
    run.add("quiet_tenant", "times_alone", NAME, p99[1] / p99[0], "×", facts=facts)


def _quiet_jobs(run: Run, nova: Nova, headers: dict[str, str]) -> list[float]:
    times = []
    for _ in range(run.plan.quiet_jobs):

        def job() -> None:
            wish = {"payload": {"name": "bench"}}
            accepted = nova.call("POST", "/functions/calm/invoke-async", 202, wish, headers=headers)
            path = f"/async-invocations/{accepted['invocation_id']}?wait_s=30"
            if (shown := nova.call("GET", path, 200, headers=headers))["status"] != "succeeded":
                raise DriveError(f"a job is {shown['status']}: {shown['error']}")

        times.append(_timed(job))
    return times


def full_tables(run: Run, nova: Nova) -> None:
    """Jobs, events and workflows on empty tables and beside a million finished jobs, by turns: a machine's pace drifts by more
    than is asked about. Statistics are as they come by themselves. Then what one caller notices while the million goes."""
    plan = run.plan
    with ExitStack() as stack:
        run.say("starting another nova up")
        other = stack.enter_context(Nova(run.command, run.folder, "full"))
        other.ready()
        empty, full = _Days(run, nova), _Days(run, other)
        for days in (empty, full):
            days.figures()
        conn = stack.enter_context(psycopg.connect(EmbeddedPostgres(other.data).dsn, autocommit=True))
        filling.finished_jobs(conn, plan.finished_jobs, run.say)
        filling.deliveries(conn, plan.finished_jobs // 10, run.say)
        other.settle()
        pairs = []
        for number in range(_PAIRS):
            run.say(f"jobs, events, workflows, round {number + 1}/{_PAIRS}")
            order = (empty, full) if number % 2 else (full, empty)
            found = {days: days.figures() for days in order}
            pairs.append((found[empty], found[full]))
        for name, metric in {"jobs": "share", "deliveries": "events", "chains": "workflows"}.items():
            share = [after[name] / before[name] for before, after in pairs]
            facts = {"finished": float(plan.finished_jobs), "empty": middle([before[name] for before, _ in pairs])}
            run.add("full_tables", metric, NAME, middle(share), "×", better="higher", rounds=share, facts=facts)
        _removal(run, other, full.target, conn)


class _Days:
    """A platform with a function, a topic and a workflow, and how fast it does its work with them."""

    def __init__(self, run: Run, nova: Nova) -> None:
        self._run = run
        self._nova = nova
        self.target = nova.deploy("past", PYTHON)
        nova.call("POST", "/topics", 201, {"name": _PAST})
        nova.deploy("heard", python("lag.py"))
        heard = {"name": _PAST, "type": "function", "function_name": "heard", "max_inflight": 10, "ordered": False}
        self._subscribed = nova.call("POST", f"/topics/{_PAST}/subscriptions", 201, heard)["id"]
        _publish_chain(nova, _PAST, "past")

    def figures(self) -> dict[str, float]:
        """Jobs, deliveries and workflows in a millisecond."""
        plan, nova = self._run.plan, self._nova
        calm()
        accepting = nova.accepting("past")
        jobs = _timed(
            lambda: (
                burst(accepting, plan.job_callers, plan.jobs, max_s=plan.job_limit_s),
                nova.await_jobs(plan.job_limit_s),
            )
        )
        messages = {"messages": [{"payload": {"at": time()}}] * _PUBLISHED}
        batches = plan.fanout_messages // _PUBLISHED

        def events() -> None:
            for _ in range(batches):
                nova.call("POST", f"/topics/{_PAST}/publish-batch", 201, messages)
            _delivered(nova, [self._subscribed], plan.job_limit_s)

        deliveries = batches * _PUBLISHED / _timed(events)
        chain = percentile([_timed(lambda: _run_chain(nova, _PAST)) for _ in range(plan.chains)], 50)
        return {"jobs": plan.jobs / jobs, "deliveries": deliveries, "chains": 1 / chain}


def _removal(run: Run, nova: Nova, target: Target, conn: psycopg.Connection[Any]) -> None:
    """One caller alone, and while all that is older than a day goes."""
    plan = run.plan

    def p99() -> float:
        return percentile(run.caller.series(target, plan.warm_calls, skip=20, max_s=plan.round_limit_s).us, 99)

    calm()
    run.say("calls, nothing to remove")
    alone = middle([p99() for _ in range(plan.job_rounds)])
    for key in ("async_days", "deliveries_days"):
        nova.call("POST", "/config", 200, {f"retention.{key}": 1})
    run.say("calls while retention removes what is old")
    start, before, beside = perf_counter(), filling.past(conn), list[float]()
    left = before
    while left and perf_counter() - start < plan.removal_limit_s:
        beside.append(p99())
        left = filling.past(conn)
    took = perf_counter() - start
    if left:
        raise DriveError(f"{left} of {before} rows are still there after {took:.0f} s")
    facts = {"rows": float(before), "rows_per_s": before / took, "alone_p99_us": alone, "beside_p99_us": middle(beside)}
    run.add(
        "full_tables", "removal_p99", NAME, middle(beside) / alone, "×", rounds=[b / alone for b in beside], facts=facts
    )


def _peer(run: Run) -> None:
    plan = run.plan
    chain_ms, per_s = peer.measured(
        run.folder / "dbos", steps=STEPS, rounds=plan.chains, workflows=plan.peer_workflows, max_s=plan.job_limit_s
    )
    p50 = percentile(chain_ms, 50)
    run.add("workflow_chain", "p50", peer.NAME, p50, "ms", note="its steps are not isolated")
    run.add("durable_chain", "p50", peer.NAME, p50, "ms", note="its steps are not isolated")
    run.add("async_rate", "rate", peer.NAME, per_s, "jobs/s", better="higher", note="workflows of one step")


def _restate(run: Run, report: Report) -> None:
    plan = run.plan
    subject = restate.Restate(run.say)
    report.subjects[restate.NAME] = subject.described
    calm()
    times = subject.chain(run.folder / "restate", steps=STEPS, rounds=plan.chains, max_s=plan.job_limit_s)
    facts = {"runs": len(times), "p90_ms": percentile(times, 90)}
    note = "its steps are not isolated"
    run.add("durable_chain", "p50", restate.NAME, percentile(times, 50), "ms", facts=facts, note=note)


def _timed(what: Callable[[], object]) -> float:
    """Milliseconds."""
    start = perf_counter()
    what()
    return (perf_counter() - start) * 1000


_MEASURES: dict[str, Callable[[Run, Nova], None]] = {
    "fanout": fanout,
    "workflow_chain": workflow_chain,
    "durable_chain": durable_chain,
    "quiet_tenant": quiet_tenant,
    "full_tables": full_tables,
}
