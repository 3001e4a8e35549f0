"""From the bytes of a path to an operation. Each segment is percent-decoded once, after the path was split at ``/``, so an
encoded slash stays inside its name and no spelling of a path reaches another operation than the plain one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from urllib.parse import quote, unquote_to_bytes

from nova.errors import NovaError

T = TypeVar("T")
_HEX = frozenset(b"0123456789abcdefABCDEF")
PREFIX = b"/v1"


def without_prefix(raw_path: bytes) -> bytes:
    """``/v1/x`` and ``/x`` are one route."""
    return raw_path[3:] if raw_path.startswith(b"/v1/") else raw_path


def decode_segment(raw: bytes) -> str:
    """One path segment, percent-decoded once. Raises ``validation_failed`` for what is not UTF-8 text without controls."""
    if b"%" in raw:
        position = raw.find(b"%")
        while position >= 0:
            if not (len(raw) > position + 2 and raw[position + 1] in _HEX and raw[position + 2] in _HEX):
                raise NovaError("validation_failed", "the path has a % that is not followed by two hexadecimal digits")
            position = raw.find(b"%", position + 3)
        raw = unquote_to_bytes(raw)
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise NovaError("validation_failed", "the path is not UTF-8") from None
    if not text.isprintable():
        raise NovaError("validation_failed", "the path has a control character")
    return text


def fill(path: str, params: Mapping[str, str]) -> str:
    """A route's path with its parameters, percent-encoded."""
    for name, value in params.items():
        path = path.replace(f"{{{name}}}", quote(value, safe="$"))
    return path


@dataclass(frozen=True, slots=True)
class Match(Generic[T]):
    """The operations at a path by method, and the path's parameters for each."""

    methods: Mapping[str, tuple[T, tuple[str, ...]]]
    values: tuple[str, ...]

    def get(self, method: str) -> tuple[T, dict[str, str]] | None:
        """The operation and its parameters; HEAD is answered by GET."""
        found = self.methods.get(method) or (self.methods.get("GET") if method == "HEAD" else None)
        return None if found is None else (found[0], dict(zip(found[1], self.values, strict=True)))

    @property
    def allow(self) -> list[str]:
        names = set(self.methods)
        return sorted(names | {"HEAD"} if "GET" in names else names)


@dataclass(slots=True)
class _Node(Generic[T]):
    static: dict[str, "_Node[T]"] = field(default_factory=dict)
    param: "_Node[T] | None" = None
    methods: dict[str, tuple[T, tuple[str, ...]]] = field(default_factory=dict)


class Router(Generic[T]):
    """A tree of segments. A literal segment wins over a parameter."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()

    def add(self, method: str, path: str, target: T) -> None:
        """Add ``/functions/{name}/…``. Raises RuntimeError when method and path are taken."""
        node = self._root
        names = []
        for part in path.split("/")[1:]:
            if part.startswith("{"):
                names.append(part[1:-1])
                node.param = node.param or _Node()
                node = node.param
            else:
                node = node.static.setdefault(part, _Node())
        if method in node.methods:
            raise RuntimeError(f"two operations for {method} {path}")
        node.methods[method] = (target, tuple(names))

    def find(self, raw_path: bytes) -> Match[T] | None:
        """What is at a path, without ``/v1``; None when nothing is."""
        segments = [decode_segment(part) for part in raw_path.split(b"/")[1:]]
        values: list[str] = []
        node = _descend(self._root, segments, 0, values)
        return None if node is None else Match(node.methods, tuple(values))


def _descend(node: _Node[T], segments: list[str], depth: int, values: list[str]) -> _Node[T] | None:
    if depth == len(segments):
        return node if node.methods else None
    segment = segments[depth]
    if (child := node.static.get(segment)) is not None:
        found = _descend(child, segments, depth + 1, values)
        if found is not None:
            return found
    if node.param is None or not segment:
        return None
    values.append(segment)
    found = _descend(node.param, segments, depth + 1, values)
    if found is None:
        values.pop()
    return found
