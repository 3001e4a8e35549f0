"""What expressions see: the input, the outputs and the run around a node. Decoded when somebody looks, and once."""

from typing import Any

import msgspec

from nova import payload
from nova.domain.workflows.definition import Definition, Node
from nova.domain.workflows.mapping import Evaluate, MappingFailed
from nova.domain.workflows.paths import Nothing
from nova.domain.workflows.state import Facts, Failure, NodeState

MAX_INPUT = 1 << 20
"""Bytes of what one node is given."""


def encoded(value: Any) -> bytes:
    """What a mapping has made, as JSON. Raises MappingFailed: integers have 64 bits here."""
    try:
        return payload.encode(value)
    except (OverflowError, RecursionError, ValueError) as exc:
        raise MappingFailed(f"this cannot be written as JSON: {exc}") from None


def decoded(data: bytes) -> Any:
    """A user's JSON. Raises MappingFailed: a number may be too large to be one here."""
    try:
        return payload.decode(data)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise MappingFailed(f"this cannot be looked into: {exc}") from None


def _looked(data: bytes) -> Any:
    """For a path: what cannot be looked into has nothing in it."""
    try:
        return decoded(data)
    except MappingFailed as exc:
        raise Nothing(str(exc)) from None


class _Outputs(dict[str, Any]):
    """The nodes of one frame, each decoded at the first look. Of one that was skipped the output is null."""

    def __init__(self, frame: "FrameState") -> None:
        super().__init__()
        self._frame = frame

    def __missing__(self, key: str) -> Any:
        state = self._frame.state_of(key)
        if state is None or not state.ended:
            raise KeyError(key)
        found: dict[str, Any] = {"output": None if state.output is None else _looked(state.output)}
        if state.error is not None:
            found["error"] = state.error.as_dict()
        self[key] = found
        return found


class FrameState:
    """One graph that runs. ``open`` counts the nodes that have not ended. ``closed``: nothing in it goes on any more."""

    __slots__ = (
        "_decoded",
        "_definition",
        "_keys",
        "_states",
        "closed",
        "failure",
        "index",
        "input",
        "open",
        "output",
        "outputs",
    )

    def __init__(self, index: int, definition: Definition, states: list[NodeState]) -> None:
        frame = definition.frames[index]
        self.index = index
        self.input: bytes | None = None
        """None: it has not begun"""
        self.open = len(frame.nodes)
        self.closed = False
        self.output: bytes | None = None
        self.failure: Failure | None = None
        self.outputs = _Outputs(self)
        self._decoded: Any = None
        self._definition = definition
        self._states = states
        self._keys = {definition.nodes[node].key: node for node in frame.nodes}

    def begin(self, data: bytes) -> None:
        self.input = data
        self._decoded = None

    def state_of(self, key: str) -> NodeState | None:
        index = self._keys.get(key)
        return None if index is None else self._states[index]

    def forget(self, key: str) -> None:
        """The node came to something else."""
        self.outputs.pop(key, None)

    def decoded(self) -> Any:
        if self._decoded is None and self.input is not None:
            self._decoded = _looked(self.input)
        return self._decoded


class _Context(dict[str, Any]):
    """The top of what an expression sees."""

    def __init__(self, frame: FrameState, facts: Facts, more: dict[str, Any]) -> None:
        super().__init__(more)
        self._frame = frame
        self._facts = facts

    def __missing__(self, key: str) -> Any:
        if key == "input":
            return self._frame.decoded()
        if key == "nodes":
            return self._frame.outputs
        if key == "run":
            facts = self._facts
            return {"id": facts.run_id, "workflow": facts.workflow, "version": facts.version, "key": facts.key}
        raise KeyError(key)


class Eyes:
    """Evaluates for the nodes of one run."""

    def __init__(self, definition: Definition, facts: Facts, states: list[NodeState], frames: list[FrameState]) -> None:
        self._definition = definition
        self._facts = facts
        self._states = states
        self._frames = frames

    def context(self, node: Node, **more: Any) -> dict[str, Any]:
        error = self._caught(node)
        if error is not None:
            more.setdefault("error", error.as_dict())
        return _Context(self._frames[node.frame], self._facts, more)

    def whole(self, frame: int) -> dict[str, Any]:
        return _Context(self._frames[frame], self._facts, {})

    def make(self, node: Node, how: Evaluate, what: str, **more: Any) -> bytes:
        """Raises MappingFailed with the field named."""
        try:
            return encoded(how(self.context(node, **more)))
        except MappingFailed as exc:
            raise MappingFailed(f"{what}: {exc}") from None

    def input(self, node: Node) -> bytes:
        """What a node is given. Raises MappingFailed."""
        state = self._states[node.index]
        if state.given is not None:
            return state.given
        if node.input is not None:
            return self.make(node, node.input, "input_mapping")
        if not node.parents:
            return self._frames[node.frame].input or b"null"
        if len(node.parents) == 1:
            return self._given_by(node.parents[0], node)
        nodes = self._definition.nodes
        parts = (
            payload.encode(nodes[parent].key) + b":" + self._given_by(parent, node)
            for parent in node.parents
            if parent in state.active
        )
        return b"{" + b",".join(parts) + b"}"

    def _given_by(self, parent: int, node: Node) -> bytes:
        state = self._states[parent]
        if state.status == "failed" and state.error is not None and self._catches(parent, node):
            return b'{"error":%b,"input":%b}' % (state.error.encoded(), state.input or b"null")
        return state.output or b"null"

    def _catches(self, parent: int, node: Node) -> bool:
        outgoing = self._definition.nodes[parent].outgoing
        return any(edge.kind == "catch" and edge.target == node.index for edge in outgoing)

    def _caught(self, node: Node) -> Failure | None:
        """The error because of which this node was reached."""
        for edge in node.incoming:
            if edge.kind == "catch":
                state = self._states[edge.source]
                if state.taken is not None and edge.no in state.taken:
                    return state.error
        return None
