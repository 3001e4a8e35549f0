"""JSON documents of users: what a JSON Pointer (RFC 6901) names in one, and where two of them differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

MAX_DIFFERENCES = 50
"""Places that a comparison names; more say nothing more."""


class Absent:
    """The type of :data:`ABSENT`."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent()
"""What a pointer finds where nothing is; null is a value."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where two documents differ; :data:`ABSENT` on the side that has nothing there."""

    path: str
    before: Any
    after: Any


@lru_cache(maxsize=1024)
def tokens(pointer: str) -> tuple[str, ...]:
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


def find(document: Any, pointer: str) -> Any:
    """What ``pointer`` names; :data:`ABSENT` when there is no such place."""
    for token in tokens(pointer):
        document = _child(document, token)
    return document


def differences(before: Any, after: Any, *, ignore: Sequence[str] = ()) -> list[Difference]:
    """Where ``after`` is not what ``before`` is, in document order, at most :data:`MAX_DIFFERENCES`.

    What a pointer of ``ignore`` names, and everything below it, is not looked at. Numbers are equal by value (1 and 1.0).
    """
    found: list[Difference] = []
    for difference in _walk(before, after, (), frozenset(map(tokens, ignore))):
        found.append(difference)
        if len(found) == MAX_DIFFERENCES:
            break
    return found


def _walk(before: Any, after: Any, path: tuple[str, ...], ignored: frozenset[tuple[str, ...]]) -> Iterator[Difference]:
    if path in ignored:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(name for name in after if name not in before)]:
            yield from _walk(before.get(name, ABSENT), after.get(name, ABSENT), (*path, name), ignored)
    elif isinstance(before, list) and isinstance(after, list):
        for index in range(max(len(before), len(after))):
            yield from _walk(_item(before, index), _item(after, index), (*path, str(index)), ignored)
    elif not _equal(before, after):
        yield Difference(_pointer(path), before, after)


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, bool) or isinstance(after, bool):
        return before is after
    return bool(before == after)


def _pointer(path: tuple[str, ...]) -> str:
    return "".join("/" + token.replace("~", "~0").replace("/", "~1") for token in path)


def _item(items: list[Any], index: int) -> Any:
    return items[index] if index < len(items) else ABSENT


def _child(value: Any, token: str) -> Any:
    if isinstance(value, dict):
        return value.get(token, ABSENT)
    if isinstance(value, list) and token.isascii() and token.isdigit() and len(token) < 10:
        return _item(value, int(token))
    return ABSENT


def within(value: Any, depth: int) -> bool:
    """Is nothing in ``value`` nested deeper than ``depth`` levels?"""
    if not isinstance(value, dict | list):
        return True
    children = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(within(child, depth - 1) for child in children)
