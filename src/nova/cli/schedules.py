"""orbit schedules: functions that are called, and workflows that are run, at times of their own."""

import json
from typing import Annotated

import typer

from nova.cli import lists
from nova.cli.output import Column, cell, moment, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

Which = Annotated[str, typer.Argument(metavar="SCHEDULE", help="Its id, or TARGET/NAME.", show_default=False)]
TargetName = Annotated[str, typer.Argument(metavar="TARGET", help="A function, or a workflow.", show_default=False)]
Cron = Annotated[str, typer.Argument(metavar="CRON", help="'0 3 * * *', @daily, '@every 30s' …", show_default=False)]
NewName = Annotated[str | None, typer.Option("--name", help="Unique among the target's schedules.")]
NewCron = Annotated[str | None, typer.Option("--cron", metavar="CRON")]
Timezone = Annotated[str | None, typer.Option("--timezone", metavar="ZONE", help="Such as Europe/Berlin; UTC.")]
Input = Annotated[
    str | None,
    typer.Option("--input", metavar="JSON", help="What the target gets; default: an event that tells of it."),
]
Qualifier = Annotated[str | None, typer.Option("--qualifier", help="A version or an alias; of a workflow: a version.")]
Overlap = Annotated[str | None, typer.Option("--overlap", metavar="skip|queue|allow|cancel_previous")]
CatchUp = Annotated[str | None, typer.Option("--catch-up", metavar="none|last|all", help="After downtime.")]
Window = Annotated[int | None, typer.Option("--catch-up-window", metavar="SECONDS")]
Jitter = Annotated[int | None, typer.Option("--jitter", metavar="SECONDS", help="Fire up to so much later.")]
Start = Annotated[
    str | None, typer.Option("--start", metavar="TIME", help="Not before; with a zone: 2026-01-31T03:00Z.")
]
End = Annotated[str | None, typer.Option("--end", metavar="TIME", help="Not after.")]
Attempts = Annotated[int | None, typer.Option("--max-attempts", help="Executions of one call of a function.")]
RunTimeout = Annotated[
    int | None, typer.Option("--run-timeout", min=1, metavar="SECONDS", help="Of one run of a workflow.")
]

COLUMNS = (
    Column("target", "target"),
    Column("type", "target_type"),
    Column("name", "name"),
    Column("cron", "cron_expression"),
    Column("zone", "timezone"),
    Column("next", lambda s: moment(s["next_run_at"]) if s["enabled"] else "paused"),
    Column("last", when("last_run_at")),
    Column("status", status("last_status")),
    Column("overlap", "overlap_policy", wide=True),
    Column("catch up", "catch_up", wide=True),
    Column("by", "created_by", wide=True),
    Column("id", "id"),
)
RUN_COLUMNS = (
    Column("scheduled for", when("scheduled_for")),
    Column("fired", when("fired_at")),
    Column("status", status("status")),
    Column("outcome", status("outcome")),
    Column("catch up", lambda run: "yes" if run["catch_up"] else cell(None), wide=True),
    Column("invocation or run", lambda run: run["invocation_id"] or run["run_id"]),
    Column("reason", "reason"),
)


def _find(session: Session, which: str) -> str:
    """The id of a schedule that is named by its id, or by target and name."""
    target, slash, name = which.partition("/")
    if not slash:
        return which
    pages = session.client.pages("schedule.list", query={"target": target, "q": name or None})
    found = [item for page in pages for item in page["items"] if item["name"] == name]
    if not found:
        raise CliError(f"{target!r} is no function or workflow with a schedule {name!r}", 3)
    if len(found) > 1:
        raise CliError(f"a function and a workflow {target!r} both have a schedule {name!r}: give its id", 2)
    return str(found[0]["id"])


def _fields(**given: object) -> Json:
    """What was said on the command line, as members of the body."""
    body = {name: value for name, value in given.items() if value is not None}
    if isinstance(text := body.get("input"), str):
        try:
            body["input"] = json.loads(text)
        except ValueError as exc:
            raise CliError(f"--input: {exc}", 2) from None
    return body


def _shown(session: Session, schedule: Json, done: str) -> None:
    if session.out.for_people:
        session.out.done(f"{done} {schedule['target']}/{schedule['name']}")
        session.out.note(f"next: {moment(schedule['next_run_at'])}")
    else:
        session.out.item(schedule, name="id")


@command
def create(
    session: Session,
    target: TargetName,
    cron: Cron,
    name: NewName = None,
    timezone: Timezone = None,
    data: Input = None,
    qualifier: Qualifier = None,
    overlap: Overlap = None,
    catch_up: CatchUp = None,
    catch_up_window: Window = None,
    jitter: Jitter = None,
    start: Start = None,
    end: End = None,
    max_attempts: Attempts = None,
    run_timeout: RunTimeout = None,
    paused: Annotated[bool, typer.Option("--paused", help="Do not fire before it is resumed.")] = False,
    workflow: Annotated[bool, typer.Option("--workflow", help="TARGET is a workflow: each time begins a run.")] = False,
) -> None:
    """Call a function, or run a workflow, at times of its own."""
    body = _fields(
        cron_expression=cron,
        name=name,
        timezone=timezone,
        input=data,
        qualifier=qualifier,
        overlap_policy=overlap,
        catch_up=catch_up,
        catch_up_window_s=catch_up_window,
        jitter_s=jitter,
        start_at=start,
        end_at=end,
        max_attempts=max_attempts,
        timeout_s=run_timeout,
        enabled=False if paused else None,
    )
    kind = "workflow" if workflow else "function"
    _shown(session, session.client.call(f"{kind}.schedule.create", {"name": target}, body=body), "created")


