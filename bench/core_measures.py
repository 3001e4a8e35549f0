"""What a second core is worth to one server: the same workers, pinned to one core and let onto two, in turns."""

import os
from collections.abc import Collection
from pathlib import Path

from bench.driving import DriveError, Target, crowd
from bench.measures import Run
from bench.processes import Process
from bench.stats import middle
from bench.subjects.control import PYTHON, python
from bench.subjects.nova import NAME, Nova

BURN_2MS = python("burn.py")
_SETTLE_S = 1.0
_WORKERS = "2"


def cores(run: Run, only: Collection[str]) -> None:
    if "two_cores" in only:
        two_cores(run)


def two_cores(run: Run) -> None:
    """``nova up --workers 2`` on one core, then on two, in turns: calls that burn 2 ms of CPU, and calls that do nothing."""
    measure = "two_cores"
    with run.attempt(NAME, measure):
        available = sorted(os.sched_getaffinity(0))
        if len(available) < 2:
            raise DriveError("it needs two cores")
        run.say("starting nova up with two workers")
        with Nova(run.command, run.folder, "two-cores", {"NOVA_DAEMON_WORKERS": _WORKERS}) as nova:
            nova.ready()
            source = BURN_2MS.source.replace("BURN_S = 0.010", "BURN_S = 0.002")
            burn = nova.deploy("burn", type(BURN_2MS)(BURN_2MS.runtime, BURN_2MS.handler, source))
            rates: dict[int, list[float]] = {1: [], 2: []}
            for number in range(run.plan.crowd_rounds):
                for count, values in rates.items():
                    run.say(f"{count} of its cores, round {number + 1}/{run.plan.crowd_rounds}")
                    pin(nova.processes(), available[:count])
                    values.append(_rate(run, burn))
            for count, values in rates.items():
                facts = {"callers": float(run.plan.burn_callers)}
                metric = f"cores_{count}"
                run.add(measure, metric, NAME, middle(values), "calls/s", better="higher", rounds=values, facts=facts)
            times = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
            run.add(measure, "times_one", NAME, middle(times), "×", better="higher", rounds=times)
            warm = nova.deploy("warm", PYTHON)
            found = [crowd(warm, run.plan.callers, run.plan.crowd_s).per_s for _ in range(run.plan.crowd_rounds)]
            run.add(measure, "warm", NAME, middle(found), "calls/s", better="higher", rounds=found)


def _rate(run: Run, target: Target) -> float:
    crowd(target, run.plan.burn_callers, _SETTLE_S)
    return crowd(target, run.plan.burn_callers, run.plan.crowd_s).per_s


def pin(processes: Collection[Process], to: Collection[int]) -> None:
    """Let every thread of these processes, and whatever they start from now on, run on these cores only."""
    for process in processes:
        for task in Path(f"/proc/{process.pid}/task").glob("*"):
            try:
                os.sched_setaffinity(int(task.name), to)
            except ProcessLookupError:
                continue  # it has just ended
