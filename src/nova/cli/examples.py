"""The examples of the repository and what the demo calls them with."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import nova
from nova.cli.project import MANIFEST, Project
from nova.cli.session import CliError

DEMO = "demo.yaml"
_SHOWN = 72


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class UrlCall(_Strict):
    """A request to the function URL."""

    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    path: str = "/"
    body: Any = Field(None, alias="json")


class Entry(_Strict):
    """How one function is called; see the comment in ``examples/demo.yaml``."""

    function: str
    input: dict[str, Any] = {}
    url: UrlCall | None = None
    accepts: list[Annotated[str, Field(pattern=r"^\.[a-z0-9]+$")]] = []
    replaces: str | None = None
    show: str = ""


class Example:
    """A project with its call. ``own`` says that the input is the user's file and not the example's."""

    def __init__(self, project: Project, entry: Entry, payload: Mapping[str, Any], *, own: bool = False) -> None:
        self.project = project
        self.entry = entry
        self.payload = json.dumps(payload).encode()
        self._own = own

    @property
    def name(self) -> str:
        return self.project.name

    def describe(self, output: Any) -> str:
        """The answer as one short line. Raises ValueError when it is not what the example answers."""
        if self.entry.show and isinstance(output, dict):
            try:
                return self.entry.show.format_map(output)
            except (KeyError, IndexError, TypeError):
                if not self._own:
                    raise ValueError(f"an unexpected answer: {_cut(output)}") from None
        return _cut(output)


def load(own_input: Path | None = None) -> list[Example]:
    """Every example in the order of ``demo.yaml``, then those that it does not name. Raises CliError."""
    folder = find_folder()
    try:
        content = yaml.safe_load((folder / DEMO).read_text())
        entries = {entry.function: entry for entry in map(Entry.model_validate, content)}
    except (OSError, yaml.YAMLError, ValidationError, TypeError) as exc:
        raise CliError(f"{folder / DEMO}: {exc}") from None
    projects = [Project.read(file.parent) for file in sorted(folder.glob(f"*/{MANIFEST}"))]
    by_name = {project.name: project for project in projects}
    if missing := [name for name in entries if name not in by_name]:
        raise CliError(f"{folder / DEMO} names {', '.join(missing)}, which is not there")
    chosen = _chosen(entries, own_input) if own_input is not None else None
    ordered = [*entries, *(name for name in by_name if name not in entries)]
    return [_example(folder, by_name[n], entries.get(n) or Entry(function=n), own_input, chosen) for n in ordered]


def find_folder() -> Path:
    """The repository's ``examples``; they are not part of the installed package."""
    folder = Path(nova.__file__).resolve().parents[2] / "examples"
    if not (folder / DEMO).is_file():
        raise CliError(
            "the examples are not installed with the package: run the demo from a checkout of the repository"
        )
    return folder


def _chosen(entries: Mapping[str, Entry], own_input: Path) -> str:
    suffix = own_input.suffix.lower()
    for name, entry in entries.items():
        if suffix in entry.accepts and entry.replaces:
            return name
    known = ", ".join(suffix for entry in entries.values() for suffix in entry.accepts)
    raise CliError(f"no example takes {own_input.name}; they take {known}", 2)


def _example(folder: Path, project: Project, entry: Entry, own_input: Path | None, chosen: str | None) -> Example:
    own = own_input if chosen == project.name else None
    payload = {key: _value(folder, value, own if key == entry.replaces else None) for key, value in entry.input.items()}
    return Example(project, entry, payload, own=own is not None)


def _value(folder: Path, value: Any, own: Path | None) -> Any:
    """A value of ``input``, read from its file, or from the user's own in its place."""
    if not isinstance(value, dict) or "file" not in value:
        return value
    path = own or folder / value["file"]
    try:
        if value.get("base64"):
            return base64.b64encode(path.read_bytes()).decode()
        return path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise CliError(f"{path}: {exc.strerror}") from None
    except UnicodeDecodeError:
        raise CliError(f"{path} is not UTF-8 text") from None


def _cut(output: Any) -> str:
    text = output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
