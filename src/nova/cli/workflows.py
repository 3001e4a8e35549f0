"""orbit workflows: graphs of functions, published in versions, run and watched."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer
from rich.text import Text

from nova.cli import definitions, lists, runs
from nova.cli.output import Column, when
from nova.cli.session import CliError, Session, command
from nova.client import ApiError, Json

MAX_WAIT_S = 60
Name = Annotated[str, typer.Argument(metavar="WORKFLOW", show_default=False)]
File = Annotated[str, typer.Option("--file", "-f", metavar="FILE", help="The definition in YAML or JSON; - is stdin.")]
Description = Annotated[str | None, typer.Option("--description", metavar="TEXT")]
Tags = Annotated[list[str] | None, typer.Option("--tag", metavar="KEY=VALUE", help="May be repeated.")]
Concurrent = Annotated[int | None, typer.Option("--max-concurrent-runs", min=0, help="0: as many as come.")]
OnLimit = Annotated[str | None, typer.Option("--on-limit", metavar="queue|reject", help="Runs above the maximum.")]
OnFailure = Annotated[
    str | None, typer.Option("--on-failure", metavar="cancel|finish", help="What runs beside a node that failed.")
]
RunTimeout = Annotated[int | None, typer.Option("--run-timeout", min=1, metavar="SECONDS", help="Of a whole run.")]

COLUMNS = (
    Column("name", "name"),
    Column("active", "active_version", right=True),
    Column("latest", "latest_version", right=True),
    Column("state", lambda w: "halted" if w["halted"] else "active" if w["active_version"] else "empty"),
    Column("runs at once", lambda w: w["max_concurrent_runs"] or None, right=True),
    Column("changed", when("updated_at")),
    Column("description", "description"),
    Column("tags", "tags", wide=True),
    Column("by", "created_by", wide=True),
)
VERSION_COLUMNS = (
    Column("version", "version", right=True),
    Column("active", lambda v: "yes" if v["active"] else None),
    Column("nodes", "nodes", right=True),
    Column("published", when("created_at")),
    Column("by", "created_by"),
)


@command
def create(
    session: Session,
    name: Name,
    description: Description = None,
    tag: Tags = None,
    max_concurrent_runs: Concurrent = None,
    on_limit: OnLimit = None,
    on_failure: OnFailure = None,
    run_timeout: RunTimeout = None,
    halted: Annotated[bool, typer.Option("--halted", help="No run begins before it is resumed.")] = False,
) -> None:
    """Make a workflow; publish gives it something to do."""
    body = _fields(description, tag, max_concurrent_runs, on_limit, on_failure, run_timeout)
    if halted:
        body["halted"] = True
    made = session.client.call("workflow.create", body={"name": name, **body})
    _told(session, made, f"created {name}")


@command
def list_workflows(
    session: Session,
    search: Annotated[str | None, typer.Option("--search", metavar="TEXT", help="In name and description.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Workflows, newest first."""
    page = lists.fetch(session.client, "workflow.list", query={"q": search}, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, empty="no workflows")


@command
def get(session: Session, name: Name) -> None:
    """One workflow."""
    session.out.item(session.client.call("workflow.get", {"name": name}))


@command
def update(
    session: Session,
    name: Name,
    description: Description = None,
    tag: Tags = None,
    max_concurrent_runs: Concurrent = None,
    on_limit: OnLimit = None,
    on_failure: OnFailure = None,
    run_timeout: RunTimeout = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="FIELD", help="Back to its default; may be repeated.")
    ] = None,
) -> None:
    """Change what is said, leave the rest."""
    body = _fields(description, tag, max_concurrent_runs, on_limit, on_failure, run_timeout)
    body |= dict.fromkeys(unset or ())
    if not body:
        raise CliError("say what to change", 2)
    _told(session, session.client.call("workflow.patch", {"name": name}, body=body), f"changed {name}")


