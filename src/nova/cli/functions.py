"""orbit's first noun, whose name may be left out: functions."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nova.cli import lists, templates
from nova.cli.deploying import BuildFailed, deploy
from nova.cli.output import Column, cell, status, when
from nova.cli.progress import Activity
from nova.cli.project import Project
from nova.cli.session import CliError, Session, command
from nova.cli.watching import changes
from nova.client import ApiError, Json
from nova.domain.names import is_name

Name = Annotated[str, typer.Argument(help="The function.", show_default=False)]

COLUMNS = (
    Column("name", "name"),
    Column("runtime", "runtime"),
    Column("live", "version", right=True),
    Column("newest", "head_version", right=True),
    Column("build", status("compile_status")),
    Column("memory", lambda f: f"{f['memory_mb']} MiB", right=True),
    Column("updated", when("updated_at")),
    Column("mode", "mode", wide=True),
    Column("backend", "backend", wide=True),
    Column("handler", "handler", wide=True),
    Column("code", lambda f: f["code_hash"][:19], wide=True),
    Column("description", "description", wide=True),
)


@command
def init(
    session: Session,
    runtime: Annotated[str, typer.Argument(help="The language, such as python, node or custom.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Where to; made if it is not there.")] = Path("."),
    name: Annotated[str | None, typer.Option("--name", help="The function's name; default: the folder's.")] = None,
) -> None:
    """Start a project: a handler and a function.yaml that can be deployed as they are."""
    name = name or folder.resolve().name
    if not is_name(name):
        raise CliError(f"{name!r} cannot be a function's name: letters, digits, - and _, at most 64; say --name", 2)
    files = templates.files(runtime, name)
    if files is None:
        raise CliError(f"{runtime!r} is not a runtime; there are: {', '.join(sorted(templates.languages()))}", 2)
    if there := [path for path in files if (folder / path).exists()]:
        raise CliError(f"{folder} has a {there[0]} already; nothing was written", 5)
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in files.items():
        (folder / path).write_text(text)
        if text.startswith("#!"):
            (folder / path).chmod(0o755)
    session.out.done(f"wrote {', '.join(sorted(files))} to {folder}")
    session.out.note(f'next: orbit deploy {folder} && orbit invoke {name} -d \'{{"name": "Ada"}}\'')


@command
def deploy_command(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="The project: code and, if there is one, function.yaml.")] = Path("."),
    name: Annotated[str | None, typer.Option("--name", help="Default: function.yaml's, or the folder's.")] = None,
    runtime: Annotated[str | None, typer.Option("--runtime", help="Default: function.yaml's.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Deploy again whenever a file is saved.")] = False,
) -> None:
    """Deploy a folder as one new version, and wait until it can be called.

    What function.yaml does not say is the default: the folder describes the whole function. A folder that the server has
    already makes no new version. Files that .novaignore names stay behind.
    """
    project = Project.read(folder, name=name, runtime=runtime)
    if not watch:
        _deploy(session, project)
        return
    for _ in changes(lambda: _watched(folder, name, runtime)):
        try:
            _deploy(session, Project.read(folder, name=name, runtime=runtime))
        except (CliError, ApiError) as exc:
            session.out.failure(exc)
        session.out.note(f"watching {folder}; Ctrl-C ends it")


def _watched(folder: Path, name: str | None, runtime: str | None) -> object:
    """The state of the folder; that of its manifest alone while it cannot be read."""
    try:
        return Project.read(folder, name=name, runtime=runtime).fingerprint()
    except CliError as exc:
        return str(exc)


def _deploy(session: Session, project: Project) -> None:
    started = time.monotonic()
    try:
        with Activity(session.out.error, quiet=session.out.quiet) as activity:
            done = deploy(session.client, project, activity)
    except BuildFailed as exc:
        for line in exc.log:
            session.out.error.print(line, style="dim", markup=False)
        raise
    if not session.out.for_people:
        session.out.item(done.function)
        return
    session.out.done(f"{done.said} ({time.monotonic() - started:.1f} s)")
    if url := done.function["urls"]["function"]:
        session.out.done(f"  {session.server.rstrip('/')}{url}")
    session.out.note(f"  orbit invoke {project.name} -d '{{}}'")


@command
def list_functions(
    session: Session,
    q: Annotated[str | None, typer.Option("--search", "-q", help="Part of name, description or a tag.")] = None,
    runtime: Annotated[str | None, typer.Option("--runtime")] = None,
    mode: Annotated[str | None, typer.Option("--mode", help="persistent or process.")] = None,
    tag: Annotated[str | None, typer.Option("--tag", help="A tag's name, or name=value.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Functions, newest first."""
    query = {"q": q, "runtime": runtime, "mode": mode, "tag": tag}
    page = lists.fetch(session.client, "function.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, empty="no functions; start one with: orbit init python my-function")


@command
def get(session: Session, name: Name) -> None:
    """One function: configuration, versions, addresses."""
    function = session.client.call("function.get", {"name": name})
    session.out.item(function, _details(session, function))


def _details(session: Session, function: Json) -> list[Column]:
    """Every member that says something, addresses in full."""
    base = session.server.rstrip("/")
    shown = [Column(key, _member(key)) for key in function if key not in ("urls", "tenant_id", "namespace")]
    shown.append(Column("invoke", lambda f: base + f["urls"]["invoke"]))
    shown.append(Column("url", lambda f: f["urls"]["function"] and base + f["urls"]["function"]))
    return shown


def _member(key: str) -> Any:
    if key.endswith("_at"):
        return when(key)
    return status(key) if key == "compile_status" else lambda f: cell(f[key])


@command
def delete(
    session: Session,
    name: Name,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="With the subscriptions and triggers that call it.")
    ] = False,
) -> None:
    """Delete a function with all its versions, aliases and code."""
    session.confirm(f"Delete the function {name} with all its versions?")
    session.client.call("function.delete", {"name": name}, {"cascade": "true"} if cascade else None)
    session.out.done(f"deleted {name}")


@command
def rollback(session: Session, name: Name) -> None:
    """Make the version before the live one live."""
    live = session.client.call("function.get", {"name": name})["version"]
    if live is None:
        raise CliError(f"{name} has no live version", 5)
    page = lists.fetch(session.client, "version.list", {"name": name}, everything=True)
    usable = [v["version"] for v in page["items"] if v["compile_status"] in ("success", "not_required")]
    before = max((version for version in usable if version < live), default=None)
    if before is None:
        raise CliError(f"{name} has no usable version before {live}", 5)
    function = session.client.call("version.activate", {"name": name, "version": before})
    if session.out.for_people:
        session.out.done(f"{name}: version {before} is live, {live} is not")
    else:
        session.out.item(function)


@command
def url(session: Session, name: Name) -> None:
    """The function's URL."""
    address = session.client.call("function.get", {"name": name})["urls"]["function"]
    if address is None:
        raise CliError(f"{name} has its function URL turned off", 3)
    session.out.line(session.server.rstrip("/") + address)


def register(app: typer.Typer) -> None:
    for name, function in (
        ("init", init),
        ("deploy", deploy_command),
        ("list", list_functions),
        ("get", get),
        ("delete", delete),
        ("rollback", rollback),
        ("url", url),
    ):
        app.command(name)(function)
