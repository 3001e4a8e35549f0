"""orbit triggers: sources outside whose events are handed to functions, topics and workflows."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from nova.cli import lists
from nova.cli.output import Column, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

Which = Annotated[str, typer.Argument(metavar="TRIGGER", help="Its id, or its name.", show_default=False)]
NewName = Annotated[str | None, typer.Option("--name", help="Unique in the namespace.")]
Function = Annotated[str | None, typer.Option("--function", help="Hand the events to this function.")]
Topic = Annotated[str | None, typer.Option("--topic", help="Publish the events in this topic.")]
Workflow = Annotated[str | None, typer.Option("--workflow", help="Start a run of this workflow for each event.")]
Config = Annotated[
    str | None, typer.Option("--config", metavar="JSON|@FILE", help="What the type wants; see docs/triggers.md.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One member of the config; may be repeated.")
]
Qualifier = Annotated[str | None, typer.Option("--qualifier", help="A version or an alias of the function.")]
Filters = Annotated[str | None, typer.Option("--filters", metavar="JSON", help="Only events that fit all of these.")]
BatchSize = Annotated[int | None, typer.Option("--batch-size", help="Events in one call.")]
BatchWindow = Annotated[int | None, typer.Option("--batch-window", metavar="MS", help="How long a batch fills.")]
Inflight = Annotated[int | None, typer.Option("--max-inflight", help="Calls under way at once.")]
OnError = Annotated[str | None, typer.Option("--on-error", metavar="dlq|retry|drop", help="After the attempts.")]
Attempts = Annotated[int | None, typer.Option("--max-attempts", help="Executions for one event.")]

COLUMNS = (
    Column("name", "name"),
    Column("type", "type"),
    Column("target", lambda one: f"{one['target_type']} {one['target']}"),
    Column("state", status("state")),
    Column("on error", "on_error", wide=True),
    Column("attempts", "max_attempts", wide=True),
    Column("in flight", "max_inflight", wide=True),
    Column("by", "created_by", wide=True),
    Column("created", when("created_at"), wide=True),
    Column("id", "id"),
)


def _find(session: Session, which: str) -> str:
    """The id of a trigger that is named by its id or its name."""
    if which.count("-") == 4 and len(which) == 36:
        return which
    for page in session.client.pages("trigger.list"):
        for found in page["items"]:
            if found["name"] == which:
                return str(found["id"])
    raise CliError(f"there is no trigger {which!r}", 3)


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(Path(text[1:]).read_text() if text.startswith("@") else text)
    except (OSError, ValueError) as exc:
        raise CliError(f"{option}: {exc}", 2) from None


def _config(config: str | None, members: list[str] | None) -> Json | None:
    """``--set`` stands above ``--config``. A value that is JSON is that, any other is text."""
    found = {} if config is None else _json("--config", config)
    if not isinstance(found, dict):
        raise CliError("--config: an object is wanted", 2)
    for member in members or ():
        name, equals, text = member.partition("=")
        if not equals:
            raise CliError(f"--set {member}: write KEY=VALUE", 2)
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found if config is not None or members else None


def _fields(
    function: str | None, topic: str | None, workflow: str | None, size: int | None, window: int | None, **given: Any
) -> Json:
    """What was said on the command line, as members of the body."""
    body = {name: value for name, value in given.items() if value is not None}
    targets = {"function": function, "topic": topic, "workflow": workflow}
    said = [(kind, name) for kind, name in targets.items() if name is not None]
    if len(said) > 1:
        raise CliError("say one of --function, --topic and --workflow", 2)
    for kind, name in said:
        body |= {"target_type": kind, "target": name}
    batch = {name: value for name, value in (("size", size), ("window_ms", window)) if value is not None}
    return body | ({"batch": batch} if batch else {})


def _shown(session: Session, trigger: Json, done: str) -> None:
    if session.out.for_people:
        where = f": its sender posts to /hooks/{trigger['name']}" if trigger["type"] == "webhook" else ""
        session.out.done(f"{done} the trigger {trigger['name']}{where}")
    else:
        session.out.item(trigger, name="id")


@command
def create(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    type: Annotated[
        str, typer.Argument(metavar="TYPE", help="redis_stream, webhook, filesystem …", show_default=False)
    ],
    function: Function = None,
    topic: Topic = None,
    workflow: Workflow = None,
    config: Config = None,
    member: Set = None,
    qualifier: Qualifier = None,
    filters: Filters = None,
    batch_size: BatchSize = None,
    batch_window: BatchWindow = None,
    max_inflight: Inflight = None,
    on_error: OnError = None,
    max_attempts: Attempts = None,
    paused: Annotated[bool, typer.Option("--paused", help="Take nothing before it is resumed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, make nothing.")] = False,
) -> None:
    """Hand the events of a source to a function, a topic or a workflow."""
    body = _fields(
        function,
        topic,
        workflow,
        batch_size,
        batch_window,
        name=name,
        type=type,
        config=_config(config, member) or {},
        qualifier=qualifier,
        filters=None if filters is None else _json("--filters", filters),
        max_inflight=max_inflight,
        on_error=on_error,
        max_attempts=max_attempts,
        enabled=False if paused else None,
    )
    if "target" not in body:
        raise CliError("say who gets the events: --function, --topic or --workflow", 2)
    query = {"dry_run": "true"} if dry_run else None
    made = session.client.call("trigger.create", body=body, query=query)
    _shown(session, made, "checked, and did not make," if dry_run else "made")


@command
def list_triggers(
    session: Session,
    type: Annotated[str | None, typer.Option("--type", help="Only of this type.")] = None,
    target: Annotated[str | None, typer.Option("--target", help="Only with this target.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enabled/--paused", help="Only those.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Triggers, newest first."""
    query = {"type": type, "target": target, "enabled": None if enabled is None else str(enabled).lower()}
    page = lists.fetch(session.client, "trigger.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no triggers")


