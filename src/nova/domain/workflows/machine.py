"""The machine that advances a run: told what happened, it says what is to be written and done. It does nothing by itself.

Every method is one moment. What it came to gathers in ``step``, which the engine takes, writes in one transaction, and then
does. So a machine that is made again from what was written goes on where this one was. How nodes begin and end is said in
:mod:`~nova.domain.workflows.walk`; here is what concerns the run as a whole.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from nova import payload
from nova.domain.workflows.board import Board
from nova.domain.workflows.definition import Definition
from nova.domain.workflows.restoring import restore
from nova.domain.workflows.state import (
    ITSELF,
    CallEnd,
    Ended,
    Ending,
    Facts,
    Failure,
    NodeState,
    Purpose,
    Ref,
    Step,
)
from nova.domain.workflows.undoing import Undoing
from nova.domain.workflows.walk import Walk


class Machine:
    """One run."""

    def __init__(self, definition: Definition, facts: Facts) -> None:
        self.board = Board(definition, facts)
        self._nodes = definition.nodes
        self._walk = Walk(self.board, self._failed)
        self._undoing = Undoing(self.board)
        self._late: list[tuple[datetime, Any, Ref]] = []
        """alarms that rang while the run was paused"""

    # What the engine asks

    def take(self) -> Step:
        """What there is to write and to do since the last time."""
        step, self.board.step = self.board.step, Step()
        return step

    @property
    def status(self) -> str:
        """What the run's row says."""
        return self.board.status

    @property
    def ending(self) -> Ending | None:
        return self.board.ending

    @property
    def ended(self) -> Ended | None:
        """Set when there is nothing left to do."""
        return self.board.ended

    @property
    def busy(self) -> bool:
        """Functions are being called."""
        return bool(self.board.calls) or self._undoing.busy

    @property
    def next_alarm(self) -> datetime | None:
        return self.board.next_alarm

    # What the engine tells

    def begin(
        self, rows: Iterable[tuple[str, int, NodeState]], status: str, ending: Ending | None, now: datetime
    ) -> None:
        """Take up a run with what was written of its nodes; nothing, when it has not begun."""
        self.board.status = status
        self.board.paused = status == "paused"
        self.board.ending = ending
        self.board.frames[0].begin(self.board.facts.input)
        lost = restore(self.board, self._walk, rows)
        self.board.alarm(self.board.facts.deadline_at, "deadline", (0, ITSELF))
        for ref in lost:  # called by a process that is no more
            self.board.state(ref).attempt -= 1
            self._walk.begin_unit(ref, self.board.state(ref).input or b"null", now)
        if ending is not None:
            self._unwind(now)
        else:
            self._walk.go_on(now)
        self._drain(now)

    def call_ended(self, ref: Ref, purpose: Purpose, end: CallEnd, now: datetime) -> None:
        if purpose == "compensation":
            self._undoing.call_ended(ref[0], end, now)
        elif ref in self.board.calls:
            self.board.calls.discard(ref)
            self._walk.unit_ended(ref, end, now)
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
        self._walk.unit_ended(ref, end, now)
        self._drain(now)

    def run_refused(self, ref: Ref, failure: Failure, now: datetime) -> None:
        """A run below this one could not begin."""
        self.board.drop_unit(ref)
        self.board.state(ref).child = None
        self._walk.unit_ended(ref, CallEnd("", now, 0, error=failure), now)
        self._drain(now)

    def sent(self, key: str, data: bytes, event: str, now: datetime) -> None:
        index = self._walk.listening.sent(key, data, event)
        if index is not None:
            self.board.step.consumed.append(event)
            self._walk.succeed(index, data, now)
            self._drain(now)

    def message(self, path: str, data: bytes, event: str, now: datetime) -> None:
        """What the node waited for was published (``data`` is its envelope), or never will be (null): its topic is gone."""
        self.board.step.consumed.append(event)
        index = self.board.definition.by_path.get(path, -1)
        if index < 0 or self.board.states[index].status != "waiting":
            return
        if data == b"null":
            topic = self._nodes[index].spec.topic
            self._walk.fail(index, Failure("Nova.NotFound", f"topic {topic!r} does not exist", path), now)
        else:
            self._walk.succeed(index, data, now)
        self._drain(now)

    def decided(self, path: str, answer: bytes, event: str, now: datetime) -> None:
        """An approval of the node was answered."""
        self.board.step.consumed.append(event)
        index = self.board.definition.by_path.get(path, -1)
        if index < 0 or self.board.states[index].status != "waiting":
            return
        if payload.decode(answer)["approved"]:
            self._walk.succeed(index, answer, now)
        else:
            by = payload.decode(answer)["by"]
            self._walk.fail(index, Failure("Nova.Rejected", f"{by} rejected it", path), now)
        self._drain(now)

    def cancel(self, reason: str, compensate: bool, event: str, now: datetime) -> None:
        self.board.step.consumed.append(event)
        self._end(Ending("cancelled", Failure("Nova.Cancelled", reason or "cancelled"), compensate), True, now)
        self._drain(now)

    def pause(self, event: str) -> None:
        """Begin nothing new."""
        self.board.step.consumed.append(event)
        if self.board.ending is None and not self.board.paused:
            self.board.paused, self.board.status = True, "paused"
            self.board.step.status = True

    def resume(self, event: str, now: datetime) -> None:
        self.board.step.consumed.append(event)
        if not self.board.paused:
            return
        self.board.paused = False
        if self.board.ending is None:
            self.board.status = "running"
            self.board.step.status = True
        for when, kind, ref in self._late:
            self.board.alarm(when, kind, ref)
        self._late.clear()
        self._walk.go_on(now)
        self._drain(now)

    def tick(self, now: datetime) -> None:
        """Do what is due."""
        for when, kind, ref in self.board.due(now):
            if kind == "deadline":
                error = Failure("Nova.Timeout", "the run did not end in its time")
                self._end(Ending("timed_out", error, True), True, now)
            elif kind == "undo":
                self._undoing.try_again()
            elif self.board.ending is not None:
                continue
            elif self.board.paused:
                self._late.append((when, kind, ref))
            elif kind == "wake":
                self._walk.woken(ref, when, now)
            else:
                self._walk.timed_out(ref[0], now)
            self._drain(now)

    # How a run ends that does not succeed

    def _end(self, ending: Ending, cancel: bool, now: datetime) -> None:
        if self.board.ended is not None:
            return
        if self.board.ending is None:
            self.board.ending = ending
            self.board.step.status = True
        if self.board.status == "paused":
            self.board.paused, self.board.status = False, "running"
        for index, state in enumerate(self.board.states):
            if state.status not in ("running", "waiting"):
                continue
            under_way = self._nodes[index].type in ("parallel", "map") or self._calls(index)
            if cancel or not under_way:
                self._walk.stop(index, now)
        if not cancel:
            self._stop_items(now)

    def _failed(self, failure: Failure, cancel: bool, now: datetime) -> None:
        self._end(Ending("failed", failure, True), cancel, now)

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

    def _drain(self, now: datetime) -> None:
        self._walk.drain(now)
        if self.board.ending is not None and self.board.ended is None:
            self._unwind(now)

    def _unwind(self, now: datetime) -> None:
        assert self.board.ending is not None
        if self.board.ended is not None or self.board.calls or self.board.runs or self._undoing.busy:
            return
        if not self._undoing.go_on(self.board.ending.compensate):
            self._conclude(now)

    def _conclude(self, now: datetime) -> None:
        assert self.board.ending is not None
        for index, state in enumerate(self.board.states):
            if state.status == "pending":
                state.status, state.finished_at = "skipped", now
                self.board.touch((index, ITSELF))
            elif not state.ended:
                self._walk.stop(index, now)
        error = self.board.ending.error
        stuck = [self._nodes[i].path for i, state in enumerate(self.board.states) if state.compensation == "failed"]
        if stuck:
            error = Failure(error.type, f"{error.message} (not undone: {', '.join(stuck)})", error.path)
        self.board.ended = Ended(self.board.ending.status, error=error)
        self.board.status = self.board.ending.status
        self.board.step.status = True
