"""Whose turn it is among a function's jobs, when not all that are due may run: places for a key or for the function, and a pace.

Pure: the store says what stands, this decides, the store writes it.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

State = Literal["paced", "waiting", "holding"]
SLACK_S = 0.1
"""How far the pace may run ahead: what is due within this starts together, so that a fast pace is not cut up into claims."""


@dataclass(frozen=True, slots=True)
class Gate:
    """What a claimed job is held to. ``key`` empty: to nothing of its own. None: the function has no such limit."""

    key: str
    key_limit: int
    max_inflight: int | None
    rate: float | None
    priority: int
    due: datetime

    @property
    def needs_place(self) -> bool:
        return bool(self.key) or self.max_inflight is not None


@dataclass(frozen=True, slots=True)
class Asking:
    """A job at the gate of its function. ``state`` is what it was told before, if it was."""

    id: str
    gate: Gate
    state: State | None = None


@dataclass(slots=True)
class Standing:
    """A function's gate as it is: places taken, by key; keys for which jobs wait; seconds until the pace allows the next."""

    held: dict[str, int] = field(default_factory=dict)
    waiting: set[str] = field(default_factory=set)
    next_s: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.held.values())


@dataclass(slots=True)
class Decision:
    """``run``: now, of them ``hold`` with a place. ``wait``: until a place is free. ``pace``: in so many seconds."""

    run: list[str] = field(default_factory=list)
    hold: list[str] = field(default_factory=list)
    wait: list[str] = field(default_factory=list)
    pace: dict[str, float] = field(default_factory=dict)


def decide(asking: Iterable[Asking], standing: Standing) -> Decision:
    """Higher priority first, then whoever was due first. ``standing`` is brought up to date."""
    decision = Decision()
    for job in sorted(asking, key=lambda job: (job.gate.priority, job.gate.due, job.id)):
        gate = job.gate
        if job.state == "holding":
            decision.run.append(job.id)
            continue
        if gate.rate is not None and job.state is None:
            turn = max(standing.next_s, -SLACK_S)
            standing.next_s = turn + 1 / gate.rate
            if turn > 0:
                decision.pace[job.id] = turn
                continue
        if not gate.needs_place:
            decision.run.append(job.id)
        elif _full(gate, standing):
            standing.waiting.add(gate.key)
            decision.wait.append(job.id)
        else:
            standing.held[gate.key] = standing.held.get(gate.key, 0) + 1
            decision.run.append(job.id)
            decision.hold.append(job.id)
    return decision


def _full(gate: Gate, standing: Standing) -> bool:
    if gate.key and (gate.key in standing.waiting or standing.held.get(gate.key, 0) >= gate.key_limit):
        return True
    return gate.max_inflight is not None and standing.total >= gate.max_inflight


@dataclass(frozen=True, slots=True)
class Waiting:
    id: str
    key: str
    key_limit: int


def promote(waiting: Iterable[Waiting], held: dict[str, int], max_inflight: int | None) -> list[str]:
    """Who of those that wait, in their order, gets the places that are free. ``held`` is brought up to date."""
    chosen = []
    for job in waiting:
        if max_inflight is not None and sum(held.values()) >= max_inflight:
            break
        if job.key and held.get(job.key, 0) >= job.key_limit:
            continue
        held[job.key] = held.get(job.key, 0) + 1
        chosen.append(job.id)
    return chosen
