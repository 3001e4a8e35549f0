"""How nodes begin and end, and graphs with them: the way that a run takes through its definition."""

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from nova import payload
from nova.domain.workflows.board import Board
from nova.domain.workflows.definition import Node
from nova.domain.workflows.document import MAX_WAIT_S
from nova.domain.workflows.frames import decoded, encoded
from nova.domain.workflows.listening import Listening
from nova.domain.workflows.mapping import MappingFailed
from nova.domain.workflows.maps import Maps
from nova.domain.workflows.state import ITSELF, Ask, CallEnd, Ended, Failure, NodeState, Ref, concerns


class Walk:
    """``failed`` hears why the run cannot succeed any more, and whether what runs beside it is to be cancelled."""

    def __init__(self, board: Board, failed: Callable[[Failure, bool, datetime], None]) -> None:
        self._board = board
        self._nodes = board.definition.nodes
        self._failed = failed
        self.maps = Maps(board, self._map_ended)
        self.listening = Listening(board)
        self._waiting: deque[tuple[bool, int]] = deque()
        """(settle or enter, node) that this moment still has to do"""

    def drain(self, now: datetime) -> None:
        """Do what follows from what happened."""
        while self._waiting and self._board.ended is None:
            settle, index = self._waiting.popleft()
            if settle:
                self._check_frame(self._nodes[index].frame, now)
            else:
                self._enter(index, now)

    def go_on(self, now: datetime) -> None:
        """Look at everything that might begin."""
        for frame in self._board.frames:
            if frame.input is not None and not frame.closed:
                self._look(frame.index)
        for index in list(self._board.maps):
            if self._board.states[index].status == "running" and not self._board.paused:
                self.maps.fill(self._nodes[index], now)

    def _look(self, frame: int) -> None:
        for index in self._board.definition.frames[frame].ordered:
            if self._board.states[index].status == "pending" and self._reached(index):
                self._waiting.append((False, index))
        if self._board.frames[frame].open == 0:
            self._waiting.append((True, self._board.definition.frames[frame].ordered[-1]))

    def _reached(self, index: int) -> bool:
        state, node = self._board.states[index], self._nodes[index]
        return state.open == 0 or (node.spec.join == "any" and bool(state.active))

    def _enter(self, index: int, now: datetime) -> None:
        state, node = self._board.states[index], self._nodes[index]
        frame = self._board.frames[node.frame]
        if state.status != "pending" or frame.closed or self._board.ending is not None or self._board.paused:
            return
        try:
            if (node.parents and not state.active) or (
                node.when is not None and not node.when(self._board.eyes.context(node))
            ):
                self._skip(index, now)
            else:
                self._begin(node, state, now)
        except MappingFailed as exc:
            self.fail(index, Failure("Nova.MappingFailed", str(exc), node.path), now)

    def _begin(self, node: Node, state: NodeState, now: datetime) -> None:
        """Raises MappingFailed."""
        index, spec = node.index, node.spec
        if node.type == "map":
            self.maps.begin(node, now)
            self.set_timeout(node, state)
            return
        data = self._board.eyes.input(node)
        state.input, state.started_at = data, now
        match node.type:
            case "function" | "sub_workflow":
                self.begin_unit((index, ITSELF), data, now)
            case "pass" if node.value is not None:
                self.succeed(index, self._board.eyes.make(node, node.value, "value"), now)
            case "pass" | "choice":
                self.succeed(index, data, now)
            case "succeed":
                self.succeed(index, data, now)
            case "fail":
                self.fail(index, Failure(spec.error, spec.cause, node.path), now)
            case "wait":
                self._board.wait((index, ITSELF), self._until(node, now))
            case "wait_event":
                self._wait_event(node, state, data, now)
            case "parallel":
                state.status = "running"
                self._board.touch((index, ITSELF))
                for frame in node.frames:
                    self._board.frames[frame].begin(data)
                    self._look(frame)
        self.set_timeout(node, state)

    def begin_unit(self, ref: Ref, data: bytes, now: datetime) -> None:
        failure = self._board.begin_unit(ref, data, now)
        if failure is not None:
            self.fail(ref[0], failure, now)

    def _until(self, node: Node, now: datetime) -> datetime:
        assert node.value is not None
        value = node.value(self._board.eyes.context(node))
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
        if node.spec.topic is not None:
            self._board.step.listened.append(self.listening.topic(node))
        state.status = "waiting"
        self._board.touch((node.index, ITSELF))
        if node.spec.approval is not None:
            timeout = node.spec.timeout_s
            self._board.step.asked.append(
                Ask(node.index, data, None if timeout is None else now + timedelta(seconds=timeout))
            )
            return
        if (early := self.listening.begin(node)) is not None:
            event, sent = early
            self._board.step.consumed.append(event)
            self.succeed(node.index, sent, now)

    def set_timeout(self, node: Node, state: NodeState) -> None:
        timeout = getattr(node.spec, "timeout_s", None)
        if node.type != "function" and timeout is not None and state.started_at is not None and not state.ended:
            self._board.alarm(state.started_at + timedelta(seconds=timeout), "timeout", (node.index, ITSELF))

    def woken(self, ref: Ref, when: datetime, now: datetime) -> None:
        state = self._board.state(ref)
        if state.status != "waiting" or state.wake_at != when:
            return
        state.wake_at = None
        if ref[1] != ITSELF:
            self.maps.begin_item(self._nodes[ref[0]], ref[1], now)
            self._maps_go_on(ref[0], now)
        elif self._nodes[ref[0]].type == "wait":
            self.succeed(ref[0], state.input or b"null", now)
        else:
            self.begin_unit(ref, state.input or b"null", now)

    def timed_out(self, index: int, now: datetime) -> None:
        node, state = self._nodes[index], self._board.states[index]
        if state.status not in ("running", "waiting"):
            return
        self.stop(index, now, "expired")
        self.fail(index, Failure("Nova.Timeout", f"it did not end within {node.spec.timeout_s:g} s", node.path), now)

    def unit_ended(self, ref: Ref, end: CallEnd, now: datetime) -> None:
        index, item = ref
        if item != ITSELF:
            if self._board.ending is None or end.again_s is None:
                self.maps.call_ended(self._nodes[index], item, end, now)
            self._maps_go_on(index, now)
            return
        state, node = self._board.states[index], self._nodes[index]
        if self._board.ending is None and self._board.refused(ref, end, now):
            return
        if node.type == "function":
            self._board.tried(ref, end, state.attempt)
        if end.error is None:
            self._mapped(node, end.output or b"null", now)
            return
        failure = Failure(end.error.type, end.error.message, end.error.path or node.path)
        if self._board.ending is not None or not self._board.again(ref, failure, now):
            self.fail(index, failure, now)

    def _maps_go_on(self, index: int, now: datetime) -> None:
        if self._board.states[index].status == "running" and not self._board.paused and self._board.ending is None:
            self.maps.fill(self._nodes[index], now)

    def _map_ended(self, index: int, output: bytes | None, failure: Failure | None, now: datetime) -> None:
        if failure is not None:
            self.fail(index, failure, now)
        else:
            self._mapped(self._nodes[index], output or b"[]", now)

    def _mapped(self, node: Node, output: bytes, now: datetime) -> None:
        if node.output is not None:
            try:
                output = self._board.eyes.make(node, node.output, "output_mapping", output=decoded(output))
            except MappingFailed as exc:
                self.fail(node.index, Failure("Nova.MappingFailed", str(exc), node.path), now)
                return
        self.succeed(node.index, output, now)

    def succeed(self, index: int, output: bytes, now: datetime) -> None:
        state, node = self._board.states[index], self._nodes[index]
        state.status, state.output, state.error, state.wake_at, state.child = "succeeded", output, None, None, None
        state.finished_at = now
        if getattr(node.spec, "compensate", None) is not None:
            state.completed_no, self._board.completed = self._board.completed, self._board.completed + 1
        self._settle(node, state, self._ways(node), now)
        if node.type == "succeed" and self._board.ending is None:
            frame = self._board.frames[node.frame]
            frame.output = output
            self._close(node.frame, now)
            self._frame_ended(node.frame, now)

    def _ways(self, node: Node) -> tuple[int, ...]:
        """The edges that a node goes on by when it has succeeded."""
        context = self._board.eyes.context(node)
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
        state = self._board.states[index]
        state.status, state.finished_at = "skipped", now
        self._settle(self._nodes[index], state, (), now)

    def fail(self, index: int, failure: Failure, now: datetime) -> None:
        state, node = self._board.states[index], self._nodes[index]
        state.status, state.output, state.error, state.wake_at, state.child = "failed", None, failure, None, None
        state.started_at, state.finished_at = state.started_at or now, now
        for number, caught in enumerate(getattr(node.spec, "catch", ())):
            if concerns(caught.on, failure):
                self._settle(node, state, (number,), now)
                return
        if getattr(node.spec, "continue_on_error", False):
            self._settle(node, state, self._ways(node), now)
            return
        self._board.touch((index, ITSELF))
        frame = self._board.frames[node.frame]
        if self._board.ending is not None or frame.closed:
            return
        frame.failure = failure
        if node.frame == 0:
            self._failed(failure, self._board.facts.cancel_on_failure, now)
        else:
            self._close(node.frame, now)
            self._frame_ended(node.frame, now)

    def _settle(self, node: Node, state: NodeState, taken: tuple[int, ...], now: datetime) -> None:
        state.taken = taken
        self._board.touch((node.index, ITSELF))
        frame = self._board.frames[node.frame]
        frame.open -= 1
        for edge in node.outgoing:
            target = self._board.states[edge.target]
            target.open -= 1
            if edge.no in taken:
                target.active.append(node.index)
            if target.status == "pending" and self._reached(edge.target):
                self._waiting.append((False, edge.target))
        if frame.open == 0:
            self._waiting.append((True, node.index))

    def _check_frame(self, frame: int, now: datetime) -> None:
        state = self._board.frames[frame]
        if state.closed or state.open or self._board.ending is not None:
            return
        state.closed = True
        self._frame_ended(frame, now)

    def _frame_ended(self, frame: int, now: datetime) -> None:
        state, owner = self._board.frames[frame], self._board.definition.frames[frame].owner
        try:
            if state.failure is None and state.output is None:
                state.output = self._frame_output(frame)
        except MappingFailed as exc:
            state.failure = Failure("Nova.MappingFailed", f"output: {exc}")
        if owner >= 0:
            self._branch_ended(self._nodes[owner], now)
        elif state.failure is not None:
            self._failed(state.failure, True, now)
        else:
            self._board.ended = Ended("succeeded", output=state.output)
            self._board.status = "succeeded"
            self._board.step.status = True

    def _frame_output(self, frame: int) -> bytes:
        shape = self._board.definition.frames[frame]
        if shape.output is not None:
            return encoded(shape.output(self._board.eyes.whole(frame)))
        parts = (
            payload.encode(self._nodes[index].key) + b":" + (self._board.states[index].output or b"null")
            for index in shape.sinks
            if self._board.states[index].status == "succeeded"
        )
        return b"{" + b",".join(parts) + b"}"

    def _branch_ended(self, owner: Node, now: datetime) -> None:
        if self._board.states[owner.index].status != "running" or self._board.ending is not None:
            return
        frames = [self._board.frames[frame] for frame in owner.frames]
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
            self.fail(owner.index, failure, now)
            return
        outputs = (frame.output or b"null" if frame.index in finished else b"null" for frame in frames)
        self._mapped(owner, b"[" + b",".join(outputs) + b"]", now)

    def _close(self, frame: int, now: datetime) -> None:
        """Nothing in this graph goes on: what runs is cancelled, what has not begun is skipped."""
        self._board.frames[frame].closed = True
        for index in self._board.definition.frames[frame].nodes:
            state = self._board.states[index]
            if state.status == "pending":
                state.status, state.finished_at = "skipped", now
                self._board.touch((index, ITSELF))
            elif not state.ended:
                self.stop(index, now)

    def stop(self, index: int, now: datetime, approval: str = "cancelled") -> None:
        """Cancel a node that runs or waits."""
        node, state = self._nodes[index], self._board.states[index]
        if node.type == "parallel":
            for frame in node.frames:
                self._close(frame, now)
        elif node.type == "map":
            self.maps.drop(node, now)
        elif node.type == "wait_event" and node.spec.approval is not None:
            self._board.step.answered.append((index, approval))
        else:
            self._board.drop_unit((index, ITSELF))
        state.status, state.finished_at, state.wake_at, state.child = "cancelled", now, None, None
        self._board.touch((index, ITSELF))
