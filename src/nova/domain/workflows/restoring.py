"""A run that was written, taken up again: the board as it was, and the calls that somebody else had begun."""

from collections.abc import Iterable

from nova.domain.workflows.board import Board
from nova.domain.workflows.state import ITSELF, NodeState, Ref
from nova.domain.workflows.walk import Walk


def restore(board: Board, walk: Walk, rows: Iterable[tuple[str, int, NodeState]]) -> list[Ref]:
    """Calls that somebody else had begun."""
    items: dict[int, dict[int, NodeState]] = {}
    lost: list[Ref] = []
    for path, item, state in rows:
        index = board.definition.by_path.get(path)
        if index is None:
            continue
        if item != ITSELF:
            items.setdefault(index, {})[item] = state
            continue
        state.open = len(board.definition.nodes[index].incoming)
        if state.status == "ready":
            state.status, state.given, state.input = "pending", state.input, None
        board.states[index] = state
        board.completed = max(board.completed, (state.completed_no or 0) + 1)
    for index, states in items.items():
        walk.maps.restore(board.definition.nodes[index], states)
        for item, state in states.items():
            _waiting(board, (index, item), state)
    for index, state in enumerate(board.states):
        if state.ended:
            _ended(board, index, state)
        elif state.status in ("running", "waiting"):
            lost += _begun(board, walk, index, state)
    return lost


def _ended(board: Board, index: int, state: NodeState) -> None:
    node = board.definition.nodes[index]
    frame = board.frames[node.frame]
    frame.open -= 1
    for edge in node.outgoing:
        target = board.states[edge.target]
        target.open -= 1
        if state.taken is not None and edge.no in state.taken:
            target.active.append(index)
    if state.status == "failed" and state.taken is None:
        frame.closed, frame.failure = True, state.error
    elif state.status == "succeeded" and node.type == "succeed":
        frame.closed, frame.output = True, state.output


def _begun(board: Board, walk: Walk, index: int, state: NodeState) -> list[Ref]:
    node, ref = board.definition.nodes[index], (index, ITSELF)
    walk.set_timeout(node, state)
    if node.type == "function" and state.status == "running":
        return [ref]
    if node.type == "parallel":
        for frame in node.frames:
            board.frames[frame].begin(state.input or b"null")
    elif node.type == "map" and index not in board.maps:
        walk.maps.restore(node, {})
    elif node.type == "wait_event":
        walk.listening.begin(node)
    _waiting(board, ref, state)
    return []


def _waiting(board: Board, ref: Ref, state: NodeState) -> None:
    if state.status == "waiting" and state.wake_at is not None:
        board.alarm(state.wake_at, "wake", ref)
    if state.status == "waiting" and state.child is not None:
        board.runs[state.child] = ref
