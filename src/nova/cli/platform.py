"""orbit's nouns for the platform itself: runtimes, builds, settings, figures, health."""

import json
import time
from typing import Annotated, Any

import typer

from nova import __version__
from nova.cli import lists
from nova.cli.functions import Name
from nova.cli.output import Column, Format, status, when
from nova.cli.preparing import prepare
from nova.cli.session import CliError, Session, command
from nova.client import ApiError, Json

BuildId = Annotated[str, typer.Argument(metavar="ID", help="The build.", show_default=False)]
Key = Annotated[str, typer.Argument(metavar="KEY", help="A dotted name, such as pool.idle_ttl.", show_default=False)]

RUNTIME_COLUMNS = (
    Column("id", "id"),
    Column("name", "name"),
    Column("version", "version"),
    Column("status", status("status")),
    Column("also as", "versions"),
    Column("handler", "default_handler"),
    Column("modes", "modes", wide=True),
    Column("libraries", "manifests", wide=True),
    Column("reason", "reason"),
)

BUILD_COLUMNS = (
    Column("id", "id"),
    Column("version", "version", right=True),
    Column("status", status("status")),
    Column("cached", "cached"),
    Column("created", when("created_at")),
    Column("finished", when("finished_at")),
    Column("error", "error"),
)

SETTING_COLUMNS = (
    Column("key", "key"),
    Column("value", lambda s: json.dumps(s["value"])),
    Column("source", "source"),
    Column("default", lambda s: json.dumps(s["default"])),
    Column("changes live", "hot", wide=True),
)

POOL_COLUMNS = (
    Column("function", lambda p: f"{p['tenant']}/{p['namespace']}/{p['function']}"),
    Column("version", "version", right=True),
    Column("idle", "idle", right=True),
    Column("busy", "busy", right=True),
    Column("booting", "booting", right=True),
    Column("running", "inflight", right=True),
    Column("waiting", "queue_depth", right=True),
)

TOTALS_COLUMNS = (
    Column("function", "function"),
    Column("calls", "total_invocations", right=True),
    Column("failed", "failed_invocations", right=True),
    Column("cold", "cold_starts", right=True),
    Column("avg ms", lambda f: f["total_latency_ms"] / max(1, f["total_invocations"]), right=True),
    Column("max ms", "max_latency_ms", right=True),
)

FIGURES_COLUMNS = (
    Column("version", "version", right=True),
    Column("calls", "calls", right=True),
    Column("failed", "failed", right=True),
    Column("cold", "cold", right=True),
    *(Column(f"{name} ms", f"{name}_ms", right=True) for name in ("avg", "p50", "p95", "p99", "max")),
)


