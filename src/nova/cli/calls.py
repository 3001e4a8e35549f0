"""Calling functions and looking at what came of it: invoke, logs, invocations, metrics of one function."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from nova.cli import asyncs, lists, streaming
from nova.cli.functions import Name
from nova.cli.output import Column, moment, status, when
from nova.cli.session import CliError, Session, command
from nova.cli.watching import changes
from nova.client import ApiError, Call, Json, TimedOut, Unreachable

COLUMNS = (
    Column("time", when("created_at")),
    Column("function", "function"),
    Column("version", "version", right=True),
    Column("status", status("status")),
    Column("ms", "duration_ms", right=True),
    Column("start", lambda i: "cold" if i["cold_start"] else "warm"),
    Column("trigger", "trigger"),
    Column("error", lambda i: i["error"] and i["error"]["type"]),
    Column("id", "id"),
    Column("caller", "caller", wide=True),
    Column("queue ms", "queue_ms", wide=True, right=True),
    Column("boot ms", "boot_ms", wide=True, right=True),
    Column("init ms", "init_ms", wide=True, right=True),
    Column("instance", "instance_id", wide=True),
)


@command
def invoke(
    session: Session,
    name: Name,
    source: Annotated[str | None, typer.Argument(metavar="[-]", help="A dash reads the input from stdin.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", metavar="JSON", help="The input; default: {}.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", metavar="FILE", help="The input from a file.")] = None,
    qualifier: Annotated[str | None, typer.Option("--qualifier", help="A version or an alias.")] = None,
    sticky_key: Annotated[str | None, typer.Option("--sticky-key", help="Equal keys meet the same version.")] = None,
    tail: Annotated[bool, typer.Option("--tail", help="Show what the call printed.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Call again whenever the file is saved.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print pieces of the answer as they come.")] = False,
    later: Annotated[bool, typer.Option("--async", help="Do not wait: print the id of the job.")] = False,
    delay: Annotated[
        float | None, typer.Option("--delay", metavar="SECONDS", min=0, help="With --async: run no earlier.")
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option("--max-attempts", min=1, help="With --async: executions; as the function says.")
    ] = None,
    key: Annotated[
        str | None, typer.Option("--idempotency-key", metavar="KEY", help="With --async: equal keys are one job.")
    ] = None,
    priority: Annotated[str | None, typer.Option("--priority", metavar="high|normal|low", help="With --async.")] = None,
    in_turn: Annotated[
        str | None,
        typer.Option("--concurrency-key", metavar="KEY", help="With --async: jobs that share it take turns."),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option("--concurrency-limit", min=1, help="With --concurrency-key: run at once; 1.")
    ] = None,
    debounce: Annotated[
        str | None,
        typer.Option("--debounce-key", metavar="KEY", help="With --async: replace a job that waits with it."),
    ] = None,
    debounce_s: Annotated[
        float | None, typer.Option("--debounce", metavar="SECONDS", help="With --debounce-key: wait for another; 1.")
    ] = None,
    callback: Annotated[
        str | None, typer.Option("--callback", metavar="URL", help="With --async: is told how the job ended.")
    ] = None,
) -> None:
    """Call a function and print its result. Exit code 6: the function itself failed."""
    if source not in (None, "-"):
        raise CliError(f"{source!r}: the input comes by -d, by -f or, with -, from stdin", 2)
    if sum(given is not None for given in (source, data, file)) > 1:
        raise CliError("say one of -d, -f and -", 2)
    read = _input(data, "-" if source else file)
    wishes = {
        "delay_s": delay,
        "max_attempts": max_attempts,
        "idempotency_key": key,
        "priority": priority,
        "concurrency_key": in_turn,
        "concurrency_limit": at_once,
        "debounce_key": debounce,
        "debounce_s": debounce_s,
        "callback_url": callback,
    }
    if later:
        if watch or tail or stream or sticky_key is not None:
            raise CliError("--async does not go with --watch, --tail, --stream and --sticky-key", 2)
        asyncs.invoke_later(session, name, read(), {"qualifier": qualifier, **wishes})
        return
    if any(wish is not None for wish in wishes.values()):
        raise CliError(
            f"{', '.join(_wish(field) for field, wish in wishes.items() if wish is not None)}: needs --async", 2
        )

    if stream:
        if watch:
            raise CliError("--stream does not go with --watch", 2)
        events = session.client.stream(
            name,
            read(),
            qualifier=qualifier,
            timeout_s=session.options.timeout,
            sticky_key=sticky_key,
            logs=tail,
        )
        streaming.show(session, events)
        return

    def call() -> Call:
        return session.client.invoke(
            name,
            read(),
            qualifier=qualifier,
            timeout_s=session.options.timeout,
            sticky_key=sticky_key,
            tail=tail,
        )

    if not watch:
        _show(session, call())
        return
    if file in (None, "-"):
        raise CliError("--watch needs a file to watch: -f FILE", 2)
    path = Path(str(file))
    for _ in changes(lambda: path.stat().st_mtime_ns if path.exists() else None):
        try:
            _show(session, call())
        except (ApiError, CliError, Unreachable) as exc:
            session.out.failure(exc)
        session.out.note(f"watching {path}; Ctrl-C ends it")


def _input(data: str | None, file: str | None) -> Callable[[], bytes]:
    """How to get the payload, again for each call when it is in a file."""
    if data is not None:
        return lambda: data.encode()
    if file is None:
        return lambda: b"{}"
    if file == "-":
        content = sys.stdin.buffer.read()
        return lambda: content

    def read() -> bytes:
        try:
            return Path(file).read_bytes()
        except OSError as exc:
            raise CliError(f"{file}: {exc.strerror}", 2) from None

    return read


def _show(session: Session, call: Call) -> None:
    out = session.out
    if call.logs:
        out.error.print(Text(call.logs.rstrip("\n"), style="dim"))
    if not out.for_people:
        out.data(json.loads(call.raw))
    elif call.error is None:
        out.line(json.dumps(call.output, indent=2, ensure_ascii=False))
    start = "cold" if call.cold_start else "warm"
    out.note(f"version {call.version}, {start}, {call.duration_ms:.2f} ms, request {call.request_id}")
    if call.error is not None:
        raise streaming.failed(call.error)


def _wish(field: str) -> str:
    """The flag of a field of ``invoke-async``."""
    return "--" + field.removesuffix("_s").removesuffix("_url").replace("_", "-")


@command
def logs(
    session: Session,
    name: Name,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=1, max=500, help="This many calls.")] = 10,
    search: Annotated[str | None, typer.Option("--search", "-q", help="Only with this text.")] = None,
    request_id: Annotated[str | None, typer.Option("--request-id", help="Only this call.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="AGO", help="Not older: 30s, 10m, 2h, 7d.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only calls that failed.")] = False,
) -> None:
    """What a function's calls printed, oldest first."""
    if follow:
        if failed:
            raise CliError("--failed does not go with --follow", 2)
        _follow(session, name, {"q": search, "request_id": request_id, "since": lists.since(since)})
        return
    query = {
        "tail": tail,
        "q": search,
        "request_id": request_id,
        "since": lists.since(since),
        "status": "error" if failed else None,
    }
    page = session.client.call("function.logs", {"name": name}, query)
    if not session.out.for_people:
        session.out.items(page, COLUMNS, name="id")
        return
    if not page["items"]:
        session.out.note("no calls")
    for item in reversed(page["items"]):
        _print_call(session, item)


