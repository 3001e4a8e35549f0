"""Mappings and conditions: data that says how one value is made of others, and whether something holds. Not code.

A mapping is any JSON. Strings that start with ``$.`` are paths, ``$$.`` stands for a literal ``$.``; all else is what it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

from nova.domain.workflows.paths import Nothing, check_pattern, is_path, matches, path

MAX_DEPTH = 32
"""Levels of a mapping, and of conditions inside conditions."""
Context = Mapping[str, Any]
Evaluate = Callable[[Context], Any]
Condition = Callable[[Context], bool]


class MappingFailed(Exception):
    """A mapping cannot be evaluated here; the argument says why, for people."""


def mapping(document: Any) -> Evaluate:
    """What makes the value that ``document`` describes. The paths in it have been checked."""
    build = _build(document)

    def evaluate(context: Context) -> Any:
        try:
            return build(context)
        except Nothing as nothing:
            raise MappingFailed(f"{nothing} selects nothing") from None

    return evaluate


def _build(document: Any) -> Evaluate:
    if isinstance(document, str):
        if is_path(document):
            return path(document).value
        text = document[1:] if document.startswith("$$.") else document
        return lambda _context: text
    if isinstance(document, dict):
        members = [(key, _build(value)) for key, value in document.items()]
        return lambda context: {key: build(context) for key, build in members}
    if isinstance(document, list):
        items = [_build(value) for value in document]
        return lambda context: [build(context) for build in items]
    return lambda _context: document


_NOTHING = object()
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "eq": lambda found, value: _same(found, value),
    "ne": lambda found, value: not _same(found, value),
    "gt": lambda found, value: _ordered(found, value) and found > value,
    "ge": lambda found, value: _ordered(found, value) and found >= value,
    "lt": lambda found, value: _ordered(found, value) and found < value,
    "le": lambda found, value: _ordered(found, value) and found <= value,
    "in": lambda found, value: any(_same(found, one) for one in value),
    "contains": lambda found, value: _contains(found, value),
    "exists": lambda found, value: (found is not _NOTHING) == value,
    "matches": lambda found, value: matches(value, found),
}
OPERATORS = tuple(_OPERATORS)


def condition(document: Any) -> Condition:
    """What decides ``document``, which has been checked by :func:`problems_of`. A path that selects nothing equals nothing."""
    if "all" in document:
        parts = [condition(part) for part in document["all"]]
        return lambda context: all(part(context) for part in parts)
    if "any" in document:
        parts = [condition(part) for part in document["any"]]
        return lambda context: any(part(context) for part in parts)
    if "not" in document:
        inner = condition(document["not"])
        return lambda context: not inner(context)
    where = path(document["path"])
    holds = _OPERATORS[document["op"]]
    value = mapping(document.get("value", True))

    def decide(context: Context) -> bool:
        try:
            found = where.value(context)
        except Nothing:
            found = _NOTHING
        if not where.single and not found:
            found = _NOTHING
        try:
            return holds(found, value(context))
        except MappingFailed:
            return False

    return decide


def problems_of(document: Any, at: str, depth: int = 0) -> list[tuple[str, str]]:
    """What is wrong with a condition: fields and messages."""
    if depth > MAX_DEPTH:
        return [(at, f"conditions are nested deeper than {MAX_DEPTH} levels")]
    if not isinstance(document, dict):
        return [(at, "a condition is {path, op, value}, or one of all, any, not")]
    for word in ("all", "any"):
        if word in document:
            return _alone(document, word, at) + _problems_of_parts(document[word], f"{at}.{word}", depth)
    if "not" in document:
        return _alone(document, "not", at) + problems_of(document["not"], f"{at}.not", depth + 1)
    return _problems_of_comparison(document, at)


def _alone(document: dict[str, Any], word: str, at: str) -> list[tuple[str, str]]:
    return [(f"{at}.{key}", f"stands beside {word}, which stands alone") for key in document if key != word]


def _problems_of_parts(parts: Any, at: str, depth: int) -> list[tuple[str, str]]:
    if not isinstance(parts, list) or not parts:
        return [(at, "a list of conditions")]
    return [problem for no, part in enumerate(parts) for problem in problems_of(part, f"{at}[{no}]", depth + 1)]


def _problems_of_comparison(document: dict[str, Any], at: str) -> list[tuple[str, str]]:
    problems = [(f"{at}.{key}", "is no part of a condition") for key in document if key not in ("path", "op", "value")]
    where, op, value = document.get("path"), document.get("op"), document.get("value")
    if not is_path(where):
        problems.append((f"{at}.path", "a JSONPath that starts with $."))
    if op not in _OPERATORS:
        problems.append((f"{at}.op", f"one of {', '.join(OPERATORS)}"))
    elif op == "exists":
        if not isinstance(document.get("value", True), bool):
            problems.append((f"{at}.value", "true or false"))
    elif "value" not in document:
        problems.append((f"{at}.value", "what to compare with"))
    elif op == "in" and not isinstance(value, list):
        problems.append((f"{at}.value", "a list"))
    elif op == "matches":
        problems += _problems_of_pattern(value, f"{at}.value")
    return problems


def _problems_of_pattern(value: Any, at: str) -> list[tuple[str, str]]:
    if not isinstance(value, str):
        return [(at, "a regular expression")]
    try:
        check_pattern(value)
    except ValueError as exc:
        return [(at, str(exc))]
    return []


def _same(left: Any, right: Any) -> bool:
    """As JSON: true is not 1."""
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    return bool(left == right)


def _ordered(left: Any, right: Any) -> bool:
    """Numbers compare with numbers and texts with texts."""
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    numbers = isinstance(left, int | float) and isinstance(right, int | float)
    return numbers or (isinstance(left, str) and isinstance(right, str))


def _contains(found: Any, value: Any) -> bool:
    if isinstance(found, str):
        return isinstance(value, str) and value in found
    if isinstance(found, dict):
        return isinstance(value, str) and value in found
    return isinstance(found, list) and any(_same(one, value) for one in found)