@command
def list_runtimes(session: Session, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """The languages this server runs."""
    page = lists.fetch(session.client, "runtime.list", limit=limit, everything=everything)
    session.out.items(page, RUNTIME_COLUMNS, name="id")


@command
def get_runtime(session: Session, runtime: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """One runtime, by any id that a function may name."""
    session.out.item(session.client.call("runtime.get", {"id": runtime}), name="id")


@command
def list_builds(session: Session, name: Name, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Builds of a function, newest first."""
    page = lists.fetch(session.client, "build.list", {"name": name}, limit=limit, everything=everything)
    session.out.items(page, BUILD_COLUMNS, name="id", empty=f"{name} needed no build")


@command
def get_build(session: Session, build: BuildId) -> None:
    """One build."""
    session.out.item(session.client.call("build.get", {"id": build}), name="id")


@command
def build_logs(session: Session, build: BuildId) -> None:
    """What a build prints, to its end."""
    for event in session.client.events("build.logs", {"id": build}):
        if not session.out.for_people:
            session.out.line(json.dumps({"event": event.event, **event.data}, ensure_ascii=False))
        elif event.event == "log":
            session.out.write(event.data["text"])


@command
def cancel_build(session: Session, build: BuildId) -> None:
    """Stop a build."""
    answer = session.client.call("build.cancel", {"id": build})
    if session.out.for_people:
        session.out.done(f"cancelled {build}")
    else:
        session.out.data(answer)


@command
def rebuild(session: Session, name: Name) -> None:
    """Build the newest version of a function again."""
    answer = session.client.call("build.create", {"name": name})
    if session.out.for_people:
        session.out.done(f"build {answer['id']} is {answer['status']}")
    else:
        session.out.item(answer, name="id")


@command
def list_settings(
    session: Session,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
) -> None:
    """The server's settings, with where each comes from."""
    found = session.client.call("config.get")
    shown = {key: setting for key, setting in found.items() if not changed or setting["source"] != "default"}
    if session.out.for_people or session.out.format is Format.NAME:
        rows = [{"key": key, **setting} for key, setting in shown.items()]
        session.out.items({"items": rows}, SETTING_COLUMNS, name="key")
    else:
        session.out.data(shown)


@command
def get_setting(session: Session, key: Key) -> None:
    """One setting."""
    found = session.client.call("config.get").get(key)
    if found is None:
        raise CliError(f"{key}: no such setting", 3)
    session.out.item({"key": key, **found}, name="key")


@command
def set_setting(
    session: Session,
    key: Key,
    value: Annotated[str, typer.Argument(help="JSON, or text as it is.", show_default=False)],
) -> None:
    """Change a setting on the running server."""
    answer = session.client.call("config.set", body={key: _parsed(value)})
    if session.out.for_people:
        session.out.done(f"{key} = {value}")
    else:
        session.out.data(answer)


def _parsed(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


@command
def unset_setting(session: Session, key: Key) -> None:
    """Go back to what the server was started with."""
    session.client.call("config.unset", {"key": key})
    session.out.done(f"{key} is back to its start value")


@command
def stats(session: Session) -> None:
    """Instances, running and waiting calls."""
    figures = session.client.call("stats.get")
    if not session.out.for_people:
        session.out.data(figures)
        return
    session.out.item({name: value for name, value in figures.items() if name != "pools"})
    if figures["pools"]:
        session.out.line("")
        session.out.table(figures["pools"], POOL_COLUMNS)


@command
def metrics(
    session: Session,
    name: Annotated[str | None, typer.Argument(help="A function; without it: all since the server started.")] = None,
    period: Annotated[str | None, typer.Option("--range", metavar="AGO", help="Of a function: 30m, 1h, 7d.")] = None,
) -> None:
    """Calls, failures, cold starts, latencies."""
    if name is not None:
        _function_metrics(session, session.client.call("function.metrics", {"name": name}, {"range": period}))
        return
    if period is not None:
        raise CliError("--range goes with a function", 2)
    figures = session.client.call("metrics.get")
    if not session.out.for_people:
        session.out.data(figures)
        return
    session.out.item({key: value for key, value in figures.items() if key != "functions"})
    if figures["functions"]:
        session.out.line("")
        rows = [{"function": function, **totals} for function, totals in figures["functions"].items()]
        session.out.table(rows, TOTALS_COLUMNS)


def _function_metrics(session: Session, figures: Json) -> None:
    if not session.out.for_people:
        session.out.item(figures, name="function")
        return
    session.out.line(f"{figures['function']}, the last {figures['range']}")
    session.out.table([{**figures, "version": "all"}, *figures["versions"]], FIGURES_COLUMNS)


@command
def health(session: Session) -> None:
    """Whether the server is well; exit code 1 when it is not."""
    try:
        session.out.item(session.client.call("health.get"), name="status")
    except ApiError as exc:
        if exc.status != 503:
            raise
        raise CliError(f"the server is down: {exc.detail}") from None


@command
def version(session: Session) -> None:
    """The version of orbit, and of the server if it answers."""
    started = time.monotonic()
    server = session.client.call("health.get")
    found = {
        "orbit": __version__,
        "server": session.server,
        "server_version": server.get("version"),
        "answered_in_ms": round((time.monotonic() - started) * 1000, 1),
    }
    session.out.item(found, name="orbit")


def register(app: typer.Typer) -> None:
    runtimes = typer.Typer(no_args_is_help=True, help="Languages of the server.")
    runtimes.command("list")(list_runtimes)
    runtimes.command("get")(get_runtime)
    runtimes.command("prepare")(prepare)
    app.add_typer(runtimes, name="runtimes")
    builds = typer.Typer(no_args_is_help=True, help="Builds: installing what a version depends on.")
    builds.command("list")(list_builds)
    builds.command("get")(get_build)
    builds.command("logs")(build_logs)
    builds.command("cancel")(cancel_build)
    builds.command("rebuild")(rebuild)
    app.add_typer(builds, name="builds")
    config = typer.Typer(no_args_is_help=True, help="Settings of the running server.")
    config.command("list")(list_settings)
    config.command("get")(get_setting)
    config.command("set")(set_setting)
    config.command("unset")(unset_setting)
    app.add_typer(config, name="config")
    app.command("stats")(stats)
    app.command("metrics")(metrics)
    app.command("health")(health)
    app.command("version")(version)