def _print_call(session: Session, item: Json) -> None:
    out = session.out
    for stream in ("stdout", "stderr"):
        text = item[stream].removesuffix("\n")
        if text:
            out.console.print(Text(text, style="" if stream == "stdout" else "yellow"))
    out.console.print(_outcome(item, item["created_at"], item["id"]))


def _outcome(item: Json, time: str, request_id: str) -> Text:
    """The line under a call's output."""
    colour = "green" if item["status"] == "success" else "red"
    line = Text.assemble(
        (f"{moment(time)} ", "dim"),
        (item["status"], colour),
        (f" version {item['version']}, {'cold' if item['cold_start'] else 'warm'}, ", "dim"),
        (f"{item['duration_ms']:.2f} ms, {request_id}", "dim"),
    )
    if item["error"]:
        line.append(f"\n{item['error']['type']}: {item['error']['message']}", "red")
    return line


def _follow(session: Session, name: str, query: dict[str, str | None]) -> None:
    """The live tail, taken up where it broke off; ends with Ctrl-C."""
    last: str | None = None
    failures = 0
    while True:
        try:
            for event in session.client.events("function.logs.stream", {"name": name}, query, last):
                last, failures = event.id or last, 0
                _print_event(session, event.event, event.data)
            return
        except Unreachable as exc:
            failures += 1
            if (last is None and failures == 1 and not isinstance(exc, TimedOut)) or failures > _RECONNECTS:
                raise
            session.out.note(f"{exc}; trying again")
            session.pause(_RECONNECT_AFTER_S)


_RECONNECTS = 10
_RECONNECT_AFTER_S = 1.0


def _print_event(session: Session, kind: str, data: Json) -> None:
    out = session.out
    if not out.for_people:
        out.line(json.dumps({"event": kind, **data}, ensure_ascii=False))
    elif kind == "line":
        out.console.print(Text(data["text"], style="" if data["stream"] == "stdout" else "yellow"))
    elif kind == "call":
        out.console.print(_outcome(data, data["time"], data["request_id"]))


@command
def list_invocations(
    session: Session,
    function: Annotated[str | None, typer.Option("--function", help="Only of this function.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Only calls that failed.")] = False,
    cold: Annotated[bool, typer.Option("--cold", help="Only cold starts.")] = False,
    since: Annotated[str | None, typer.Option("--since", metavar="AGO", help="Not older: 30s, 10m, 2h, 7d.")] = None,
    slower: Annotated[float | None, typer.Option("--slower", metavar="MS", min=0, help="Took at least this.")] = None,
    search: Annotated[str | None, typer.Option("--search", "-q", help="Printed this text.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Finished calls of every function, newest first."""
    query = {
        "function": function,
        "status": "error" if failed else None,
        "cold_start": True if cold else None,
        "since": lists.since(since),
        "min_duration_ms": slower,
        "q": search,
    }
    page = lists.fetch(session.client, "invocation.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no calls")


@command
def get_invocation(
    session: Session, request_id: Annotated[str, typer.Argument(metavar="ID", help="The request id.")]
) -> None:
    """One finished call with what it printed and, where they were kept, input and output."""
    session.out.item(session.client.call("invocation.get", {"id": request_id}), name="id")


def register(app: typer.Typer) -> None:
    app.command("invoke")(invoke)
    app.command("logs")(logs)
    noun = typer.Typer(no_args_is_help=True, help="Finished calls.")
    noun.command("list")(list_invocations)
    noun.command("get")(get_invocation)
    app.add_typer(noun, name="invocations")