@command
def delete(
    session: Session,
    name: Name,
    cancel_runs: Annotated[bool, typer.Option("--cancel-runs", help="Also when runs are under way.")] = False,
) -> None:
    """Delete a workflow with its versions and runs."""
    session.confirm(f"Delete the workflow {name} with its runs?")
    session.client.call("workflow.delete", {"name": name}, {"cancel_runs": cancel_runs or None})
    session.out.done(f"deleted the workflow {name}")


@command
def halt(session: Session, name: Name) -> None:
    """Begin no further run."""
    _told(session, session.client.call("workflow.patch", {"name": name}, body={"halted": True}), f"halted {name}")


@command
def resume(session: Session, name: Name) -> None:
    """Let runs begin again."""
    _told(session, session.client.call("workflow.patch", {"name": name}, body={"halted": False}), f"resumed {name}")


@command
def publish(
    session: Session,
    name: Name,
    file: File,
    activate: Annotated[bool, typer.Option("--activate/--no-activate", help="New runs begin with it.")] = True,
) -> None:
    """Publish a definition as the next version; makes the workflow when there is none."""
    definition = definitions.read_definition(file)
    path, query = {"name": name}, {"activate": activate}
    try:
        made = session.client.call("workflow.version.create", path, query, definition)
    except ApiError as exc:
        if exc.status != 404:
            raise
        session.client.call("workflow.create", body={"name": name})
        made = session.client.call("workflow.version.create", path, query, definition)
    if session.out.for_people:
        session.out.done(f"{name} version {made['version']} is {'active' if made['active'] else 'not active'}")
    else:
        session.out.item(made, name="version")


@command
def validate(session: Session, file: File) -> None:
    """Check a definition; every problem is named."""
    found = session.client.call("workflow.validate", body=definitions.read_definition(file))
    if session.out.for_people:
        calls = ", ".join(found["functions"]) or "no function"
        session.out.done(f"valid: {found['nodes']} nodes, calls {calls}")
    else:
        session.out.data(found)


