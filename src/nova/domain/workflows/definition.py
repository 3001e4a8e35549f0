"""A definition as it is run: the nodes of all its branches in one list, their edges, and every expression compiled.

A *frame* is a graph of its own: the definition itself (frame 0), or one branch of a parallel node.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import ValidationError

from nova.domain.workflows import document as doc
from nova.domain.workflows.checks import Problem, check_frame
from nova.domain.workflows.mapping import Condition, Evaluate, condition, mapping
from nova.errors import FieldError, NovaError

MAX_NODES = 500
"""Where nothing else is said."""
MAX_NESTING = 8
"""Parallel nodes inside of one another."""
MAX_TOLD = 200
"""Problems that one answer names."""

EdgeKind = Literal["flow", "choice", "catch"]


@dataclass(frozen=True, slots=True)
class Edge:
    """``no`` numbers the edges that leave ``source``. A choice's are in the order of its branches, then the default."""

    no: int
    source: int
    target: int
    kind: EdgeKind
    when: Condition | None = None


@dataclass(slots=True)
class Node:
    """``path`` is the key in its run: the node's own, below those of the branches it stands in. ``order`` is its place when
    every node comes after those it depends on."""

    index: int
    path: str
    frame: int
    spec: Any
    order: int = 0
    incoming: list[Edge] = field(default_factory=list)
    outgoing: list[Edge] = field(default_factory=list)
    parents: tuple[int, ...] = ()
    frames: tuple[int, ...] = ()
    input: Evaluate | None = None
    output: Evaluate | None = None
    when: Condition | None = None
    value: Evaluate | None = None
    each_input: Evaluate | None = None
    each_output: Evaluate | None = None
    undo_input: Evaluate | None = None

    @property
    def key(self) -> str:
        key: str = self.spec.node_key
        return key

    @property
    def type(self) -> str:
        node_type: str = self.spec.node_type
        return node_type


@dataclass(slots=True)
class Frame:
    """``owner`` is the parallel node, ``branch`` the number in it; -1 and 0 for the definition itself."""

    index: int
    owner: int
    branch: int
    nodes: list[int] = field(default_factory=list)
    ordered: list[int] = field(default_factory=list)
    sinks: list[int] = field(default_factory=list)
    output: Evaluate | None = None


@dataclass(slots=True)
class Definition:
    nodes: list[Node] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    by_path: dict[str, int] = field(default_factory=dict)

    @property
    def functions(self) -> frozenset[tuple[str, str | None]]:
        """Every function it may call, with the qualifier."""
        called: set[tuple[str, str | None]] = set()
        for node in self.nodes:
            spec = node.spec.do if node.type == "map" else node.spec
            if spec.node_type == "function":
                called.add((spec.function_name, spec.qualifier))
            undo = getattr(node.spec, "compensate", None)
            if undo is not None:
                called.add((undo.function_name, None))
        return frozenset(called)

    @property
    def topics(self) -> frozenset[str]:
        """Every topic that it may wait for."""
        return frozenset(node.spec.topic for node in self.nodes if node.type == "wait_event" and node.spec.topic)

    @property
    def workflows(self) -> frozenset[tuple[str, int | None]]:
        """Every workflow it may start, with the version."""
        specs = [node.spec.do if node.type == "map" else node.spec for node in self.nodes]
        return frozenset((s.workflow_name, s.version) for s in specs if s.node_type == "sub_workflow")

    def after(self, index: int) -> frozenset[int]:
        """This node and all that depend on it, what is inside of them included."""
        found: set[int] = set()
        waiting = [index]
        while waiting:
            one = waiting.pop()
            if one in found:
                continue
            found.add(one)
            node = self.nodes[one]
            waiting += [edge.target for edge in node.outgoing]
            waiting += [inner for frame in node.frames for inner in self.frames[frame].nodes]
            owner = self.frames[node.frame].owner
            while owner >= 0:  # the node around it ends anew, but its other branches keep what they have
                found.add(owner)
                waiting += [edge.target for edge in self.nodes[owner].outgoing]
                owner = self.frames[self.nodes[owner].frame].owner
        return frozenset(found)


