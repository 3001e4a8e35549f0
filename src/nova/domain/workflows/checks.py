"""What the nodes and edges of one graph must be to one another; everything that a shape alone cannot say."""

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nova.domain.filters import compile_filters
from nova.domain.names import is_qualifier
from nova.domain.workflows import document as doc
from nova.domain.workflows.mapping import problems_of
from nova.domain.workflows.paths import is_path, path, paths_in
from nova.errors import NovaError

_ROOTS = ("input", "nodes", "run", "error")
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")


@dataclass(frozen=True, slots=True)
class Problem:
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class _Link:
    """One way from a node to another; ``at`` is the field that says so."""

    source: str
    target: str
    at: str


def check_frame(read: doc.DefinitionDocument, at: str) -> list[Problem]:
    """Every problem of a graph. ``at`` is its own field: empty, or that of a branch with a dot behind it."""
    problems = list(_keys(read, at))
    links = list(_links(read, at))
    problems += _ends(read, links)
    if problems:
        return problems + list(_specs(read, at, None))
    before = _before(read, links)
    if before is None:
        return [Problem(f"{at}edges", "the nodes form a cycle"), *_specs(read, at, None)]
    return list(_specs(read, at, before))


def _keys(read: doc.DefinitionDocument, at: str) -> Iterator[Problem]:
    seen: set[str] = set()
    for number, node in enumerate(read.nodes):
        if node.node_key in seen:
            yield Problem(f"{at}nodes[{number}].node_key", f"another node is called {node.node_key!r} as well")
        seen.add(node.node_key)


def _links(read: doc.DefinitionDocument, at: str) -> Iterator[_Link]:
    for number, node in enumerate(read.nodes):
        here = f"{at}nodes[{number}]"
        if node.node_type == "choice":
            for no, branch in enumerate(node.branches):
                yield _Link(node.node_key, branch.goto, f"{here}.branches[{no}].goto")
            if node.default is not None:
                yield _Link(node.node_key, node.default, f"{here}.default")
        for no, caught in enumerate(getattr(node, "catch", ())):
            yield _Link(node.node_key, caught.goto, f"{here}.catch[{no}].goto")
    for number, edge in enumerate(read.edges):
        yield _Link(edge.from_, edge.to, f"{at}edges[{number}]")


def _ends(read: doc.DefinitionDocument, links: list[_Link]) -> Iterator[Problem]:
    types = {node.node_key: node.node_type for node in read.nodes}
    seen: set[tuple[str, str]] = set()
    for link in links:
        edge = link.at.endswith("]")
        if link.source not in types:
            yield Problem(f"{link.at}.from", f"there is no node {link.source!r}")
        elif types[link.source] in ("succeed", "fail"):
            yield Problem(f"{link.at}.from", f"{link.source!r} ends the run; nothing comes after it")
        if link.target not in types:
            yield Problem(f"{link.at}.to" if edge else link.at, f"there is no node {link.target!r}")
        if edge and (link.source, link.target) in seen:
            yield Problem(link.at, f"another way leads from {link.source!r} to {link.target!r} already")
        seen.add((link.source, link.target))


def _before(read: doc.DefinitionDocument, links: list[_Link]) -> dict[str, int] | None:
    """For each node those that come before it, as a set of bits by their place in the list; None: there is a cycle."""
    bits = {node.node_key: 1 << number for number, node in enumerate(read.nodes)}
    before = dict.fromkeys(bits, 0)
    open_links = dict.fromkeys(bits, 0)
    following: dict[str, list[str]] = {key: [] for key in bits}
    for link in links:
        open_links[link.target] += 1
        following[link.source].append(link.target)
    waiting = deque(key for key, count in open_links.items() if not count)
    done = 0
    while waiting:
        key = waiting.popleft()
        done += 1
        for target in following[key]:
            before[target] |= before[key] | bits[key]
            open_links[target] -= 1
            if not open_links[target]:
                waiting.append(target)
    return before if done == len(bits) else None


class _Looks:
    """Checks the paths of mappings and conditions: that they can be read, and that what they look at is there by then."""

    def __init__(self, read: doc.DefinitionDocument, before: dict[str, int] | None) -> None:
        self._bits = {node.node_key: 1 << number for number, node in enumerate(read.nodes)}
        self._before = before

    def mapping(self, document: Any, at: str, node: str | None, *more: str, itself: bool = False) -> Iterator[Problem]:
        """``node`` is whose mapping it is; None: of the whole. ``more`` are further names that it may look at."""
        for field, text in paths_in(document, at):
            message = self._wrong(text, node, more, itself)
            if message is not None:
                yield Problem(field, message)

    def condition(self, document: Any, at: str, node: str, *, itself: bool = False) -> Iterator[Problem]:
        if document is None:
            return
        problems = problems_of(document, at)
        yield from (Problem(field, message) for field, message in problems)
        if not problems:
            yield from self.mapping(document, at, node, itself=itself)

    def _wrong(self, text: str, node: str | None, more: tuple[str, ...], itself: bool) -> str | None:
        try:
            found = path(text)
        except ValueError as exc:
            return str(exc)
        if _QUOTED.sub("", text).count("$") > 1:
            return f"{text!r}: $ stands at the beginning only; a filter looks at @"
        roots = (*_ROOTS, *more)
        first = found.roots[0] if found.roots else None
        if first not in roots:
            return f"{text!r} starts with none of $.{', $.'.join(roots)}"
        if first != "nodes":
            return None
        key = found.roots[1] if len(found.roots) > 1 else None
        if key is None or key not in self._bits:
            return f"{text!r} names no node of this graph"
        if node is None or self._before is None or (itself and key == node):
            return None
        if not self._before[node] & self._bits[key]:
            return f"{text!r}: {key!r} does not come before {node!r}"
        return None


