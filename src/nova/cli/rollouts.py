"""orbit rollout, orbit shadow and orbit replay: how a new version does before it has all the calls."""

import json
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from nova.cli.functions import Name
from nova.cli.output import Column, cell, moment, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

_LOOK_EVERY_S = 1.0
_BAR_WIDTH = 40
_UNDER_WAY = ("running", "paused")
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it live until it has ended.")]
Version = Annotated[int | None, typer.Option("--version", min=1, help="The version that runs it.")]
Sticky = Annotated[
    str | None,
    typer.Option(
        "--sticky", metavar="BY[:NAME]", help="header:X-User, cookie:sid, query:u, payload:/id, ip, identity."
    ),
]

ARM_COLUMNS = (
    Column("", "arm"),
    Column("version", "version", right=True),
    Column("share", lambda arm: f"{arm['percent']:g} %", right=True),
    Column("calls", "calls", right=True),
    Column("errors", lambda arm: f"{arm['errors']} ({arm['error_pct']:g} %)", right=True),
    Column("p95 ms", "p95_ms", right=True),
)
DECISION_COLUMNS = (
    Column("at", when("at")),
    Column("decision", "action"),
    Column("step", "step", right=True),
    Column("share", lambda entry: f"{entry['percent']:g} %", right=True),
    Column("by", "by"),
    Column("reason", "reason"),
)
SAMPLE_COLUMNS = (
    Column("at", when("at")),
    Column("call", "request_id"),
    Column("ended", status("status")),
    Column("copy", status("shadow_status")),
    Column("differs at", lambda sample: [found["path"] or "/" for found in sample["differences"]]),
)
DIFFERENCE_COLUMNS = (
    Column("path", lambda found: found["path"] or "/"),
    Column("original", lambda found: _side(found, "before")),
    Column("replay", lambda found: _side(found, "after")),
)


@command
def start(
    session: Session,
    name: Name,
    to: Annotated[int, typer.Option("--to", min=1, help="The version to roll out.")],
    alias: Annotated[str, typer.Option("--alias", help="What moves.")] = "live",
    steps: Annotated[str | None, typer.Option("--steps", metavar="PCT[:SECONDS],…", help="5:60,25:60,50:60.")] = None,
    min_samples: Annotated[int | None, typer.Option("--min-samples", min=1, help="Calls before it is judged.")] = None,
    max_errors: Annotated[float | None, typer.Option("--max-errors", metavar="PCT", help="Failed calls.")] = None,
    max_p95: Annotated[float | None, typer.Option("--max-p95", metavar="MS", help="Its p95.")] = None,
    vs_baseline: Annotated[float | None, typer.Option("--vs-baseline", metavar="PCT", help="How much worse.")] = None,
    promote: Annotated[bool, typer.Option("--promote/--no-promote", help="After the last step.")] = True,
    rollback: Annotated[bool, typer.Option("--rollback/--no-rollback", help="When it does too badly.")] = True,
    sticky: Sticky = None,
    watch: Watch = False,
) -> None:
    """Move an alias to another version step by step, and back when it does badly."""
    limits = {
        "min_samples": min_samples,
        "max_error_rate_pct": max_errors,
        "max_p95_ms": max_p95,
        "vs_baseline_pct": vs_baseline,
    }
    body: Json = {"alias": alias, "to_version": to, "auto_promote": promote, "auto_rollback": rollback}
    body["guard"] = {limit: value for limit, value in limits.items() if value is not None}
    if steps is not None:
        body["steps"] = _steps(steps)
    if sticky is not None:
        body["sticky"] = sticky_of(sticky)
    started = session.client.call("rollout.put", {"name": name}, body=body)
    if not session.out.for_people:
        session.out.data(started)
        return
    session.out.done(f"{name}: {alias} moves from version {started['from_version']} to {to}")
    if watch:
        _follow(session, name)


@command
def show(session: Session, name: Name, watch: Watch = False) -> None:
    """Where the rollout stands, how both versions do, and what was decided."""
    if watch and session.out.for_people:
        _follow(session, name)
        return
    _shown(session, session.client.call("rollout.status", {"name": name}))


@command
def pause(session: Session, name: Name) -> None:
    """Stay where it is, without judging, until resumed."""
    _ordered(session, name, "pause")


@command
def resume(session: Session, name: Name) -> None:
    """Go on with the present step from its beginning."""
    _ordered(session, name, "resume")


@command
def promote(session: Session, name: Name) -> None:
    """Send all calls to the new version now."""
    _ordered(session, name, "promote")


@command
def abort(session: Session, name: Name) -> None:
    """Send all calls back to the version of before."""
    _ordered(session, name, "abort")


def _ordered(session: Session, name: str, action: str) -> None:
    found = session.client.call(f"rollout.{action}", {"name": name})
    if session.out.for_people:
        shown = {"running": "runs", "paused": "is paused"}.get(found["status"], f"was {found['status']}")
        session.out.done(
            f"the rollout of {name} {shown}: {found['target']['percent']:g} % on version {found['target']['version']}"
        )
    else:
        session.out.data(found)


def _shown(session: Session, found: Json) -> None:
    if not session.out.for_people:
        session.out.data(found)
        return
    session.out.console.print(_picture(found))
    session.out.table(found["history"], DECISION_COLUMNS)


def _follow(session: Session, name: str) -> None:
    """The picture, again and again on a terminal; what is decided meanwhile, line by line, elsewhere."""
    found = session.client.call("rollout.status", {"name": name})
    console, told = session.out.console, 0
    with Live(_picture(found), console=console, transient=True, refresh_per_second=4) as live:
        while True:
            live.update(_picture(found))
            if not console.is_terminal:
                for entry in found["history"][told:]:
                    session.out.done(f"{entry['action']} {entry['percent']:g} % {entry['reason']}".rstrip())
                told = len(found["history"])
            if found["status"] not in _UNDER_WAY:
                break
            session.pause(_LOOK_EVERY_S)
            found = session.client.call("rollout.status", {"name": name})
    _shown(session, found)
    if found["status"] != "promoted":
        raise CliError(f"the rollout was {found['status'].replace('_', ' ')}", 1)