class _Builder:
    """Lays every frame's nodes into one list; collects problems on the way."""

    def __init__(self, max_nodes: int) -> None:
        self.definition = Definition()
        self.problems: list[Problem] = []
        self._max_nodes = max_nodes
        self._outputs: list[Any] = []
        """of each frame, not compiled yet"""

    def build(self, read: doc.DefinitionDocument) -> Definition:
        """Raises ``validation_failed`` with every problem; of what is too large, with that alone."""
        if (count := _count(read)) > self._max_nodes:
            told = f"{count} nodes; the limit is {self._max_nodes} (limits.workflow_nodes)"
            raise _refusal([Problem("nodes", told)])
        self._frame(read, -1, 0, "", "", 0)
        if self.problems:
            raise _refusal(self.problems)
        for frame, output in zip(self.definition.frames, self._outputs, strict=True):
            frame.output = None if output is None else mapping(output)
            self._arrange(frame)
        for node in self.definition.nodes:
            _compile(node)
        return self.definition

    def _frame(self, read: doc.DefinitionDocument, owner: int, branch: int, prefix: str, at: str, depth: int) -> int:
        nodes = self.definition.nodes
        frame = Frame(len(self.definition.frames), owner, branch)
        self.definition.frames.append(frame)
        self._outputs.append(read.output)
        local: dict[str, int] = {}
        for spec in read.nodes:
            node = Node(len(nodes), prefix + spec.node_key, frame.index, spec)
            nodes.append(node)
            frame.nodes.append(node.index)
            local.setdefault(spec.node_key, node.index)
            self.definition.by_path[node.path] = node.index
        found = check_frame(read, at)
        self.problems += found
        if not found:
            self._edges(read, local)
        for number, index in enumerate(list(frame.nodes)):
            if nodes[index].type == "parallel":
                self._branches(nodes[index], f"{at}nodes[{number}]", depth)
        return frame.index

    def _branches(self, node: Node, at: str, depth: int) -> None:
        if depth >= MAX_NESTING:
            self.problems.append(Problem(at, f"nested deeper than {MAX_NESTING} parallel nodes"))
            return
        node.frames = tuple(
            self._frame(inner, node.index, no, f"{node.path}/{no}/", f"{at}.branches[{no}].", depth + 1)
            for no, inner in enumerate(node.spec.branches)
        )

    def _edges(self, read: doc.DefinitionDocument, local: dict[str, int]) -> None:
        def join(source: str, target: str, kind: EdgeKind, when: Any = None) -> None:
            one, other = self.definition.nodes[local[source]], self.definition.nodes[local[target]]
            decides = None if when is None else condition(when)
            edge = Edge(len(one.outgoing), one.index, other.index, kind, decides)
            one.outgoing.append(edge)
            other.incoming.append(edge)

        for spec in read.nodes:
            if spec.node_type == "choice":
                for branch in spec.branches:
                    join(spec.node_key, branch.goto, "choice", branch.when)
                if spec.default is not None:
                    join(spec.node_key, spec.default, "choice")
            for caught in getattr(spec, "catch", ()):
                join(spec.node_key, caught.goto, "catch")
        for edge in read.edges:
            join(edge.from_, edge.to, "flow", edge.when)

    def _arrange(self, frame: Frame) -> None:
        """Put the frame's nodes in order, and find where it ends."""
        nodes = self.definition.nodes
        open_edges = {index: len(nodes[index].incoming) for index in frame.nodes}
        waiting = deque(index for index in frame.nodes if not open_edges[index])
        while waiting:
            index = waiting.popleft()
            nodes[index].order = len(frame.ordered)
            frame.ordered.append(index)
            for edge in nodes[index].outgoing:
                open_edges[edge.target] -= 1
                if not open_edges[edge.target]:
                    waiting.append(edge.target)
        for index in frame.nodes:
            node = nodes[index]
            node.parents = tuple(dict.fromkeys(edge.source for edge in node.incoming))
            if all(edge.kind == "catch" for edge in node.outgoing):
                frame.sinks.append(index)


def _count(read: doc.DefinitionDocument) -> int:
    """Nodes, those inside of others included."""
    inner = (branch for node in read.nodes if node.node_type == "parallel" for branch in node.branches)
    return len(read.nodes) + sum(_count(branch) for branch in inner)


def _compile(node: Node) -> None:
    spec = node.spec
    node.when = None if spec.when is None else condition(spec.when)
    node.input = _mapping(spec.input_mapping)
    node.output = _mapping(getattr(spec, "output_mapping", None))
    if node.type == "map":
        node.value = mapping(spec.items)
        node.each_input = _mapping(spec.do.input_mapping)
        node.each_output = _mapping(spec.do.output_mapping)
    elif node.type == "wait":
        node.value = mapping(spec.seconds if spec.seconds is not None else spec.until)
    elif node.type == "wait_event":
        node.value = mapping(spec.filters) if spec.topic is not None else _mapping(spec.key)
    elif node.type == "pass" and "value" in spec.model_fields_set:
        node.value = mapping(spec.value)
    undo = getattr(spec, "compensate", None)
    if undo is not None:
        node.undo_input = _mapping(undo.input_mapping)


def _mapping(document: Any) -> Evaluate | None:
    return None if document is None else mapping(document)


def parse(document: Any, *, max_nodes: int = MAX_NODES) -> Definition:
    """The definition that a JSON document describes. ``max_nodes`` counts those inside of parallel nodes too.

    Raises ``validation_failed`` with every problem, each with its field (``nodes[3].catch[0].goto``).
    """
    try:
        read = doc.DefinitionDocument.model_validate(document)
    except ValidationError as exc:
        raise _refusal([Problem(_field(e["loc"]), _message(e)) for e in exc.errors(include_url=False)]) from None
    except RecursionError:
        raise _refusal([Problem("nodes", "nested too deep")]) from None
    return _Builder(max_nodes).build(read)


def _refusal(problems: Sequence[Problem]) -> NovaError:
    told = [FieldError(problem.field, problem.message) for problem in problems[:MAX_TOLD]]
    first = problems[0]
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return NovaError("validation_failed", f"{first.field}: {first.message}{more}", errors=told)


def _field(loc: Sequence[str | int]) -> str:
    """Without the marks of which kind of node was being read."""
    text = ""
    for before, part in zip(("", *loc), loc, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif part in doc.NODE_TYPES and (isinstance(before, int) or before == "do"):
            continue
        else:
            text += f".{part}" if text else part
    return text or "definition"


def _message(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "there is no such field"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return f"node_type is one of {', '.join(doc.NODE_TYPES)}"
    message: str = error["msg"]
    return message.removeprefix("Value error, ")
