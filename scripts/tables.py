"""Fill the tables of the documentation that the code knows better: settings, errors, permissions, metrics.

A page says where, and the lines between are replaced::

    <!-- table: settings -->
    <!-- end -->

``scripts/tables.py --check`` fails when a page is not what the code says.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from nova.api.table import routes
from nova.config import KEYS, Key, Settings, seconds
from nova.config_sources import plain
from nova.errors import CODES
from nova.execution.exposition import SERIES
from nova.security.access import ROLES

DOCS = Path(__file__).resolve().parent.parent / "docs"
_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))


def settings() -> Iterator[str]:
    """One table for each section, in the order of the file."""
    for section in Settings.model_fields:
        yield f"### {section}\n"
        keys = [key for key in KEYS.values() if key.name.startswith(f"{section}.")]
        yield from _table(
            ("key", "default", "accepts", "live", "what it is"),
            [(f"`{k.name}`", _default(k), _accepts(k), "yes" if k.hot else "", _meaning(k)) for k in keys],
        )
        yield ""


def errors() -> Iterator[str]:
    rows = sorted(CODES.items(), key=lambda item: (item[1].status, item[0]))
    yield from _table(("status", "code", "title"), [(str(c.status), f"`{name}`", c.title) for name, c in rows])


def roles() -> Iterator[str]:
    """Permission → who holds it and which operations ask for it."""
    asked: dict[str, list[str]] = {}
    for route in routes():
        if route.permission is not None:
            asked.setdefault(route.permission, []).append(route.op)
    rows = []
    for permission, operations in asked.items():
        held = ["yes" if permission in codes or "*" in codes else "" for codes in ROLES.values()]
        rows.append((f"`{permission}`", *held, " ".join(f"`{op}`" for op in operations)))
    yield from _table(("permission", *ROLES, "operations"), rows)


def series() -> Iterator[str]:
    yield from _table(
        ("series", "kind", "labels", "what it counts"),
        [(f"`{name}`", s.kind, " ".join(f"`{label}`" for label in s.labels), s.help) for name, s in SERIES.items()],
    )


TABLES: dict[str, Callable[[], Iterable[str]]] = {
    "settings": settings,
    "errors": errors,
    "roles": roles,
    "series": series,
}


def fill(text: str) -> str:
    """A page with its tables as they should be. Raises KeyError for a table that does not exist."""
    return _PLACE.sub(lambda found: found[1] + "\n".join(TABLES[found[2]]()) + "\n" + found[3], text)


def outdated() -> list[Path]:
    """The pages whose tables are not what the code says."""
    return [page for page in sorted(DOCS.glob("*.md")) if fill(page.read_text()) != page.read_text()]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '/') for cell in row)} |"


def _is_duration(key: Key) -> bool:
    return any(getattr(mark, "func", None) is seconds for mark in key.field.metadata)


def _default(key: Key) -> str:
    value: Any = plain(key.default)
    if _is_duration(key):
        unit, size = next((u for u in _UNITS if value >= u[1] and value % u[1] == 0), ("ms", 0.001))
        return f"`{value / size:g}{unit}`"
    if isinstance(value, dict):
        return " ".join(f"`{name}: {_compact(item)}`" for name, item in value.items())
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value not in ("", []) else "none"


def _compact(value: object) -> str:
    return ", ".join(f"{n} {v:g}" for n, v in value.items()) if isinstance(value, dict) else str(value)


def _accepts(key: Key) -> str:
    if _is_duration(key):
        return "a duration above 0"
    if choices := get_args(key.field.annotation) if str(key.field.annotation).startswith("typing.Literal") else ():
        return ", ".join(f"`{str(choice).lower()}`" for choice in choices if choice != "")
    bounds = {name: getattr(mark, name) for mark in key.field.metadata for name in ("ge", "le") if hasattr(mark, name)}
    if {"ge", "le"} <= bounds.keys():
        return f"{bounds['ge']} to {bounds['le']}"
    if "ge" in bounds:
        return f"{bounds['ge']} or more"
    kind = key.field.annotation
    return {bool: "`true`, `false`", str: "text", Path: "a path"}.get(
        kind, "a list" if "list" in str(kind) else "a map"
    )


def _meaning(key: Key) -> str:
    return (key.field.description or "") + (" (secret)" if key.secret else "")


if __name__ == "__main__":
    stale = outdated()
    if "--check" not in sys.argv:
        for page in stale:
            page.write_text(fill(page.read_text()))
    elif stale:
        sys.exit(f"out of date: {', '.join(page.name for page in stale)}; run scripts/tables.py")
