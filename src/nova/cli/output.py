"""How results reach the terminal: data on stdout in the format asked for, everything for people on stderr."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import jmespath
import yaml
from jmespath.exceptions import JMESPathError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nova.client import ApiError, Json, UsageError

_PIPE_WIDTH = 10_000
"""Columns when nobody looks: what is piped is never cut."""


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"
    WIDE = "wide"


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a list: its title, and the member (or function of the item) shown in it."""

    title: str
    value: str | Callable[[Json], Any]
    wide: bool = False
    right: bool = False

    def of(self, item: Json) -> Text:
        found = self.value(item) if callable(self.value) else item.get(self.value)
        return cell(found)


class Output:
    def __init__(self, fmt: Format, query: str | None = None, *, no_color: bool = False, quiet: bool = False) -> None:
        self.format = fmt
        self.quiet = quiet
        self.interactive = sys.stdin.isatty() and sys.stderr.isatty()
        self.console = Console(no_color=no_color, highlight=False, soft_wrap=False, width=_width(sys.stdout.isatty()))
        self.error = Console(stderr=True, no_color=no_color, highlight=False, width=_width(sys.stderr.isatty()))
        try:
            self._query = jmespath.compile(query) if query else None
        except JMESPathError as exc:
            raise UsageError(f"--query: {exc}") from None

    @property
    def for_people(self) -> bool:
        """No machine reads the result: tables and prose are wanted."""
        return self.format in (Format.TABLE, Format.WIDE) and self._query is None

    def items(self, page: Json, columns: Sequence[Column], *, name: str = "name", empty: str = "nothing there") -> None:
        """A list as the API answered it (``items`` and ``next_cursor``)."""
        if self.format is Format.NAME and self._query is None:
            for item in page["items"]:
                self.line(str(item[name]))
        elif not self.for_people:
            self.data(page)
        elif page["items"]:
            self.table(page["items"], columns)
            if page.get("next_cursor"):
                self.note("there is more: --all, or --limit with a higher number")
        else:
            self.note(empty)

    def item(self, item: Json, columns: Sequence[Column] | None = None, *, name: str = "name") -> None:
        """One resource: in a table one member per line."""
        if self.format is Format.NAME and self._query is None:
            self.line(str(item[name]))
        elif not self.for_people:
            self.data(item)
        else:
            shown = [Column(key, key) for key in item] if columns is None else columns
            self.pairs((column.title, column.of(item)) for column in shown if not column.wide or self._wide)

    @property
    def _wide(self) -> bool:
        return self.format is Format.WIDE

    def table(self, rows: Iterable[Json], columns: Sequence[Column]) -> None:
        shown = [column for column in columns if not column.wide or self._wide]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in shown:
            table.add_column(column.title.upper(), justify="right" if column.right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(column.of(row) for column in shown))
        self.console.print(table)

    def pairs(self, pairs: Iterable[tuple[str, Text]]) -> None:
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for title, value in pairs:
            table.add_row(title, value)
        self.console.print(table)

    def data(self, value: Any) -> None:
        """JSON (or YAML) of a value, or of the part that ``--query`` names."""
        if self._query is not None:
            try:
                value = self._query.search(value)
            except JMESPathError as exc:
                raise UsageError(f"--query: {exc}") from None
            if isinstance(value, str) and self.format in (Format.TABLE, Format.WIDE, Format.NAME):
                self.line(value)
                return
        if self.format is Format.YAML:
            self.line(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n"))
        else:
            self.line(json.dumps(value, indent=2, ensure_ascii=False))

    def line(self, text: str) -> None:
        """One line on stdout, exactly as given."""
        self.write(text + "\n")

    def write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def done(self, text: str) -> None:
        """What was done, for people; silent when a machine reads."""
        if self.for_people and not self.quiet:
            self.console.print(Text(text), soft_wrap=True)

    def failure(self, problem: Exception) -> None:
        """What went wrong: one line, and one for each field that the server found wrong."""
        message, *more = describe(problem)
        self.error.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        for line in more:
            self.error.print(Text(f"  {line}"), soft_wrap=True)

    def note(self, text: str) -> None:
        """A hint on stderr; silent with ``--quiet``."""
        if not self.quiet:
            self.error.print(Text(text), style="dim", soft_wrap=True)


def describe(problem: Exception) -> list[str]:
    """The lines that explain a failure to its user."""
    if not isinstance(problem, ApiError):
        return [str(problem)]
    lines = [problem.detail or problem.code]
    fields = [error for error in problem.errors if f"{error.field}: {error.message}" != problem.detail]
    lines += [f"{error.field}: {error.message}" for error in fields]
    if problem.retry_after_s is not None:
        lines.append(f"try again in {problem.retry_after_s} s")
    if problem.status >= 500 and problem.request_id:
        lines.append(f"request id {problem.request_id}")
    return lines


def _width(terminal: bool) -> int | None:
    return None if terminal else _PIPE_WIDTH


def cell(value: Any) -> Text:
    """One value as people read it. Never interprets markup: names and messages come from others."""
    if value is None or value in ("", [], {}):
        return Text("–", style="dim")
    match value:
        case Text():
            return value
        case bool():
            return Text("yes" if value else "no")
        case float():
            return Text(f"{value:,.2f}".rstrip("0").rstrip("."))
        case list():
            return Text(", ".join(str(item) if not isinstance(item, dict) else _inline(item) for item in value))
        case dict():
            return Text(_inline(value))
        case _:
            return Text(str(value))


def _inline(value: Json) -> str:
    return ", ".join(
        f"{key}={json.dumps(item, ensure_ascii=False) if _nested(item) else item}" for key, item in value.items()
    )


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list | bool) or value is None


def moment(value: str | None) -> Text:
    """A time of the API in the local time zone, to the second."""
    if value is None:
        return cell(None)
    return Text(datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M:%S"))


def when(member: str) -> Callable[[Json], Text]:
    return lambda item: moment(item.get(member))


_COLOURS = {
    "success": "green",
    "succeeded": "green",
    "not_required": "green",
    "ok": "green",
    "active": "green",
    "failed": "red",
    "error": "red",
    "down": "red",
    "suspended": "red",
    "cancelled": "yellow",
    "degraded": "yellow",
    "pending": "yellow",
    "compiling": "yellow",
    "queued": "yellow",
    "running": "yellow",
}


def status(member: str) -> Callable[[Json], Text]:
    """A column whose words carry a colour."""

    def of(item: Json) -> Text:
        value = str(item.get(member) or "")
        return Text(value, style=_COLOURS.get(value, "")) if value else cell(None)

    return of