def _specs(read: doc.DefinitionDocument, at: str, before: dict[str, int] | None) -> Iterator[Problem]:
    looks = _Looks(read, before)
    for number, node in enumerate(read.nodes):
        here = f"{at}nodes[{number}]"
        yield from looks.mapping(node.input_mapping, f"{here}.input_mapping", node.node_key)
        yield from looks.condition(node.when, f"{here}.when", node.node_key)
        yield from looks.mapping(
            getattr(node, "output_mapping", None), f"{here}.output_mapping", node.node_key, "output"
        )
        undo = getattr(node, "compensate", None)
        if undo is not None:
            yield from looks.mapping(
                undo.input_mapping, f"{here}.compensate.input_mapping", node.node_key, "output", itself=True
            )
        yield from _of_type(node, here, looks)
    known = {node.node_key for node in read.nodes}
    for number, edge in enumerate(read.edges):
        if edge.from_ in known:
            yield from looks.condition(edge.when, f"{at}edges[{number}].when", edge.from_, itself=True)
    yield from looks.mapping(read.output, f"{at}output", None)


def _of_type(node: Any, here: str, looks: _Looks) -> Iterator[Problem]:
    key: str = node.node_key
    match node.node_type:
        case "function":
            yield from _qualifier(node, here)
        case "choice":
            for no, branch in enumerate(node.branches):
                if branch.when is None:
                    yield Problem(f"{here}.branches[{no}].when", "a condition; what is left goes to default")
                yield from looks.condition(branch.when, f"{here}.branches[{no}].when", key)
        case "map":
            yield from _map(node, here, looks)
        case "parallel":
            if isinstance(node.complete, int) and node.complete > len(node.branches):
                yield Problem(f"{here}.complete", f"there are only {len(node.branches)} branches")
        case "wait":
            yield from _wait(node, here, looks)
        case "wait_event":
            yield from _wait_event(node, here, looks)
        case "pass":
            yield from looks.mapping(node.value, f"{here}.value", key)


def _wait_event(node: Any, here: str, looks: _Looks) -> Iterator[Problem]:
    if sum(one is not None for one in (node.key, node.topic, node.approval)) != 1:
        yield Problem(f"{here}.key", "one of the key of an event, a topic, and an approval")
    if node.filters and node.topic is None:
        yield Problem(f"{here}.filters", "of a topic only")
    yield from looks.mapping(node.key, f"{here}.key", node.node_key)
    yield from looks.mapping(node.filters, f"{here}.filters", node.node_key)
    wrong = [one for number, _ in enumerate(node.filters) for one in _filter(node.filters, number, here)]
    yield from wrong or _filters(node.filters, f"{here}.filters")


def _filter(filters: list[dict[str, Any]], number: int, here: str) -> list[Problem]:
    """What is wrong with one of them, with its place as paths have it."""
    found = _filters([filters[number]], "filters")
    return [Problem(f"{here}.filters[{number}]{one.field.removeprefix('filters.0')}", one.message) for one in found]


def _filters(filters: list[dict[str, Any]], field: str) -> list[Problem]:
    try:
        compile_filters(_filled(filters), field)
    except NovaError as error:
        return [Problem(one.field, one.message) for one in error.errors]
    return []


def _filled(document: Any) -> Any:
    """Some text stands for what paths are going to find."""
    if isinstance(document, dict):
        return {key: _filled(member) for key, member in document.items()}
    if isinstance(document, list):
        return [_filled(member) for member in document]
    return "x" if is_path(document) else document


def _qualifier(node: Any, here: str) -> Iterator[Problem]:
    if node.qualifier is not None and not is_qualifier(node.qualifier):
        yield Problem(f"{here}.qualifier", "a version number, an alias, live or $LATEST")


def _map(node: Any, here: str, looks: _Looks) -> Iterator[Problem]:
    if not isinstance(node.items, list) and not is_path(node.items):
        yield Problem(f"{here}.items", "a path to a list, or a list")
    yield from looks.mapping(node.items, f"{here}.items", node.node_key)
    each = node.do
    if each.node_type == "function":
        yield from _qualifier(each, f"{here}.do")
    yield from looks.mapping(each.input_mapping, f"{here}.do.input_mapping", node.node_key, "item", "index")
    yield from looks.mapping(each.output_mapping, f"{here}.do.output_mapping", node.node_key, "item", "index", "output")


def _wait(node: Any, here: str, looks: _Looks) -> Iterator[Problem]:
    if (node.seconds is None) == (node.until is None):
        yield Problem(f"{here}.seconds", "either seconds or until")
        return
    if node.seconds is not None and not is_path(node.seconds):
        number = isinstance(node.seconds, int | float) and not isinstance(node.seconds, bool)
        if not number or not 0 <= node.seconds <= doc.MAX_WAIT_S:
            yield Problem(f"{here}.seconds", f"from 0 to {doc.MAX_WAIT_S}, or a path to a number")
    if node.until is not None and not isinstance(node.until, str):
        yield Problem(f"{here}.until", "a time (RFC 3339), or a path to one")
    yield from looks.mapping(node.seconds, f"{here}.seconds", node.node_key)
    yield from looks.mapping(node.until, f"{here}.until", node.node_key)