@command
def list_schedules(
    session: Session,
    function: Annotated[str | None, typer.Option("--function", help="Only of this function.")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", help="Only of this workflow.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enabled/--paused", help="Only those.")] = None,
    search: Annotated[str | None, typer.Option("--search", metavar="TEXT", help="In the names.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Schedules, newest first."""
    if function is not None and workflow is not None:
        raise CliError("--function or --workflow, not both", 2)
    kind = "function" if function is not None else "workflow" if workflow is not None else None
    query = {
        "target": function or workflow,
        "target_type": kind,
        "enabled": None if enabled is None else str(enabled).lower(),
        "q": search,
    }
    page = lists.fetch(session.client, "schedule.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no schedules")


@command
def get(session: Session, schedule: Which) -> None:
    """One schedule."""
    session.out.item(session.client.call("schedule.get", {"id": _find(session, schedule)}), name="id")


@command
def update(
    session: Session,
    schedule: Which,
    cron: NewCron = None,
    name: NewName = None,
    timezone: Timezone = None,
    data: Input = None,
    qualifier: Qualifier = None,
    overlap: Overlap = None,
    catch_up: CatchUp = None,
    catch_up_window: Window = None,
    jitter: Jitter = None,
    start: Start = None,
    end: End = None,
    max_attempts: Attempts = None,
    run_timeout: RunTimeout = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="FIELD", help="Back to its default; may be repeated.")
    ] = None,
) -> None:
    """Change what is said, leave the rest."""
    body = _fields(
        cron_expression=cron,
        name=name,
        timezone=timezone,
        input=data,
        qualifier=qualifier,
        overlap_policy=overlap,
        catch_up=catch_up,
        catch_up_window_s=catch_up_window,
        jitter_s=jitter,
        start_at=start,
        end_at=end,
        max_attempts=max_attempts,
        timeout_s=run_timeout,
    )
    body |= dict.fromkeys(unset or ())
    if not body:
        raise CliError("say what to change", 2)
    changed = session.client.call("schedule.patch", {"id": _find(session, schedule)}, body=body)
    _shown(session, changed, "changed")


@command
def delete(session: Session, schedule: Which) -> None:
    """Delete a schedule with its history."""
    found = _find(session, schedule)
    session.confirm(f"Delete the schedule {schedule}?")
    session.client.call("schedule.delete", {"id": found})
    session.out.done(f"deleted the schedule {schedule}")


@command
def pause(session: Session, schedule: Which) -> None:
    """Fire nothing until it is resumed."""
    _shown(session, session.client.call("schedule.pause", {"id": _find(session, schedule)}), "paused")


@command
def resume(session: Session, schedule: Which) -> None:
    """Go on from now."""
    _shown(session, session.client.call("schedule.resume", {"id": _find(session, schedule)}), "resumed")


@command
def run(session: Session, schedule: Which) -> None:
    """Fire it now, paused or not."""
    made = session.client.call("schedule.run", {"id": _find(session, schedule)})
    if session.out.for_people:
        told = f"run {made['run_id']}" if made["run_id"] else f"invocation {made['invocation_id']}"
        session.out.done(f"fired: {told}")
    else:
        session.out.item(made, name="run_id" if made["run_id"] else "invocation_id")


@command
def runs(
    session: Session,
    schedule: Which,
    only: Annotated[str | None, typer.Option("--status", metavar="queued|fired|skipped|missed|failed")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """What became of each instant, newest first."""
    path = {"id": _find(session, schedule)}
    page = lists.fetch(session.client, "schedule.runs", path, {"status": only}, limit=limit, everything=everything)
    session.out.items(page, RUN_COLUMNS, name="scheduled_for", empty="nothing was due yet")


@command
def preview(
    session: Session,
    cron: Cron,
    timezone: Timezone = None,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, max=100, help="So many; 10.")] = None,
    after: Annotated[str | None, typer.Option("--after", metavar="TIME", help="Later than this; now.")] = None,
) -> None:
    """The next times of an expression, without making a schedule."""
    query = {"cron": cron, "timezone": timezone, "n": count, "after": after}
    found = session.client.call("schedule.preview", query=query)
    if not session.out.for_people:
        session.out.data(found)
    for instant in found["instants"] if session.out.for_people else ():
        session.out.line(str(moment(instant)))


def register(app: typer.Typer) -> None:
    schedules = typer.Typer(no_args_is_help=True, help="Functions called, and workflows run, at times of their own.")
    schedules.command("create")(create)
    schedules.command("list")(list_schedules)
    schedules.command("get")(get)
    schedules.command("update")(update)
    schedules.command("delete")(delete)
    schedules.command("pause")(pause)
    schedules.command("resume")(resume)
    schedules.command("run")(run)
    schedules.command("runs")(runs)
    schedules.command("preview")(preview)
    app.add_typer(schedules, name="schedules")
