"""The planes apart: what the way through zenith costs, what a second comet brings, and what restarts break."""

import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack

from bench.driving import DriveError, SteadyCrowd, Target, crowd
from bench.measures import Run, throughput, warm_latency
from bench.stats import middle
from bench.subjects import planes as subject
from bench.subjects.control import PYTHON, python
from bench.subjects.nova import NAME, Nova
from bench.subjects.planes import Planes

BURN = python("burn.py")
SETTLE_S = 2.0
"""Callers go on for so long before a round is counted: instances start, and zenith notices who is there."""
_CALLERS = 8
"""Callers while planes are restarted: enough that one is always under way, few enough to leave room for the restart."""
_BEFORE_S, _AFTER_S = 0.5, 1.0
_RESTART_LIMIT_S = 120.0


def planes(run: Run, only: Collection[str]) -> None:
    """Those of the group that are in ``only``."""
    if {"planes_latency", "planes_throughput"} & set(only):
        beside_nova_up(run, only)
    if "two_comets" in only:
        two_comets(run)
    if "restarts" in only:
        restarts(run)


def beside_nova_up(run: Run, only: Collection[str]) -> None:
    """The same warm call through six processes and through one, in turns. Each round gives one value of the comparison."""
    with ExitStack() as stack, run.attempt(subject.NAME, "planes"):
        run.say("starting nova up and the six planes")
        nova = stack.enter_context(Nova(run.command, run.folder, "beside"))
        nova.ready()
        apart = stack.enter_context(Planes(run.command.parent, run.folder / "planes"))
        targets = {NAME: nova.deploy("warm", PYTHON), subject.NAME: apart.deploy("warm", PYTHON)}
        if "planes_latency" in only:
            _above(run, warm_latency(run, targets, "planes_latency"))
        if "planes_throughput" in only:
            _share(run, throughput(run, "planes_throughput", targets, run.plan.callers))


def _above(run: Run, medians: Mapping[str, Sequence[float]]) -> None:
    if pairs := _pairs(medians):
        above = [apart - together for together, apart in pairs]
        run.add("planes_latency", "above_nova_up", NAME, middle(above), "µs", rounds=above)


def _share(run: Run, rates: Mapping[str, Sequence[float]]) -> None:
    if pairs := _pairs(rates):
        shares = [apart / together for together, apart in pairs]
        run.add("planes_throughput", "of_nova_up", NAME, middle(shares), "×", better="higher", rounds=shares)


def _pairs(values: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """Round by round, nova up's first; nothing when one of them failed."""
    return list(zip(values.get(NAME, ()), values.get(subject.NAME, ()), strict=False))


def two_comets(run: Run) -> None:
    """One comet on the first core, then a second one on the second, in turns: it comes and goes while callers call."""
    measure = "two_comets"
    with run.attempt(NAME, measure):
        if len(os.sched_getaffinity(0)) < 2 or shutil.which("taskset") is None:
            raise DriveError("it needs two cores and taskset")
        first, second = sorted(os.sched_getaffinity(0))[:2]
        pinned = {"comet": first, "comet-1": second}
        run.say("starting a comet on a core of its own")
        rates: dict[str, list[float]] = {"one comet": [], "two comets": []}
        with Planes(
            run.command.parent, run.folder / "two-comets", comets=2, pinned=pinned, absent=["comet-1"]
        ) as apart:
            target = apart.deploy("burn", BURN)
            for number in range(run.plan.crowd_rounds):
                run.say(f"one comet, round {number + 1}/{run.plan.crowd_rounds}")
                rates["one comet"].append(_burned(run, target))
                apart.start("comet-1")
                run.say(f"two comets, round {number + 1}/{run.plan.crowd_rounds}")
                rates["two comets"].append(_burned(run, target))
                apart.stop("comet-1")
        for name, values in rates.items():
            facts = {"callers": float(run.plan.burn_callers)}
            run.add(measure, "rate", name, middle(values), "calls/s", better="higher", rounds=values, facts=facts)
        times = [two / one for one, two in zip(rates["one comet"], rates["two comets"], strict=True)]
        run.add(measure, "times_one", NAME, middle(times), "×", better="higher", rounds=times)


def _burned(run: Run, target: Target) -> float:
    crowd(target, run.plan.burn_callers, SETTLE_S)
    return crowd(target, run.plan.burn_callers, run.plan.crowd_s).per_s


def restarts(run: Run) -> None:
    """Callers on keep-alive connections, through deploys of the function they call and a restart of each plane.

    Everything that is not a good answer counts: a wrong status, a closed connection, a refused one.
    """
    with run.attempt(NAME, "restarts"):
        run.say("starting the six planes")
        failed: dict[str, int] = {}
        calls, notes = 0, []
        with Planes(run.command.parent, run.folder / "restarts") as apart:
            target = apart.deploy("steady", PYTHON)
            target = Target(target.port, target.path, '"hello":"bench"')
            for what in ("deploys", *apart.everyone):
                run.say(f"callers through {what}")
                with SteadyCrowd(target, _CALLERS, _RESTART_LIMIT_S) as callers:
                    callers.wait(_BEFORE_S)
                    if what == "deploys":
                        for number in range(1, run.plan.deploys + 1):
                            apart.redeploy("steady", PYTHON, number)
                    else:
                        apart.restart(what)
                    callers.wait(_AFTER_S)
                    found = callers.end()
                failed[what], calls = found.wrong, calls + found.calls
                notes += [f"{what}: {found.first_wrong}"] if found.wrong else []
        facts = {f"{what}_failed": float(count) for what, count in failed.items()}
        facts |= {"calls": calls, "deploys": run.plan.deploys}
        run.add("restarts", "failed", NAME, sum(failed.values()), "calls", facts=facts, note="; ".join(notes))
