"""orbit async, orbit dlq: calls that nobody waits for, and those that failed for good."""

import json
from typing import Annotated

import typer

from nova.cli import lists
from nova.cli.output import Column, moment, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

MAX_WAIT_S = 60.0
"""The longest that the server keeps one request."""

Id = Annotated[str, typer.Argument(metavar="ID", help="Of the job.")]
OneId = Annotated[str | None, typer.Argument(metavar="[ID]", help="Of the job.")]
OfFunction = Annotated[str | None, typer.Option("--function", metavar="NAME", help="Every job of this function.")]
Only = Annotated[str | None, typer.Option("--function", metavar="NAME", help="Only of this function.")]
KeyOnly = Annotated[
    str | None, typer.Option("--concurrency-key", metavar="KEY", help="Only with this concurrency key.")
]
Attempts = Annotated[int | None, typer.Option("--max-attempts", min=1, help="Executions from now on; as before.")]
Error = Annotated[str | None, typer.Option("--error", metavar="TEXT", help="Only with this in the error.")]
Since = Annotated[str | None, typer.Option("--since", metavar="AGO", help="Not older: 30s, 10m, 2h, 7d.")]

COLUMNS = (
    Column("accepted", when("created_at")),
    Column("function", "function"),
    Column("status", lambda job: status("shown")({"shown": "paused" if job["paused"] else job["status"]})),
    Column("attempt", lambda job: f"{job['attempt']}/{job['max_attempts']}", right=True),
    Column("next", when("next_run_at")),
    Column("error", lambda job: job["error"] and job["error"]["type"]),
    Column("id", "id"),
    Column("source", "source", wide=True),
    Column("caller", "caller", wide=True),
    Column("started", when("started_at"), wide=True),
    Column("finished", when("finished_at"), wide=True),
)


