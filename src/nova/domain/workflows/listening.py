"""Who waits for which event, and what was sent before anybody did."""

import json
from collections import deque
from typing import Any

from nova.domain.filters import compile_filters
from nova.domain.workflows.board import Board
from nova.domain.workflows.definition import Node
from nova.domain.workflows.frames import encoded
from nova.domain.workflows.mapping import MappingFailed
from nova.domain.workflows.state import Listen
from nova.errors import NovaError


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
        if node.spec.key is None:
            return None
        assert node.value is not None
        key = node.value(self._board.eyes.context(node))
        if not isinstance(key, str):
            raise MappingFailed("key: this is no text")
        if early := self._early.get(key):
            return early.popleft()
        self._nodes.setdefault(key, deque()).append(node.index)
        return None

    def topic(self, node: Node) -> Listen:
        """What a node that waits for a message wants. Raises MappingFailed when its filters are none for these values."""
        assert node.value is not None
        wanted = _texts(node.value(self._board.eyes.context(node)))
        try:
            compile_filters(wanted)
        except NovaError as error:
            raise MappingFailed(error.detail) from None
        return Listen(node.index, node.spec.topic, encoded(wanted))

    def sent(self, key: str, data: bytes, event: str) -> int | None:
        """The node that the event is for; None: it is kept until one waits for it."""
        waiting = self._nodes.get(key)
        while waiting:
            index = waiting.popleft()
            if self._board.states[index].status == "waiting":
                return index
        self._early.setdefault(key, deque()).append((event, data))
        return None


def _texts(value: Any) -> Any:
    """Filters compare texts: numbers and truth values as JSON writes them."""
    if isinstance(value, dict):
        return {key: _texts(member) for key, member in value.items()}
    if isinstance(value, list):
        return [_texts(member) for member in value]
    return json.dumps(value) if isinstance(value, bool | int | float) else value
