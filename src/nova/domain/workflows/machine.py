"""The machine that advances a run: told what happened, it says what is to be written and done. It does nothing by itself.

Every method is one moment. What it came to gathers in ``step``, which the engine takes, writes in one transaction, and then
does. So a machine that is made again from what was written goes on where this one was.
"""

from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from nova import payload
from nova.domain.workflows.board import Board
from nova.domain.workflows.definition import Definition, Node
from nova.domain.workflows.document import MAX_WAIT_S, RetryPolicy
from nova.domain.workflows.frames import decoded, encoded
from nova.domain.workflows.mapping import MappingFailed
from nova.domain.workflows.maps import Maps
from nova.domain.workflows.state import (
    ITSELF,
    Ask,
    Call,
    CallEnd,
    Ended,
    Ending,
    Facts,
    Failure,
    NodeState,
    Purpose,
    Ref,
    Step,
    concerns,
    pause_s,
)

UNDO_POLICY = RetryPolicy(max_attempts=3)
"""Of compensations; what fails for good is told in the run's error, and the others are done all the same."""
UNDO_TIMEOUT_S = 60.0


class Machine:
    """One run. ``status`` is what the run's row says; ``ended`` is set when there is nothing left to do."""

    def __init__(self, definition: Definition, facts: Facts) -> None:
        self.board = Board(definition, facts)
        self.status = "running"
        self.ending: Ending | None = None
        self.ended: Ended | None = None
        self.paused = False
        self._nodes = definition.nodes
        self._maps = Maps(self.board, self._map_ended)
        self._waiting: deque[tuple[bool, int]] = deque()
        """(settle or enter, node) that this moment still has to do"""
        self._events: dict[str, deque[tuple[str, bytes]]] = {}
        """what was sent before anybody waited for it"""
        self._listening: dict[str, deque[int]] = {}
        self._late: list[tuple[datetime, Any, Ref]] = []
        """alarms that rang while the run was paused"""
        self._undo: list[int] | None = None
        self._undoing: int | None = None
        self._undo_attempt = 0

    # What the engine asks

    def take(self) -> Step:
        """What there is to write and to do since the last time."""
        step, self.board.step = self.board.step, Step()
        return step

    @property
    def busy(self) -> bool:
        """Functions are being called."""
        return bool(self.board.calls) or self._undoing is not None

    @property
    def next_alarm(self) -> datetime | None:
        return self.board.next_alarm

    # What the engine tells

    def begin(
        self, rows: Iterable[tuple[str, int, NodeState]], status: str, ending: Ending | None, now: datetime
    ) -> None:
        """Take up a run with what was written of its nodes; nothing, when it has not begun."""
        self.status = status
        self.paused = status == "paused"
        self.ending = ending
        self.board.frames[0].begin(self.board.facts.input)
        lost = self._restore(rows)
        self.board.alarm(self.board.facts.deadline_at, "deadline", (0, ITSELF))
        for ref in lost:  # called by a process that is no more
            self.board.state(ref).attempt -= 1
            self._begin_unit(ref, self.board.state(ref).input or b"null", now)
        if ending is not None:
            self._unwind(now)
        else:
            self._go_on(now)
        self._drain(now)

    def call_ended(self, ref: Ref, purpose: Purpose, end: CallEnd, now: datetime) -> None:
        if purpose == "compensation":
            self._undone(ref[0], end, now)
        elif ref in self.board.calls:
            self.board.calls.discard(ref)
            self._unit_ended(ref, end, now)
        self._drain(now)

    def run_ended(
        self, run_id: str, status: str, output: bytes, error: Failure | None, event: str, now: datetime
    ) -> None:
        """A run below this one."""
        self.board.step.consumed.append(event)
        ref = self.board.runs.pop(run_id, None)
        if ref is None:
            return
        self.board.state(ref).child = None
        failure = None if status == "succeeded" else error or Failure("Nova.Cancelled", f"the run below is {status}")
        end = CallEnd("", now, 0, output=output if failure is None else None, error=failure)
        self._unit_ended(ref, end, now)
        self._drain(now)

    def run_refused(self, ref: Ref, failure: Failure, now: datetime) -> None:
        """A run below this one could not begin."""
        self.board.drop_unit(ref)
        self.board.state(ref).child = None
        self._unit_ended(ref, CallEnd("", now, 0, error=failure), now)
        self._drain(now)

    def sent(self, key: str, data: bytes, event: str, now: datetime) -> None:
        listening = self._listening.get(key)
        while listening:
            index = listening.popleft()
            if self.board.states[index].status == "waiting":
                self.board.step.consumed.append(event)
                self._succeed(index, data, now)
                self._drain(now)
                return
        self._events.setdefault(key, deque()).append((event, data))

    def decided(self, path: str, answer: bytes, event: str, now: datetime) -> None:
        """An approval of the node was answered."""
        self.board.step.consumed.append(event)
        index = self.board.definition.by_path.get(path, -1)
        if index < 0 or self.board.states[index].status != "waiting":
            return
        if payload.decode(answer)["approved"]:
            self._succeed(index, answer, now)
        else:
            by = payload.decode(answer)["by"]
            self._fail(index, Failure("Nova.Rejected", f"{by} rejected it", path), now)
        self._drain(now)

    def cancel(self, reason: str, compensate: bool, event: str, now: datetime) -> None:
        self.board.step.consumed.append(event)
        self._end(Ending("cancelled", Failure("Nova.Cancelled", reason or "cancelled"), compensate), True, now)
        self._drain(now)

    def pause(self, event: str) -> None:
        """Begin nothing new."""
        self.board.step.consumed.append(event)
        if self.ending is None and not self.paused:
            self.paused, self.status = True, "paused"
            self.board.step.status = True

    def resume(self, event: str, now: datetime) -> None:
        self.board.step.consumed.append(event)
        if not self.paused:
            return
        self.paused = False
        if self.ending is None:
            self.status = "running"
            self.board.step.status = True
        for when, kind, ref in self._late:
            self.board.alarm(when, kind, ref)
        self._late.clear()
        self._go_on(now)
        self._drain(now)

    def tick(self, now: datetime) -> None:
        """Do what is due."""
        for when, kind, ref in self.board.due(now):
            if kind == "deadline":
                error = Failure("Nova.Timeout", "the run did not end in its time")
                self._end(Ending("timed_out", error, True), True, now)
            elif kind == "undo":
                self._undo_next()
            elif self.ending is not None:
                continue
            elif self.paused:
                self._late.append((when, kind, ref))
            elif kind == "wake":
                self._woken(ref, when, now)
            else:
                self._timed_out(ref[0], now)
            self._drain(now)

    # Taking up what was written

    def _restore(self, rows: Iterable[tuple[str, int, NodeState]]) -> list[Ref]:
        """Calls that somebody else had begun."""
        items: dict[int, dict[int, NodeState]] = {}
        lost: list[Ref] = []
        for path, item, state in rows:
            index = self.board.definition.by_path.get(path)
            if index is None:
                continue
            if item != ITSELF:
                items.setdefault(index, {})[item] = state
                continue
            state.open = len(self._nodes[index].incoming)
            if state.status == "ready":
                state.status, state.given, state.input = "pending", state.input, None
            self.board.states[index] = state
            self.board.completed = max(self.board.completed, (state.completed_no or 0) + 1)
        for index, states in items.items():
            self._maps.restore(self._nodes[index], states)
            for item, state in states.items():
                self._restore_waiting((index, item), state)
        for index, state in enumerate(self.board.states):
            if state.ended:
                self._restore_ended(index, state)
            elif state.status in ("running", "waiting"):
                lost += self._restore_begun(index, state)
        return lost

    def _restore_ended(self, index: int, state: NodeState) -> None:
        node = self._nodes[index]
        frame = self.board.frames[node.frame]
        frame.open -= 1
        for edge in node.outgoing:
            target = self.board.states[edge.target]
            target.open -= 1
            if state.taken is not None and edge.no in state.taken:
                target.active.append(index)
        if state.status == "failed" and state.taken is None:
            frame.closed, frame.failure = True, state.error
        elif state.status == "succeeded" and node.type == "succeed":
            frame.closed, frame.output = True, state.output

    def _restore_begun(self, index: int, state: NodeState) -> list[Ref]:
        node, ref = self._nodes[index], (index, ITSELF)
        self._set_timeout(node, state)
        if node.type == "function" and state.status == "running":
            return [ref]
        if node.type == "parallel":
            for frame in node.frames:
                self.board.frames[frame].begin(state.input or b"null")
        elif node.type == "map" and index not in self.board.maps:
            self._maps.restore(node, {})
        elif node.type == "wait_event":
            self._listen(node)
        self._restore_waiting(ref, state)
        return []

    def _restore_waiting(self, ref: Ref, state: NodeState) -> None:
        if state.status == "waiting" and state.wake_at is not None:
            self.board.alarm(state.wake_at, "wake", ref)
        if state.status == "waiting" and state.child is not None:
            self.board.runs[state.child] = ref

    def _go_on(self, now: datetime) -> None:
        """Look at everything that might begin."""
        for frame in self.board.frames:
            if frame.input is not None and not frame.closed:
                self._look(frame.index)
        for index in list(self.board.maps):
            if self.board.states[index].status == "running" and not self.paused:
                self._maps.fill(self._nodes[index], now)

    def _look(self, frame: int) -> None:
        for index in self.board.definition.frames[frame].ordered:
            if self.board.states[index].status == "pending" and self._reached(index):
                self._waiting.append((False, index))
        if self.board.frames[frame].open == 0:
            self._waiting.append((True, self.board.definition.frames[frame].ordered[-1]))

    # One moment

    def _drain(self, now: datetime) -> None:
        while self._waiting and self.ended is None:
            settle, index = self._waiting.popleft()
            if settle:
                self._check_frame(self._nodes[index].frame, now)
            else:
                self._enter(index, now)
        if self.ending is not None and self.ended is None:
            self._unwind(now)

    def _reached(self, index: int) -> bool:
        state, node = self.board.states[index], self._nodes[index]
        return state.open == 0 or (node.spec.join == "any" and bool(state.active))

    def _enter(self, index: int, now: datetime) -> None:
        state, node = self.board.states[index], self._nodes[index]
        frame = self.board.frames[node.frame]
        if state.status != "pending" or frame.closed or self.ending is not None or self.paused:
            return
        try:
            if (node.parents and not state.active) or (
                node.when is not None and not node.when(self.board.eyes.context(node))
            ):
                self._skip(index, now)
            else:
                self._begin(node, state, now)
        except MappingFailed as exc:
            self._fail(index, Failure("Nova.MappingFailed", str(exc), node.path), now)

    def _begin(self, node: Node, state: NodeState, now: datetime) -> None:
        """Raises MappingFailed."""
        index, spec = node.index, node.spec
        if node.type == "map":
            self._maps.begin(node, now)
            self._set_timeout(node, state)
            return
        data = self.board.eyes.input(node)
        state.input, state.started_at = data, now
        match node.type:
            case "function" | "sub_workflow":
                self._begin_unit((index, ITSELF), data, now)
            case "pass" if node.value is not None:
                self._succeed(index, self.board.eyes.make(node, node.value, "value"), now)
            case "pass" | "choice":
                self._succeed(index, data, now)
            case "succeed":
                self._succeed(index, data, now)
            case "fail":
                self._fail(index, Failure(spec.error, spec.cause, node.path), now)
            case "wait":
                self.board.wait((index, ITSELF), self._until(node, now))
            case "wait_event":
                self._wait_event(node, state, data, now)
            case "parallel":
                state.status = "running"
                self.board.touch((index, ITSELF))
                for frame in node.frames:
                    self.board.frames[frame].begin(data)
                    self._look(frame)
        self._set_timeout(node, state)

    def _begin_unit(self, ref: Ref, data: bytes, now: datetime) -> None:
        failure = self.board.begin_unit(ref, data, now)
        if failure is not None:
            self._fail(ref[0], failure, now)

    def _until(self, node: Node, now: datetime) -> datetime:
        assert node.value is not None
        value = node.value(self.board.eyes.context(node))
        if node.spec.seconds is not None:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_WAIT_S:
                raise MappingFailed(f"seconds: from 0 to {MAX_WAIT_S}")
            return now + timedelta(seconds=value)
        try:
            until = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            raise MappingFailed("until: this is no time (RFC 3339)") from None
        until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
        return min(until, now + timedelta(seconds=MAX_WAIT_S))

    def _wait_event(self, node: Node, state: NodeState, data: bytes, now: datetime) -> None:
        state.status = "waiting"
        self.board.touch((node.index, ITSELF))
        if node.spec.approval is not None:
            timeout = node.spec.timeout_s
            self.board.step.asked.append(
                Ask(node.index, data, None if timeout is None else now + timedelta(seconds=timeout))
            )
            return
        key = self._listen(node)
        if early := self._events.get(key):
            event, sent = early.popleft()
            self.board.step.consumed.append(event)
            self._succeed(node.index, sent, now)

    def _listen(self, node: Node) -> str:
        """Raises MappingFailed when the event's key is no text."""
        if node.value is None:
            return ""
        key = node.value(self.board.eyes.context(node))
        if not isinstance(key, str):
            raise MappingFailed("key: this is no text")
        self._listening.setdefault(key, deque()).append(node.index)
        return key

    def _set_timeout(self, node: Node, state: NodeState) -> None:
        timeout = getattr(node.spec, "timeout_s", None)
        if node.type != "function" and timeout is not None and state.started_at is not None and not state.ended:
            self.board.alarm(state.started_at + timedelta(seconds=timeout), "timeout", (node.index, ITSELF))

    def _woken(self, ref: Ref, when: datetime, now: datetime) -> None:
        state = self.board.state(ref)
        if state.status != "waiting" or state.wake_at != when:
            return
        state.wake_at = None
        if ref[1] != ITSELF:
            self._maps.begin_item(self._nodes[ref[0]], ref[1], now)
            self._maps_go_on(ref[0], now)
        elif self._nodes[ref[0]].type == "wait":
            self._succeed(ref[0], state.input or b"null", now)
        else:
            self._begin_unit(ref, state.input or b"null", now)

    def _timed_out(self, index: int, now: datetime) -> None:
        node, state = self._nodes[index], self.board.states[index]
        if state.status not in ("running", "waiting"):
            return
        self._stop(index, now, "expired")
        self._fail(index, Failure("Nova.Timeout", f"it did not end within {node.spec.timeout_s:g} s", node.path), now)

    # How nodes end

    def _unit_ended(self, ref: Ref, end: CallEnd, now: datetime) -> None:
        index, item = ref
        if item != ITSELF:
            if self.ending is None or end.again_s is None:
                self._maps.call_ended(self._nodes[index], item, end, now)
            self._maps_go_on(index, now)
            return
        state, node = self.board.states[index], self._nodes[index]
        if self.ending is None and self.board.refused(ref, end, now):
            return
        if node.type == "function":
            self.board.tried(ref, end, state.attempt)
        if end.error is None:
            self._mapped(node, end.output or b"null", now)
            return
        failure = Failure(end.error.type, end.error.message, end.error.path or node.path)
        if self.ending is not None or not self.board.again(ref, failure, now):
            self._fail(index, failure, now)

    def _maps_go_on(self, index: int, now: datetime) -> None:
        if self.board.states[index].status == "running" and not self.paused and self.ending is None:
            self._maps.fill(self._nodes[index], now)

    def _map_ended(self, index: int, output: bytes | None, failure: Failure | None, now: datetime) -> None:
        if failure is not None:
            self._fail(index, failure, now)
        else:
            self._mapped(self._nodes[index], output or b"[]", now)

    def _mapped(self, node: Node, output: bytes, now: datetime) -> None:
        if node.output is not None:
            try:
                output = self.board.eyes.make(node, node.output, "output_mapping", output=decoded(output))
            except MappingFailed as exc:
                self._fail(node.index, Failure("Nova.MappingFailed", str(exc), node.path), now)
                return
        self._succeed(node.index, output, now)

    def _succeed(self, index: int, output: bytes, now: datetime) -> None:
        state, node = self.board.states[index], self._nodes[index]
        state.status, state.output, state.error, state.wake_at, state.child = "succeeded", output, None, None, None
        state.finished_at = now
        if getattr(node.spec, "compensate", None) is not None:
            state.completed_no, self.board.completed = self.board.completed, self.board.completed + 1
        self._settle(node, state, self._ways(node), now)
        if node.type == "succeed" and self.ending is None:
            frame = self.board.frames[node.frame]
            frame.output = output
            self._close(node.frame, now)
            self._frame_ended(node.frame, now)

    def _ways(self, node: Node) -> tuple[int, ...]:
        """The edges that a node goes on by when it has succeeded."""
        context = self.board.eyes.context(node)
        taken = []
        chosen = False
        for edge in node.outgoing:
            if edge.kind == "catch" or (edge.kind == "choice" and chosen):
                continue
            if edge.when is None or edge.when(context):
                taken.append(edge.no)
                chosen = chosen or edge.kind == "choice"
        return tuple(taken)

    def _skip(self, index: int, now: datetime) -> None:
        state = self.board.states[index]
        state.status, state.finished_at = "skipped", now
        self._settle(self._nodes[index], state, (), now)

    def _fail(self, index: int, failure: Failure, now: datetime) -> None:
        state, node = self.board.states[index], self._nodes[index]
        state.status, state.output, state.error, state.wake_at, state.child = "failed", None, failure, None, None
        state.started_at, state.finished_at = state.started_at or now, now
        for number, caught in enumerate(getattr(node.spec, "catch", ())):
            if concerns(caught.on, failure):
                self._settle(node, state, (number,), now)
                return
        if getattr(node.spec, "continue_on_error", False):
            self._settle(node, state, self._ways(node), now)
            return
        self.board.touch((index, ITSELF))
        frame = self.board.frames[node.frame]
        if self.ending is not None or frame.closed:
            return
        frame.failure = failure
        if node.frame == 0:
            self._end(Ending("failed", failure, True), self.board.facts.cancel_on_failure, now)
        else:
            self._close(node.frame, now)
            self._frame_ended(node.frame, now)

    def _settle(self, node: Node, state: NodeState, taken: tuple[int, ...], now: datetime) -> None:
        state.taken = taken
        self.board.touch((node.index, ITSELF))
        frame = self.board.frames[node.frame]
        frame.open -= 1
        for edge in node.outgoing:
            target = self.board.states[edge.target]
            target.open -= 1
            if edge.no in taken:
                target.active.append(node.index)
            if target.status == "pending" and self._reached(edge.target):
                self._waiting.append((False, edge.target))
        if frame.open == 0:
            self._waiting.append((True, node.index))

    # How graphs end

    def _check_frame(self, frame: int, now: datetime) -> None:
        state = self.board.frames[frame]
        if state.closed or state.open or self.ending is not None:
            return
        state.closed = True
        self._frame_ended(frame, now)

    def _frame_ended(self, frame: int, now: datetime) -> None:
        state, owner = self.board.frames[frame], self.board.definition.frames[frame].owner
        try:
            if state.failure is None and state.output is None:
                state.output = self._frame_output(frame)
        except MappingFailed as exc:
            state.failure = Failure("Nova.MappingFailed", f"output: {exc}")
        if owner >= 0:
            self._branch_ended(self._nodes[owner], now)
        elif state.failure is not None:
            self._end(Ending("failed", state.failure, True), True, now)
        else:
            self.ended = Ended("succeeded", output=state.output)
            self.status = "succeeded"
            self.board.step.status = True

    def _frame_output(self, frame: int) -> bytes:
        shape = self.board.definition.frames[frame]
        if shape.output is not None:
            return encoded(shape.output(self.board.eyes.whole(frame)))
        parts = (
            payload.encode(self._nodes[index].key) + b":" + (self.board.states[index].output or b"null")
            for index in shape.sinks
            if self.board.states[index].status == "succeeded"
        )
        return b"{" + b",".join(parts) + b"}"

    def _branch_ended(self, owner: Node, now: datetime) -> None:
        if self.board.states[owner.index].status != "running" or self.ending is not None:
            return
        frames = [self.board.frames[frame] for frame in owner.frames]
        done = [frame for frame in frames if frame.closed and frame.failure is None]
        failed = [frame for frame in frames if frame.failure is not None]
        complete = owner.spec.complete
        needed = len(frames) if complete == "all" else 1 if complete == "any" else complete
        if len(done) < needed and len(frames) - len(failed) >= needed:
            return
        failure = failed[0].failure if len(done) < needed else None
        finished = {frame.index for frame in done}
        for frame in frames:
            if not frame.closed:
                self._close(frame.index, now)
        if failure is not None:
            self._fail(owner.index, failure, now)
            return
        outputs = (frame.output or b"null" if frame.index in finished else b"null" for frame in frames)
        self._mapped(owner, b"[" + b",".join(outputs) + b"]", now)

    def _close(self, frame: int, now: datetime) -> None:
        """Nothing in this graph goes on: what runs is cancelled, what has not begun is skipped."""
        self.board.frames[frame].closed = True
        for index in self.board.definition.frames[frame].nodes:
            state = self.board.states[index]
            if state.status == "pending":
                state.status, state.finished_at = "skipped", now
                self.board.touch((index, ITSELF))
            elif not state.ended:
                self._stop(index, now)

    def _stop(self, index: int, now: datetime, approval: str = "cancelled") -> None:
        """Cancel a node that runs or waits."""
        node, state = self._nodes[index], self.board.states[index]
        if node.type == "parallel":
            for frame in node.frames:
                self._close(frame, now)
        elif node.type == "map":
            self._maps.drop(node, now)
        elif node.type == "wait_event" and node.spec.approval is not None:
            self.board.step.answered.append((index, approval))
        else:
            self.board.drop_unit((index, ITSELF))
        state.status, state.finished_at, state.wake_at, state.child = "cancelled", now, None, None
        self.board.touch((index, ITSELF))

    # How a run ends that does not succeed

    def _end(self, ending: Ending, cancel: bool, now: datetime) -> None:
        if self.ended is not None:
            return
        if self.ending is None:
            self.ending = ending
            self.board.step.status = True
        if self.status == "paused":
            self.paused, self.status = False, "running"
        for index, state in enumerate(self.board.states):
            if state.status not in ("running", "waiting"):
                continue
            under_way = self._nodes[index].type in ("parallel", "map") or self._calls(index)
            if cancel or not under_way:
                self._stop(index, now)
        if not cancel:
            self._stop_items(now)

    def _calls(self, index: int) -> bool:
        """Is a function or a run under way for this node?"""
        child = self.board.states[index].child
        return (index, ITSELF) in self.board.calls or (child is not None and child in self.board.runs)

    def _stop_items(self, now: datetime) -> None:
        """Items that wait for another attempt."""
        for index, found in self.board.maps.items():
            for item, state in found.states.items():
                if state.status == "waiting" and state.child is None:
                    state.status, state.finished_at = "cancelled", now
                    self.board.touch((index, item))

    def _unwind(self, now: datetime) -> None:
        assert self.ending is not None
        if self.ended is not None or self.board.calls or self.board.runs or self._undoing is not None:
            return
        if self._undo is None:
            self._undo = self._to_undo() if self.ending.compensate else []
        if self._undo and self.status != "compensating":
            self.status = "compensating"
            self.board.step.status = True
        while self._undo:
            self._undoing, self._undo_attempt = self._undo.pop(), 0
            if self._undo_next():
                return
        self._conclude(now)

    def _to_undo(self) -> list[int]:
        """What was done last is undone first."""
        done = [
            (state.completed_no, index)
            for index, state in enumerate(self.board.states)
            if state.status == "succeeded" and state.completed_no is not None and state.compensation is None
        ]
        return [index for _, index in sorted(done)]

    def _undo_next(self) -> bool:
        """Call what undoes a node. False: that cannot be done."""
        if self._undoing is None:
            return False
        node, state = self._nodes[self._undoing], self.board.states[self._undoing]
        self._undo_attempt += 1
        try:
            data = self._undo_input(node, state)
        except MappingFailed as exc:
            self._undo_ended(node.index, Failure("Nova.MappingFailed", str(exc), node.path))
            return False
        function = node.spec.compensate.function_name
        ref = (node.index, ITSELF)
        self.board.step.calls.append(
            Call(ref, "compensation", function, None, data, UNDO_TIMEOUT_S, self._undo_attempt)
        )
        return True

    def _undo_input(self, node: Node, state: NodeState) -> bytes:
        if node.undo_input is None:
            return b'{"input":%b,"output":%b}' % (state.input or b"null", state.output or b"null")
        output = decoded(state.output or b"null")
        return self.board.eyes.make(node, node.undo_input, "compensate.input_mapping", output=output)

    def _undone(self, index: int, end: CallEnd, now: datetime) -> None:
        if self._undoing != index:
            return
        if end.again_s is None:
            self.board.tried((index, ITSELF), end, self._undo_attempt, undo=True)
        elif self._undo_attempt < 100:
            self._undo_attempt -= 1
            self.board.alarm(now + timedelta(seconds=end.again_s), "undo", (index, ITSELF))
            return
        if end.error is not None and self._undo_attempt < UNDO_POLICY.max_attempts:
            pause = timedelta(seconds=pause_s(UNDO_POLICY, self._undo_attempt))
            self.board.alarm(now + pause, "undo", (index, ITSELF))
            return
        self._undo_ended(index, end.error)

    def _undo_ended(self, index: int, error: Failure | None) -> None:
        state = self.board.states[index]
        state.compensation, state.compensation_error = "succeeded" if error is None else "failed", error
        self.board.touch((index, ITSELF))
        self._undoing = None

    def _conclude(self, now: datetime) -> None:
        assert self.ending is not None
        for index, state in enumerate(self.board.states):
            if state.status == "pending":
                state.status, state.finished_at = "skipped", now
                self.board.touch((index, ITSELF))
            elif not state.ended:
                self._stop(index, now)
        error = self.ending.error
        stuck = [self._nodes[i].path for i, state in enumerate(self.board.states) if state.compensation == "failed"]
        if stuck:
            error = Failure(error.type, f"{error.message} (not undone: {', '.join(stuck)})", error.path)
        self.ended = Ended(self.ending.status, error=error)
        self.status = self.ending.status
        self.board.step.status = True