@command
def get(session: Session, trigger: Which) -> None:
    """One trigger, without its passwords."""
    session.out.item(session.client.call("trigger.get", {"id": _find(session, trigger)}), name="id")


@command
def update(
    session: Session,
    trigger: Which,
    name: NewName = None,
    function: Function = None,
    topic: Topic = None,
    workflow: Workflow = None,
    config: Config = None,
    member: Set = None,
    qualifier: Qualifier = None,
    filters: Filters = None,
    batch_size: BatchSize = None,
    batch_window: BatchWindow = None,
    max_inflight: Inflight = None,
    on_error: OnError = None,
    max_attempts: Attempts = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="FIELD", help="Back to its default; may be repeated.")
    ] = None,
) -> None:
    """Change what is said, leave the rest."""
    body = _fields(
        function,
        topic,
        workflow,
        batch_size,
        batch_window,
        name=name,
        config=_config(config, member),
        qualifier=qualifier,
        filters=None if filters is None else _json("--filters", filters),
        max_inflight=max_inflight,
        on_error=on_error,
        max_attempts=max_attempts,
    )
    body |= dict.fromkeys(unset or ())
    if not body:
        raise CliError("say what to change", 2)
    _shown(session, session.client.call("trigger.patch", {"id": _find(session, trigger)}, body=body), "changed")


@command
def delete(session: Session, trigger: Which) -> None:
    """Delete a trigger; what waits at its source stays there."""
    found = _find(session, trigger)
    session.confirm(f"Delete the trigger {trigger}?")
    session.client.call("trigger.delete", {"id": found})
    session.out.done(f"deleted the trigger {trigger}")


@command
def show_status(session: Session, trigger: Which) -> None:
    """State, lag, counts and the last error."""
    found = session.client.call("trigger.status", {"id": _find(session, trigger)})
    session.out.item(found, name="state")


@command
def test(session: Session, trigger: Which) -> None:
    """Connect to the source, read nothing, disconnect."""
    found = session.client.call("trigger.test", {"id": _find(session, trigger)})
    if not session.out.for_people:
        session.out.data(found)
    if not found["ok"]:
        raise CliError(f"the source cannot be reached: {found['error']}", 1)
    if session.out.for_people:
        session.out.done("the source can be reached")


@command
def pause(session: Session, trigger: Which) -> None:
    """Take nothing from the source until it is resumed."""
    _shown(session, session.client.call("trigger.pause", {"id": _find(session, trigger)}), "paused")


@command
def resume(session: Session, trigger: Which) -> None:
    """Go on where it was."""
    _shown(session, session.client.call("trigger.resume", {"id": _find(session, trigger)}), "resumed")


def register(app: typer.Typer) -> None:
    triggers = typer.Typer(no_args_is_help=True, help="Sources outside whose events call functions.")
    triggers.command("create")(create)
    triggers.command("list")(list_triggers)
    triggers.command("get")(get)
    triggers.command("update")(update)
    triggers.command("delete")(delete)
    triggers.command("status")(show_status)
    triggers.command("test")(test)
    triggers.command("pause")(pause)
    triggers.command("resume")(resume)
    app.add_typer(triggers, name="triggers")
