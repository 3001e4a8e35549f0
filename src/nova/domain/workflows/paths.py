"""JSONPath (RFC 9535) as mappings and conditions use it: compiled once, bounded in what an evaluation may cost."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import regex
from jsonpath_rfc9535 import JSONPathEnvironment, JSONPathError
from jsonpath_rfc9535.function_extensions import Match, Search
from jsonpath_rfc9535.function_extensions._pattern import map_re
from jsonpath_rfc9535.segments import JSONPathRecursiveDescentSegment
from jsonpath_rfc9535.selectors import IndexSelector, NameSelector

MAX_PATH = 1024
"""Characters of one path."""
MAX_PATTERN = 512
"""Characters of one regular expression."""
_MATCH_S = 0.05
"""An expression that takes longer on one text matches nothing: some patterns would take for ever."""


class Nothing(Exception):
    """A path of one place selects nothing in this value. The argument is the path."""


class _Match(Match):
    def __call__(self, string: object, pattern: object) -> bool:
        return isinstance(pattern, str) and _found(regex.fullmatch, map_re(pattern), string)


class _Search(Search):
    def __call__(self, string: object, pattern: object) -> bool:
        return isinstance(pattern, str) and _found(regex.search, map_re(pattern), string)


class _Environment(JSONPathEnvironment):
    def setup_function_extensions(self) -> None:
        super().setup_function_extensions()
        self.function_extensions["match"] = _Match()
        self.function_extensions["search"] = _Search()


_ENVIRONMENT = _Environment()


class Path:
    """One compiled path. ``single``: it names one place and gives the value there; others give the list of what they find."""

    __slots__ = ("_query", "_steps", "roots", "single", "text")

    def __init__(self, text: str) -> None:
        """Raises ValueError with what is wrong."""
        if len(text) > MAX_PATH:
            raise ValueError(f"a path has at most {MAX_PATH} characters")
        try:
            query = _ENVIRONMENT.compile(text)
        except (JSONPathError, RecursionError) as exc:
            raise ValueError(f"{text!r} is no JSONPath (RFC 9535): {str(exc).split(', line ')[0]}") from None
        if sum(isinstance(segment, JSONPathRecursiveDescentSegment) for segment in query.segments) > 1:
            raise ValueError(f"{text!r} descends twice; once (..) is the limit")
        self.text = text
        self.single = query.singular_query()
        self._query = query
        self._steps = tuple(_step(segment.selectors[0]) for segment in query.segments) if self.single else ()
        self.roots = tuple(
            segment.selectors[0].name
            if len(segment.selectors) == 1 and isinstance(segment.selectors[0], NameSelector)
            else None
            for segment in query.segments[:2]
        )
        """The first two names of it, None for what is no name: what of a run it looks at."""

    def value(self, context: Any) -> Any:
        """Raises :class:`Nothing`."""
        if not self.single:
            return self._found(context)
        for step in self._steps:
            try:
                if isinstance(step, str):
                    if not isinstance(context, Mapping):
                        raise Nothing(self.text)
                elif not isinstance(context, list):
                    raise Nothing(self.text)
                context = context[step]
            except (KeyError, IndexError):
                raise Nothing(self.text) from None
        return context

    def _found(self, context: Any) -> list[Any]:
        try:
            return [node.value for node in self._query.finditer(context)]
        except (JSONPathError, RecursionError):
            raise Nothing(self.text) from None


def _step(selector: object) -> str | int:
    if isinstance(selector, NameSelector):
        return selector.name
    assert isinstance(selector, IndexSelector)
    return selector.index


@lru_cache(4096)
def path(text: str) -> Path:
    """Raises ValueError with what is wrong."""
    return Path(text)


def check_pattern(pattern: str) -> None:
    """Raises ValueError with what is wrong."""
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"a pattern has at most {MAX_PATTERN} characters")
    try:
        regex.compile(pattern)
    except regex.error as exc:
        raise ValueError(f"{pattern!r} is no regular expression: {exc}") from None


def matches(pattern: str, text: object) -> bool:
    """Is the pattern found in the text? False for what is no text, and when it takes too long to find out."""
    return _found(regex.search, pattern, text)


def _found(how: Any, pattern: str, text: object) -> bool:
    if not isinstance(text, str):
        return False
    try:
        return how(pattern, text, timeout=_MATCH_S) is not None
    except (TimeoutError, regex.error):
        return False


def is_path(value: object) -> bool:
    """Strings that start with ``$.`` are paths."""
    return isinstance(value, str) and value.startswith("$.")


def paths_in(mapping: Any, at: str) -> Sequence[tuple[str, str]]:
    """The paths of a mapping, each with the field it stands in. ``at`` is the mapping's own field."""
    found: list[tuple[str, str]] = []
    waiting: list[tuple[str, Any]] = [(at, mapping)]
    while waiting:
        field, value = waiting.pop()
        if is_path(value):
            found.append((field, value))
        elif isinstance(value, dict):
            waiting += [(f"{field}.{key}", member) for key, member in value.items()]
        elif isinstance(value, list):
            waiting += [(f"{field}[{number}]", member) for number, member in enumerate(value)]
    return found
