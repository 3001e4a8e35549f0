"""Which messages a subscription wants: the filter dialects of the CloudEvents Subscriptions API.

``exact``, ``prefix`` and ``suffix`` map names to text; ``all`` and ``any`` take a list of expressions, ``not`` takes one. A name
is an attribute of the event (``type``, ``subject``, an extension, ``orderingkey``), ``headers.<name>`` for a header, or a JSON
Pointer (``/order/country``) into the data. Something that is not there fits nothing but a ``not``.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nova import payload
from nova.errors import invalid

MAX_DEPTH = 8
MAX_EXPRESSIONS = 100
"""In all filters of a subscription together."""
MAX_TEXT = 1024
"""Characters of a name or a value."""
_NAME = re.compile(r"headers\.[!-~]+|[a-z0-9]{1,64}|(/([^~/]|~[01])*)+")


class Subject:
    """A message as filters see it; its data is read when a filter first asks for it, once for all subscriptions."""

    __slots__ = ("_attributes", "_data", "_headers", "_payload", "_read")

    def __init__(self, attributes: Mapping[str, str], headers: Mapping[str, str], payload: bytes) -> None:
        self._attributes = attributes
        self._headers = headers
        self._payload = payload
        self._data: Any = None
        self._read = False

    def text(self, name: str) -> str | None:
        """The value of a name; None: it is not there, or neither text, number nor truth value."""
        if name[0] == "/":
            return self._pointed(name)
        if name.startswith("headers."):
            wanted = name.removeprefix("headers.").lower()
            return next((value for key, value in self._headers.items() if key.lower() == wanted), None)
        return self._attributes.get(name)

    def _pointed(self, pointer: str) -> str | None:
        if not self._read:
            self._data, self._read = payload.decode(self._payload), True
        value = self._data
        for part in pointer[1:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict):
                if key not in value:
                    return None
                value = value[key]
            elif isinstance(value, list) and key.isascii() and key.isdigit() and int(key[:9]) < len(value):
                value = value[int(key[:9])]
            else:
                return None
        if isinstance(value, str):
            return value
        return json.dumps(value) if isinstance(value, bool | int | float) else None


Fits = Callable[[Subject], bool]


@dataclass(slots=True)
class _Budget:
    left: int = MAX_EXPRESSIONS


def compile_filters(filters: Sequence[Mapping[str, Any]], field: str = "filters") -> Fits | None:
    """What a message must fit, as one function; None: every message does. Raises ``validation_failed`` that names the place."""
    budget = _Budget()
    parts = [_expression(one, f"{field}.{n}", 1, budget) for n, one in enumerate(filters)]
    return _all(parts) if parts else None


def _expression(given: Any, field: str, depth: int, budget: _Budget) -> Fits:
    budget.left -= 1
    if depth > MAX_DEPTH:
        raise invalid(field, f"filters are nested at most {MAX_DEPTH} deep")
    if budget.left < 0:
        raise invalid(field, f"there are at most {MAX_EXPRESSIONS} filter expressions")
    if not isinstance(given, Mapping) or len(given) != 1:
        raise invalid(field, "an object with one of exact, prefix, suffix, all, any, not")
    ((dialect, value),) = given.items()
    place = f"{field}.{dialect}"
    match dialect:
        case "exact":
            return _texts(value, place, lambda found, wanted: found == wanted)
        case "prefix":
            return _texts(value, place, str.startswith)
        case "suffix":
            return _texts(value, place, str.endswith)
        case "all" | "any":
            if not isinstance(value, list) or not value:
                raise invalid(place, "a list of at least one expression")
            parts = [_expression(one, f"{place}.{n}", depth + 1, budget) for n, one in enumerate(value)]
            return _all(parts) if dialect == "all" else _any(parts)
        case "not":
            inner = _expression(value, place, depth + 1, budget)
            return lambda subject: not inner(subject)
        case _:
            raise invalid(place, "is not one of exact, prefix, suffix, all, any, not")


def _texts(value: Any, field: str, fits: Callable[[str, str], bool]) -> Fits:
    if not isinstance(value, Mapping) or not value:
        raise invalid(field, "an object with at least one name and the text that its value is compared with")
    for name, wanted in value.items():
        if not isinstance(name, str) or len(name) > MAX_TEXT or not _NAME.fullmatch(name):
            raise invalid(
                f"{field}.{name}"[:200],
                "an attribute in lower case, headers.<name>, or a JSON Pointer with a leading /",
            )
        if not isinstance(wanted, str) or not 0 < len(wanted) <= MAX_TEXT:
            raise invalid(f"{field}.{name}"[:200], f"a text of 1 to {MAX_TEXT} characters")
    pairs = tuple(value.items())

    def check(subject: Subject) -> bool:
        for name, wanted in pairs:
            found = subject.text(name)
            if found is None or not fits(found, wanted):
                return False
        return True

    return check


def _all(parts: Sequence[Fits]) -> Fits:
    return parts[0] if len(parts) == 1 else lambda subject: all(part(subject) for part in parts)


def _any(parts: Sequence[Fits]) -> Fits:
    return lambda subject: any(part(subject) for part in parts)
