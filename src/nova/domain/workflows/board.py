"""The state of one run in memory, and the few moves of which everything that happens in it is made."""

import heapq
from datetime import datetime, timedelta
from itertools import count
from typing import Any, Literal

from nova.domain.workflows.definition import Definition
from nova.domain.workflows.frames import MAX_INPUT, Eyes, FrameState
from nova.domain.workflows.state import (
    ITSELF,
    Call,
    CallEnd,
    Ended,
    Ending,
    Facts,
    Failure,
    NodeState,
    Ref,
    StartRun,
    Step,
    Tried,
    concerns,
    pause_s,
)
from nova.ids import new_id

Alarm = Literal["wake", "timeout", "undo", "deadline"]
REFUSED_FOR = timedelta(hours=1)
"""A call that is refused for a reason that passes is tried again for so long."""


class MapState:
    """A map that runs. ``states`` has what was begun; ``total`` counts calls, each for up to a batch of items."""

    __slots__ = ("done", "failed", "items", "next", "running", "states", "total")

    def __init__(self, items: list[Any], batch: int) -> None:
        self.items = items
        self.total = -(-len(items) // batch)
        self.states: dict[int, NodeState] = {}
        self.next = 0
        self.running = 0
        self.done = 0
        self.failed = 0
        """items, not calls"""


class Board:
    """``calls`` and ``runs`` are under way: functions by the node, runs below this one by their id. ``status`` is what the
    run's row says; ``ending`` is set once it cannot succeed any more, ``ended`` when there is nothing left to do."""

    def __init__(self, definition: Definition, facts: Facts) -> None:
        self.definition = definition
        self.facts = facts
        self.states = [NodeState(open=len(node.incoming)) for node in definition.nodes]
        self.frames = [FrameState(frame.index, definition, self.states) for frame in definition.frames]
        self.maps: dict[int, MapState] = {}
        self.eyes = Eyes(definition, facts, self.states, self.frames)
        self.step = Step()
        self.calls: set[Ref] = set()
        self.runs: dict[str, Ref] = {}
        self.completed = 0
        self.status = "running"
        self.paused = False
        self.ending: Ending | None = None
        self.ended: Ended | None = None
        self._alarms: list[tuple[datetime, int, Alarm, Ref]] = []
        self._numbers = count()

    def state(self, ref: Ref) -> NodeState:
        index, item = ref
        return self.states[index] if item == ITSELF else self.maps[index].states[item]

    def spec(self, ref: Ref) -> Any:
        """What says how this is called: the node, or what a map does with each item."""
        spec = self.definition.nodes[ref[0]].spec
        return spec if ref[1] == ITSELF else spec.do

    def path(self, ref: Ref) -> str:
        path = self.definition.nodes[ref[0]].path
        return path if ref[1] == ITSELF else f"{path}[{ref[1]}]"

    def touch(self, ref: Ref) -> None:
        self.step.changed[ref] = None

    def alarm(self, when: datetime, kind: Alarm, ref: Ref) -> None:
        heapq.heappush(self._alarms, (when, next(self._numbers), kind, ref))

    @property
    def next_alarm(self) -> datetime | None:
        return self._alarms[0][0] if self._alarms else None

    def due(self, now: datetime) -> list[tuple[datetime, Alarm, Ref]]:
        """Alarms whose time has come, taken off."""
        found = []
        while self._alarms and self._alarms[0][0] <= now:
            when, _, kind, ref = heapq.heappop(self._alarms)
            found.append((when, kind, ref))
        return found

    def begin_unit(self, ref: Ref, data: bytes, now: datetime) -> Failure | None:
        """Call the function, or start the run, that ``ref`` stands for. What forbids it."""
        state, spec = self.state(ref), self.spec(ref)
        state.input = data
        state.started_at = state.started_at or now
        state.wake_at = None
        if len(data) > MAX_INPUT:
            return Failure(
                "Nova.PayloadTooLarge", f"the input has {len(data)} bytes; the limit is {MAX_INPUT}", self.path(ref)
            )
        state.attempt += 1
        if spec.node_type == "function":
            state.status = "running"
            self.calls.add(ref)
            self.step.calls.append(
                Call(ref, "call", spec.function_name, spec.qualifier, data, spec.timeout_s, state.attempt)
            )
            if ref[1] == ITSELF:
                self.touch(ref)
            return None
        if self.facts.depth >= self.facts.max_depth:
            deep = f"workflows start one another {self.facts.max_depth} deep, which is the limit (workflows.max_depth)"
            return Failure("Nova.Recursion", deep, self.path(ref))
        state.status = "waiting"
        state.child = new_id()
        self.runs[state.child] = ref
        self.step.runs.append(StartRun(ref, state.child, spec.workflow_name, spec.version, data, spec.timeout_s))
        self.touch(ref)
        return None

    def again(self, ref: Ref, error: Failure, now: datetime) -> bool:
        """Is another attempt worth it? Then it waits for its time."""
        state, policy = self.state(ref), self.spec(ref).retry_policy
        if state.attempt >= policy.max_attempts or not concerns(policy.on, error):
            return False
        state.error = error
        self.wait(ref, now + timedelta(seconds=pause_s(policy, state.attempt)))
        return True

    def wait(self, ref: Ref, until: datetime) -> None:
        state = self.state(ref)
        state.status, state.child, state.wake_at = "waiting", None, until
        self.alarm(until, "wake", ref)
        self.touch(ref)

    def refused(self, ref: Ref, end: CallEnd, now: datetime) -> bool:
        """Was the call refused for a reason that passes? Then it waits, and this was no attempt."""
        state = self.state(ref)
        if end.again_s is None or (state.started_at is not None and now - state.started_at > REFUSED_FOR):
            return False
        state.attempt -= 1
        state.error = end.error
        self.wait(ref, now + timedelta(seconds=end.again_s))
        return True

    def tried(self, ref: Ref, end: CallEnd, attempt: int, *, undo: bool = False) -> None:
        self.step.tried.append(
            Tried(
                ref,
                "compensation" if undo else "call",
                attempt,
                end.request_id,
                end.started_at,
                end.duration_ms,
                end.error,
            )
        )

    def drop_unit(self, ref: Ref) -> None:
        """Whatever was begun for this is not wanted any more."""
        state = self.state(ref)
        if ref in self.calls:
            self.calls.discard(ref)
            self.step.cancelled_calls.append(ref)
            self.step.calls = [call for call in self.step.calls if call.ref != ref]
        if state.child is not None and state.child in self.runs:
            del self.runs[state.child]
            before = len(self.step.runs)
            self.step.runs = [run for run in self.step.runs if run.run_id != state.child]
            if len(self.step.runs) == before:
                self.step.cancelled_runs.append(state.child)