@command
def versions(session: Session, name: Name, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Versions, newest first."""
    page = lists.fetch(session.client, "workflow.version.list", {"name": name}, limit=limit, everything=everything)
    session.out.items(page, VERSION_COLUMNS, name="version", empty="nothing was published yet")


@command
def activate(session: Session, name: Name, version: Annotated[int, typer.Argument(min=1)]) -> None:
    """Begin new runs with a version; those under way stay on theirs."""
    changed = session.client.call("workflow.version.activate", {"name": name, "version": version})
    _told(session, changed, f"{name} version {version} is active")


@command
def diff(
    session: Session,
    name: Name,
    a: Annotated[int, typer.Argument(min=1)],
    b: Annotated[int, typer.Argument(min=1)],
) -> None:
    """What is different in version B."""
    found = session.client.call("workflow.version.diff", {"name": name, "a": a, "b": b})
    if not session.out.for_people:
        session.out.data(found)
        return
    for line in _differences(found):
        session.out.console.print(line, soft_wrap=True)


@command
def graph(
    session: Session,
    name: Annotated[str | None, typer.Argument(metavar="[WORKFLOW]", show_default=False)] = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: the active one.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", metavar="FILE", help="Of a file instead.")] = None,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="As a Mermaid flowchart.")] = False,
) -> None:
    """Draw the graph of a workflow, or of a definition in a file."""
    if (name is None) == (file is None):
        raise CliError("name a workflow, or a file with -f", 2)
    if file is not None:
        definition, title = definitions.read_definition(file), file
    else:
        definition, title = _definition(session, str(name), version)
    try:
        drawn = definitions.mermaid(definition) if mermaid else definitions.tree(definition, title)
    except (KeyError, TypeError, AttributeError):
        raise CliError(f"{title}: this is no valid definition; orbit workflows validate says why", 2) from None
    if isinstance(drawn, str):
        session.out.line(drawn)
    else:
        session.out.console.print(drawn)


@command
def run(
    session: Session,
    name: Name,
    data: runs.Input = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: the active one.")] = None,
    run_id: Annotated[str | None, typer.Option("--run-id", metavar="NAME", help="A name; runs it once.")] = None,
    run_timeout: RunTimeout = None,
    watch: runs.Watch = False,
    wait: Annotated[
        int, typer.Option("--wait", metavar="SECONDS", min=0, max=MAX_WAIT_S, help="Until it has ended, at most this.")
    ] = 0,
) -> None:
    """Run a workflow; --watch draws what it does."""
    given = {"version": version, "run_id": run_id, "timeout_s": run_timeout}
    body = {key: value for key, value in given.items() if value is not None}
    if data is not None:
        body["input"] = definitions.value(data, "--input")
    found = session.client.call("run.create", {"name": name}, {"wait_s": wait or None}, body)
    if watch:
        found = runs.follow(session, {"name": name, "id": found["id"]})
    if watch or wait:
        runs.finish(session, found)
    elif session.out.for_people:
        session.out.done(f"run {found['id']} of {name} version {found['version']}")
        session.out.note(f"orbit runs get {found['id']} --watch")
    else:
        session.out.item(found, name="id")


def _fields(
    description: str | None,
    tags: list[str] | None,
    max_concurrent_runs: int | None,
    on_limit: str | None,
    on_failure: str | None,
    run_timeout: int | None,
) -> dict[str, Any]:
    """What was said on the command line, as members of the body."""
    given = {
        "description": description,
        "max_concurrent_runs": max_concurrent_runs,
        "on_limit": on_limit,
        "on_failure": on_failure,
        "default_timeout_s": run_timeout,
    }
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if tags:
        body["tags"] = dict(_pair(tag) for tag in tags)
    return body


def _pair(tag: str) -> tuple[str, str]:
    key, equals, value = tag.partition("=")
    if not equals or not key:
        raise CliError(f"--tag: {tag!r} is not KEY=VALUE", 2)
    return key, value


def _told(session: Session, workflow: Json, done: str) -> None:
    if session.out.for_people:
        session.out.done(done)
    else:
        session.out.item(workflow)


def _definition(session: Session, name: str, version: int | None) -> tuple[Json, str]:
    if version is None:
        version = session.client.call("workflow.get", {"name": name})["active_version"]
    if version is None:
        raise CliError(f"workflow {name!r} has no version yet", 3)
    found = session.client.call("workflow.version.get", {"name": name, "version": version})
    return found["definition"], f"{name} v{version}"


def _differences(found: Json) -> Iterator[Text]:
    signs = {"added": ("+", "green"), "removed": ("-", "red"), "changed": ("~", "yellow")}
    for node in found["nodes"]:
        sign, style = signs[node["change"]]
        before, after = node["before"] or {}, node["after"] or {}
        names = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
        about = ", ".join(names) if node["change"] == "changed" else str((after or before).get("node_type"))
        yield Text.assemble((f"{sign} {node['node_key']}", style), f"  {about}")
    for sign, style, edges in (("+", "green", found["edges_added"]), ("-", "red", found["edges_removed"])):
        for edge in edges:
            yield Text.assemble(
                (f"{sign} {edge['from']} → {edge['to']}", style), f"  {definitions.condition(edge.get('when'))}"
            )
    if found["output_changed"]:
        yield Text("~ output", style="yellow")


def register(app: typer.Typer) -> None:
    workflows = typer.Typer(no_args_is_help=True, help="Graphs of functions.")
    workflows.command("create")(create)
    workflows.command("list")(list_workflows)
    workflows.command("get")(get)
    workflows.command("update")(update)
    workflows.command("delete")(delete)
    workflows.command("halt")(halt)
    workflows.command("resume")(resume)
    workflows.command("publish")(publish)
    workflows.command("validate")(validate)
    workflows.command("versions")(versions)
    workflows.command("activate")(activate)
    workflows.command("diff")(diff)
    workflows.command("graph")(graph)
    workflows.command("run")(run)
    app.add_typer(workflows, name="workflows")
