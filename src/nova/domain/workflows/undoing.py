"""Undoing what a run has done: compensations, one after the other, what was done last first."""

from datetime import datetime, timedelta

from nova.domain.workflows.board import Board
from nova.domain.workflows.definition import Node
from nova.domain.workflows.document import RetryPolicy
from nova.domain.workflows.frames import decoded
from nova.domain.workflows.mapping import MappingFailed
from nova.domain.workflows.state import ITSELF, Call, CallEnd, Failure, NodeState, pause_s

POLICY = RetryPolicy(max_attempts=3)
"""Of compensations; what fails for good is told in the run's error, and the others are done all the same."""
TIMEOUT_S = 60.0
_MAX_REFUSED = 100
"""Refusals for a reason that passes, of one compensation; then it has failed."""


class Undoing:
    """Of one run. ``busy``: a compensation is called, or waits for its next attempt."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._left: list[int] | None = None
        """nodes that are still to be undone, the next one last; None: that is not known yet"""
        self._current: int | None = None
        self._attempt = 0

    @property
    def busy(self) -> bool:
        return self._current is not None

    def go_on(self, compensate: bool) -> bool:
        """Begin to undo what is left. False: nothing is."""
        if self._left is None:
            self._left = self._done() if compensate else []
        if self._left and self._board.status != "compensating":
            self._board.status = "compensating"
            self._board.step.status = True
        while self._left:
            self._current, self._attempt = self._left.pop(), 0
            if self.try_again():
                return True
        return False

    def _done(self) -> list[int]:
        done = [
            (state.completed_no, index)
            for index, state in enumerate(self._board.states)
            if state.status == "succeeded" and state.completed_no is not None and state.compensation is None
        ]
        return [index for _, index in sorted(done)]

    def try_again(self) -> bool:
        """Call what undoes the node. False: that cannot be done."""
        if self._current is None:
            return False
        node, state = self._board.definition.nodes[self._current], self._board.states[self._current]
        self._attempt += 1
        try:
            data = self._input(node, state)
        except MappingFailed as exc:
            self._ended(node.index, Failure("Nova.MappingFailed", str(exc), node.path))
            return False
        function = node.spec.compensate.function_name
        self._board.step.calls.append(
            Call((node.index, ITSELF), "compensation", function, None, data, TIMEOUT_S, self._attempt)
        )
        return True

    def _input(self, node: Node, state: NodeState) -> bytes:
        if node.undo_input is None:
            return b'{"input":%b,"output":%b}' % (state.input or b"null", state.output or b"null")
        output = decoded(state.output or b"null")
        return self._board.eyes.make(node, node.undo_input, "compensate.input_mapping", output=output)

    def call_ended(self, index: int, end: CallEnd, now: datetime) -> None:
        if self._current != index:
            return
        ref = (index, ITSELF)
        if end.again_s is None:
            self._board.tried(ref, end, self._attempt, undo=True)
        elif self._attempt < _MAX_REFUSED:
            self._attempt -= 1
            self._board.alarm(now + timedelta(seconds=end.again_s), "undo", ref)
            return
        if end.error is not None and self._attempt < POLICY.max_attempts:
            self._board.alarm(now + timedelta(seconds=pause_s(POLICY, self._attempt)), "undo", ref)
            return
        self._ended(index, end.error)

    def _ended(self, index: int, error: Failure | None) -> None:
        state = self._board.states[index]
        state.compensation, state.compensation_error = "succeeded" if error is None else "failed", error
        self._board.touch((index, ITSELF))
        self._current = None