@command
def list_jobs(
    session: Session,
    function: Only = None,
    only: Annotated[
        str | None, typer.Option("--status", metavar="queued,running,succeeded,dlq,cancelled", help="Only these.")
    ] = None,
    since: Since = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Jobs, newest first."""
    query = {"function": function, "status": only, "since": lists.since(since)}
    page = lists.fetch(session.client, "async.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no jobs")


@command
def get(
    session: Session,
    job: Id,
    wait: Annotated[
        float,
        typer.Option("--wait", metavar="SECONDS", min=0, max=MAX_WAIT_S, help="Until it has ended, at most this."),
    ] = 0,
) -> None:
    """One job with its attempts and, once it has succeeded, its output."""
    session.out.item(session.client.call("async.get", {"id": job}, {"wait_s": wait or None}), name="id")


@command
def summary(session: Session) -> None:
    """How many jobs there are of each status, and how fast the queue moves."""
    found = session.client.call("async.summary")
    if session.out.for_people:
        found = {**found, **{name.replace("_", " per second, "): n for name, n in found.pop("rates").items()}}
    session.out.item(found)


@command
def retry(session: Session, job: Id, max_attempts: Attempts = None) -> None:
    """Queue a dead or cancelled job again."""
    _steered(session, "retry", job, "queued again", {"max_attempts": max_attempts} if max_attempts else {})


@command
def pause(session: Session, job: OneId = None, function: OfFunction = None) -> None:
    """Hold a job, or every job of a function, also those that come."""
    _job_or_function(session, "pause", job, function, "paused")


@command
def resume(session: Session, job: OneId = None, function: OfFunction = None) -> None:
    """Let a job, or the jobs of a function, go on."""
    _job_or_function(session, "resume", job, function, "resumed")


@command
def cancel(session: Session, job: Id) -> None:
    """End a job that is queued or runs."""
    _steered(session, "cancel", job, "cancelled")


@command
def cancel_all(session: Session, function: Only = None, key: KeyOnly = None, since: Since = None) -> None:
    """End jobs that are queued or run."""
    session.confirm(f"Cancel the jobs{f' of {function}' if function else ''}?")
    done = session.client.call("async.cancel_all", body=_jobs(function, key, since))
    if session.out.for_people:
        session.out.done(f"cancelled {done['cancelled']}")
    else:
        session.out.data(done)


@command
def requeue_all(
    session: Session,
    function: Only = None,
    key: KeyOnly = None,
    since: Since = None,
    ended: Annotated[
        str, typer.Option("--status", metavar="dlq,cancelled", help="Those that ended so.")
    ] = "dlq,cancelled",
    max_attempts: Attempts = None,
) -> None:
    """Queue dead and cancelled jobs again."""
    body = {**_jobs(function, key, since), "status": [part.strip() for part in ended.split(",")]}
    if max_attempts is not None:
        body["max_attempts"] = max_attempts
    done = session.client.call("async.retry_all", body=body)
    if session.out.for_people:
        session.out.done(f"queued {done['retried']} again")
    else:
        session.out.data(done)


@command
def watch(session: Session, job: Id) -> None:
    """A job's states as they change, until it has ended."""
    for event in session.client.events("async.events", {"id": job}):
        if event.event == "end":
            return
        if session.out.for_people:
            change = event.data
            error = f": {change['error']['message']}" if change["error"] else ""
            session.out.line(f"{status('status')(change)} (attempt {change['attempt']}){error}")
        else:
            session.out.line(json.dumps(event.data))


@command
def delete(session: Session, job: Id) -> None:
    """Delete a job that has ended."""
    session.confirm(f"Delete the job {job}?")
    session.client.call("async.delete", {"id": job})
    session.out.done(f"deleted the job {job}")


@command
def pause_all(
    session: Session,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Shown to whoever asks.")] = "",
) -> None:
    """Stop the queue of the whole platform; jobs that run are not touched."""
    _gate(session, paused=True, reason=reason)


@command
def resume_all(session: Session) -> None:
    """Let the queue of the whole platform go on."""
    _gate(session, paused=False, reason="")


@command
def list_dead(
    session: Session,
    function: Only = None,
    since: Since = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Dead letters, newest first."""
    query = {"function": function, "since": lists.since(since)}
    page = lists.fetch(session.client, "dlq.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no dead letters")


@command
def retry_all(
    session: Session, function: Only = None, error: Error = None, since: Since = None, max_attempts: Attempts = None
) -> None:
    """Queue dead letters again."""
    body = {**_dead(function, error, since), **({"max_attempts": max_attempts} if max_attempts else {})}
    done = session.client.call("dlq.retry_all", body=body)
    if session.out.for_people:
        session.out.done(f"queued {done['retried']} of {done['total']} again")
    else:
        session.out.data(done)


@command
def purge(session: Session, function: Only = None, error: Error = None, since: Since = None) -> None:
    """Delete dead letters."""
    session.confirm(f"Delete the dead letters{f' of {function}' if function else ''}?")
    done = session.client.call("dlq.purge", body=_dead(function, error, since))
    if session.out.for_people:
        session.out.done(f"deleted {done['purged']}")
    else:
        session.out.data(done)


def invoke_later(session: Session, name: str, payload: bytes, options: Json) -> None:
    """``orbit invoke --async``: accepted when this returns."""
    try:
        value = json.loads(payload or b"{}")
    except ValueError as exc:
        raise CliError(f"the input is not valid JSON: {exc}", 2) from None
    body = {"payload": value, **{key: given for key, given in options.items() if given is not None}}
    accepted = session.client.call("function.invoke_async", {"name": name}, body=body)
    if not session.out.for_people:
        session.out.item(accepted, name="invocation_id")
        return
    session.out.line(accepted["invocation_id"])
    session.out.note(f"{accepted['status']}; orbit async get {accepted['invocation_id']} --wait 60 shows its result")


def _steered(session: Session, verb: str, job: str, done: str, body: Json | None = None) -> None:
    found = session.client.call(f"async.{verb}", {"id": job}, body=body)
    if session.out.for_people:
        session.out.done(f"{done}: {found['function']} {job}")
    else:
        session.out.item(found, name="id")


def _job_or_function(session: Session, verb: str, job: str | None, function: str | None, done: str) -> None:
    if (job is None) == (function is None):
        raise CliError("say one of an ID and --function NAME", 2)
    if job is not None:
        _steered(session, verb, job, done)
        return
    changed = session.client.call(f"async.{verb}_function", {"name": str(function)})
    if session.out.for_people:
        session.out.done(f"{done}: {function}, {changed['changed']} jobs in the queue")
    else:
        session.out.data(changed)


def _gate(session: Session, *, paused: bool, reason: str) -> None:
    gate = session.client.call("async.set_gate", body={"paused": paused, "reason": reason})
    if session.out.for_people:
        session.out.done(f"the queue {'stands still' if paused else 'goes on'} since {moment(gate['changed_at'])}")
    else:
        session.out.data(gate)


def _dead(function: str | None, error: str | None, since: str | None) -> Json:
    given = {"function": function, "error_contains": error, "since": lists.since(since)}
    return {name: value for name, value in given.items() if value is not None}


def _jobs(function: str | None, key: str | None, since: str | None) -> Json:
    given = {"function": function, "concurrency_key": key, "since": lists.since(since)}
    return {name: value for name, value in given.items() if value is not None}


def register(app: typer.Typer) -> None:
    jobs = typer.Typer(no_args_is_help=True, help="Calls that nobody waits for.")
    for name, function in {
        "list": list_jobs,
        "get": get,
        "summary": summary,
        "retry": retry,
        "pause": pause,
        "resume": resume,
        "cancel": cancel,
        "cancel-all": cancel_all,
        "retry-all": requeue_all,
        "watch": watch,
        "delete": delete,
        "pause-all": pause_all,
        "resume-all": resume_all,
    }.items():
        jobs.command(name)(function)
    app.add_typer(jobs, name="async")
    dead = typer.Typer(no_args_is_help=True, help="Calls that nobody waits for and that failed for good.")
    for name, function in {"list": list_dead, "retry-all": retry_all, "purge": purge}.items():
        dead.command(name)(function)
    app.add_typer(dead, name="dlq")
