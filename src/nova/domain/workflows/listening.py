"""Who waits for which event, and what was sent before anybody did."""

from collections import deque

from nova.domain.workflows.board import Board
from nova.domain.workflows.definition import Node
from nova.domain.workflows.mapping import MappingFailed


class Listening:
    """Of one run. An event is for one node: the one that has waited longest."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._early: dict[str, deque[tuple[str, bytes]]] = {}
        self._nodes: dict[str, deque[int]] = {}

    def begin(self, node: Node) -> tuple[str, bytes] | None:
        """The node waits for its event. That event, with its id, when it has been sent already.

        Raises MappingFailed when the key is no text.
        """
        if node.value is None:
            return None
        key = node.value(self._board.eyes.context(node))
        if not isinstance(key, str):
            raise MappingFailed("key: this is no text")
        if early := self._early.get(key):
            return early.popleft()
        self._nodes.setdefault(key, deque()).append(node.index)
        return None

    def sent(self, key: str, data: bytes, event: str) -> int | None:
        """The node that the event is for; None: it is kept until one waits for it."""
        waiting = self._nodes.get(key)
        while waiting:
            index = waiting.popleft()
            if self._board.states[index].status == "waiting":
                return index
        self._early.setdefault(key, deque()).append((event, data))
        return None