def _picture(found: Json) -> RenderableType:
    """Head, bar and arms of a status."""
    head = Text.assemble(
        (found["alias"], "bold"),
        f" → version {found['target']['version']}  ",
        status("status")(found),
        f"  step {found['step']} of {found['steps']}, {found['percent']:g} %",
    )
    if found["status"] == "running":
        head.append(f", {min(found['held_s'], found['hold_s']):.0f} of {found['hold_s']:g} s")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ARM_COLUMNS:
        table.add_column(column.title.upper(), justify="right" if column.right else "left")
    for arm in ("baseline", "target"):
        table.add_row(*(column.of({"arm": arm, **found[arm]}) for column in ARM_COLUMNS))
    return Group(head, ProgressBar(total=100, completed=found["percent"], width=_BAR_WIDTH), table)


def _steps(text: str) -> list[Json]:
    steps: list[Json] = []
    for part in text.split(","):
        percent, colon, hold = part.strip().partition(":")
        try:
            steps.append({"percent": float(percent), **({"hold_s": float(hold)} if colon else {})})
        except ValueError:
            raise CliError(f"--steps: {text!r} is not of the form 5:60,25:60,50", 2) from None
    return steps


def sticky_of(text: str) -> Json:
    """``header:X-User`` as the API has it."""
    by, _, name = text.partition(":")
    return {"by": by, "name": name}


@command
def set_shadow(
    session: Session,
    name: Name,
    target: Annotated[str, typer.Argument(help="A version's number, or an alias.", show_default=False)],
    percent: Annotated[float, typer.Option("--percent", help="Of all calls.")] = 100,
    compare: Annotated[str, typer.Option("--compare", metavar="none|status|output")] = "output",
    ignore: Annotated[list[str] | None, typer.Option("--ignore", metavar="POINTER", help="Not compared.")] = None,
    max_inflight: Annotated[int, typer.Option("--max-inflight", min=1, help="Copies at once, per process.")] = 10,
) -> None:
    """Copy calls to another version; the report begins anew."""
    body = {
        "target": target,
        "percent": percent,
        "compare": compare,
        "ignore": ignore or [],
        "max_inflight": max_inflight,
    }
    policy = session.client.call("shadow.put", {"name": name}, body=body)
    if session.out.for_people:
        session.out.done(f"{percent:g} % of the calls of {name} are copied to {target}")
    else:
        session.out.data(policy)


@command
def report(session: Session, name: Name) -> None:
    """What the copies have shown."""
    found = session.client.call("shadow.report", {"name": name})
    if not session.out.for_people:
        session.out.data(found)
        return
    samples = found.pop("samples")
    session.out.pairs((key, moment(value) if key == "since" else cell(value)) for key, value in found.items())
    if samples:
        session.out.table(samples, SAMPLE_COLUMNS)


@command
def off(session: Session, name: Name) -> None:
    """Copy nothing any more, and forget the report."""
    session.client.call("shadow.delete", {"name": name})
    session.out.done(f"calls of {name} are not copied any more")


@command
def replay(
    session: Session,
    invocation: Annotated[str, typer.Argument(metavar="ID", help="Of the call.", show_default=False)],
    version: Version = None,
    qualifier: Annotated[str | None, typer.Option("--qualifier", help="Or an alias, live or $LATEST.")] = None,
    queued: Annotated[bool, typer.Option("--async", help="Put it into the queue.")] = False,
) -> None:
    """Run the kept input of a call again and show what differs."""
    if version is not None and qualifier is not None:
        raise CliError("say one of --version and --qualifier", 2)
    query = {"qualifier": qualifier if version is None else str(version), "async": queued or None}
    found = session.client.call("invocation.replay", {"id": invocation}, query)
    if not session.out.for_people:
        session.out.data(found)
        return
    if queued:
        session.out.done(f"queued as {found['invocation_id']}")
        return
    ends = [{"": which, **found[which]} for which in ("original", "replay")]
    session.out.table(
        ends,
        (
            Column("", ""),
            Column("version", "version", right=True),
            Column("status", status("status")),
            Column("error", lambda end: end["error"] and f"{end['error']['type']}: {end['error']['message']}"),
            Column("ms", "duration_ms", right=True),
            Column("id", "request_id"),
        ),
    )
    if found["differences"]:
        session.out.table(found["differences"], DIFFERENCE_COLUMNS)
    elif not found["same"]:
        session.out.note("they end differently")
    else:
        session.out.note(
            "no difference" if found["compared"] == "output" else "no difference; outputs were not compared"
        )


def _side(found: Json, side: str) -> Text:
    """A value as JSON; nothing where there is nothing, unlike null."""
    return Text(json.dumps(found[side], ensure_ascii=False)) if side in found["sides"] else cell(None)


def register(app: typer.Typer) -> None:
    rollout = typer.Typer(no_args_is_help=True, help="Move to a new version step by step.")
    rollout.command("start")(start)
    rollout.command("status")(show)
    for order in (pause, resume, promote, abort):
        rollout.command(order.__name__)(order)
    app.add_typer(rollout, name="rollout")
    shadow = typer.Typer(no_args_is_help=True, help="Copies of calls for another version.")
    shadow.command("set")(set_shadow)
    shadow.command("report")(report)
    shadow.command("off")(off)
    app.add_typer(shadow, name="shadow")
    app.command("replay")(replay)
