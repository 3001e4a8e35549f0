"""orbit topics and orbit outbox: what is published, and what waits to be."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nova.cli import lists
from nova.cli.output import Column, cell, moment, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

Topic = Annotated[str, typer.Argument(metavar="TOPIC", show_default=False)]
Row = Annotated[str, typer.Argument(metavar="ID", show_default=False)]
Description = Annotated[str | None, typer.Option("--description")]
Retention = Annotated[int | None, typer.Option("--retention-hours", help="Messages are kept so long (168).")]
Size = Annotated[int | None, typer.Option("--max-mb", help="The newest so many MiB are kept; else only age counts.")]
Window = Annotated[
    int | None, typer.Option("--dedup-window", metavar="SECONDS", help="0: nothing is a duplicate (600).")
]
Schema = Annotated[str | None, typer.Option("--schema", metavar="JSON", help="JSON Schema of payloads; @FILE.")]
SchemaMode = Annotated[
    str | None, typer.Option("--schema-mode", help="reject: what does not fit the schema is not published; off.")
]
Key = Annotated[str | None, typer.Option("--key", help="The ordering key.")]
Dedup = Annotated[str | None, typer.Option("--dedup-id", help="The same one is published once.")]
Delay = Annotated[float | None, typer.Option("--delay", metavar="SECONDS")]
Header = Annotated[list[str] | None, typer.Option("--header", "-H", metavar="NAME=VALUE", help="May be repeated.")]
Payload = Annotated[
    str | None,
    typer.Argument(metavar="[JSON]", help="The payload; @FILE, or - for standard input.", show_default=False),
]

COLUMNS = (
    Column("name", "name"),
    Column("messages", "messages"),
    Column("bytes", "bytes"),
    Column("last", "last_sequence"),
    Column("published", when("last_published_at")),
    Column("kept", lambda topic: f"{topic['retention_hours']} h"),
    Column("description", "description", wide=True),
    Column("by", "created_by", wide=True),
)
MESSAGE_COLUMNS = (
    Column("sequence", "sequence"),
    Column("published", when("published_at")),
    Column("key", "ordering_key"),
    Column("payload", lambda message: json.dumps(message["payload"], ensure_ascii=False)),
    Column("by", "published_by", wide=True),
    Column("id", "id", wide=True),
)
ROW_COLUMNS = (
    Column("id", "id"),
    Column("status", status("status")),
    Column("not before", when("not_before")),
    Column("sequence", "sequence"),
    Column("payload", lambda row: json.dumps(row["payload"], ensure_ascii=False)),
    Column("duplicate", lambda row: "yes" if row["duplicate"] else cell(None), wide=True),
    Column("by", "created_by", wide=True),
)


def _given(**fields: object) -> Json:
    return {name: value for name, value in fields.items() if value is not None}


@command
def create(
    session: Session,
    topic: Topic,
    description: Description = None,
    retention_hours: Retention = None,
    max_mb: Size = None,
    dedup_window: Window = None,
    schema: Schema = None,
    schema_mode: SchemaMode = None,
) -> None:
    """Make a topic."""
    body = _given(
        name=topic,
        schema=None if schema is None else _json(_text(schema)),
        schema_mode=schema_mode,
        description=description,
        retention_hours=retention_hours,
        max_retained_mb=max_mb,
        dedup_window_s=dedup_window,
    )
    _shown(session, session.client.call("topic.create", body=body), "created")


@command
def list_topics(
    session: Session,
    search: Annotated[str | None, typer.Option("--search", metavar="TEXT", help="In the names.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Topics, newest first."""
    page = lists.fetch(session.client, "topic.list", query={"q": search}, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, empty="no topics")


@command
def get(session: Session, topic: Topic) -> None:
    """One topic, and what it holds."""
    session.out.item(session.client.call("topic.get", {"name": topic}))


@command
def update(
    session: Session,
    topic: Topic,
    description: Description = None,
    retention_hours: Retention = None,
    max_mb: Size = None,
    dedup_window: Window = None,
    schema: Schema = None,
    schema_mode: SchemaMode = None,
    unset: Annotated[
        list[str] | None, typer.Option("--unset", metavar="FIELD", help="Back to its default; may be repeated.")
    ] = None,
) -> None:
    """Change what is said, leave the rest."""
    body = _given(
        schema=None if schema is None else _json(_text(schema)),
        schema_mode=schema_mode,
        description=description,
        retention_hours=retention_hours,
        max_retained_mb=max_mb,
        dedup_window_s=dedup_window,
    )
    body |= dict.fromkeys(unset or ())
    if not body:
        raise CliError("say what to change", 2)
    _shown(session, session.client.call("topic.patch", {"name": topic}, body=body), "changed")


@command
def delete(
    session: Session,
    topic: Topic,
    cascade: Annotated[bool, typer.Option("--cascade", help="With its subscriptions.")] = False,
) -> None:
    """Delete a topic with its messages."""
    session.confirm(f"Delete the topic {topic} with its messages?")
    session.client.call("topic.delete", {"name": topic}, {"cascade": "true"} if cascade else None)
    session.out.done(f"deleted the topic {topic}")


@command
def publish(
    session: Session,
    topic: Topic,
    payload: Payload = None,
    key: Key = None,
    dedup_id: Dedup = None,
    delay: Delay = None,
    header: Header = None,
    lines: Annotated[bool, typer.Option("--lines", help="Each line is a payload of its own; 500 at a time.")] = False,
    hold: Annotated[bool, typer.Option("--hold", help="Keep it in the outbox until it is released.")] = False,
) -> None:
    """Publish a message, or one for each line."""
    text = _text(payload)
    about = _given(ordering_key=key, dedup_id=dedup_id, delay_s=delay, headers=_headers(header))
    if lines:
        if hold or dedup_id is not None:
            raise CliError("--lines goes with neither --hold nor --dedup-id", 2)
        _batches(session, topic, [{"payload": _json(line), **about} for line in text.splitlines() if line.strip()])
        return
    if hold:
        row = session.client.call("outbox.add", {"name": topic}, body={"payload": _json(text), "hold": True, **about})
        _row(session, row, "holds")
        return
    told = session.client.call("topic.publish", {"name": topic}, body={"payload": _json(text), **about})["message"]
    if not session.out.for_people:
        session.out.item(told, name="id")
    elif told["duplicate"]:
        session.out.done(f"message {told['sequence']} of {topic} stands for it")
    else:
        session.out.done(f"published message {told['sequence']}" if told["sequence"] else f"waits as {told['id']}")


def _batches(session: Session, topic: str, messages: Sequence[Json]) -> None:
    size = 500
    for start in range(0, len(messages), size):
        body = {"messages": list(messages[start : start + size])}
        session.client.call("topic.publish_batch", {"name": topic}, body=body)
    session.out.done(f"published {len(messages)} messages")


@command
def messages(
    session: Session,
    topic: Topic,
    start: Annotated[int | None, typer.Option("--from", metavar="SEQUENCE")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="AGO", help="Such as 10m.")] = None,
    key: Key = None,
    last: Annotated[int | None, typer.Option("--last", min=1, max=500, help="The newest so many.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Messages that are kept, oldest first."""
    if last is not None:
        if start is not None or since is not None:
            raise CliError("--last goes with neither --from nor --since", 2)
        start = max(0, session.client.call("topic.get", {"name": topic})["last_sequence"] - last + 1)
        limit = limit or last
    query = {"from_sequence": start, "from_time": lists.since(since), "ordering_key": key}
    page = lists.fetch(session.client, "topic.messages", {"name": topic}, query, limit=limit, everything=everything)
    session.out.items(page, MESSAGE_COLUMNS, name="sequence", empty="no messages")


@command
def tail(
    session: Session,
    topic: Topic,
    start: Annotated[
        int | None, typer.Option("--from", metavar="SEQUENCE", help="Begin there; else with what comes.")
    ] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="End after so many.")] = None,
) -> None:
    """Messages as they are published, until Ctrl-C."""
    seen = 0
    for event in session.client.events("topic.stream", {"name": topic}, {"from_sequence": start}):
        if event.event != "message":
            session.out.note(f"{event.event}: {json.dumps(event.data)}")
            continue
        _line(session, event.data)
        seen += 1
        if seen == count:
            return


def _line(session: Session, message: Json) -> None:
    if not session.out.for_people:
        session.out.line(json.dumps(message, ensure_ascii=False))
        return
    key = f" [{message['ordering_key']}]" if message["ordering_key"] else ""
    text = json.dumps(message["payload"], ensure_ascii=False)
    session.out.line(f"{message['sequence']} {moment(message['published_at'])}{key} {text}")


@command
def outbox(
    session: Session,
    topic: Topic,
    only: Annotated[str | None, typer.Option("--status", metavar="held|pending|published")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """What waits to be published to a topic, and what was, newest first."""
    page = lists.fetch(
        session.client, "outbox.list", {"name": topic}, {"status": only}, limit=limit, everything=everything
    )
    session.out.items(page, ROW_COLUMNS, name="id", empty="nothing waits")


@command
def get_row(session: Session, row: Row) -> None:
    """One row of the outbox."""
    session.out.item(session.client.call("outbox.get", {"id": row}), name="id")


@command
def release(session: Session, row: Row) -> None:
    """Let a held message go."""
    _row(session, session.client.call("outbox.release", {"id": row}), "released")


@command
def cancel(session: Session, row: Row) -> None:
    """Take a message back that is held or pending."""
    session.client.call("outbox.cancel", {"id": row})
    session.out.done(f"took {row} back")


def _shown(session: Session, topic: Json, done: str) -> None:
    if session.out.for_people:
        session.out.done(f"{done} {topic['name']}")
    else:
        session.out.item(topic)


def _row(session: Session, row: Json, done: str) -> None:
    if session.out.for_people:
        session.out.done(f"{done} {row['id']}")
    else:
        session.out.item(row, name="id")


def _text(payload: str | None) -> str:
    if payload is None or payload == "-":
        return sys.stdin.read()
    if payload.startswith("@"):
        try:
            return Path(payload[1:]).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise CliError(f"{payload[1:]}: {error}", 2) from None
    return payload


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise CliError(f"the payload is not JSON: {error}", 2) from None


def _headers(given: Sequence[str] | None) -> Json | None:
    if not given:
        return None
    pairs = [header.partition("=") for header in given]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise CliError(f"--header: NAME=VALUE, not {wrong[0]!r}", 2)
    return {name: value for name, _, value in pairs}


def register(app: typer.Typer) -> None:
    topics = typer.Typer(no_args_is_help=True, help="Topics of the event bus, and their messages.")
    topics.command("create")(create)
    topics.command("list")(list_topics)
    topics.command("get")(get)
    topics.command("update")(update)
    topics.command("delete")(delete)
    topics.command("publish")(publish)
    topics.command("messages")(messages)
    topics.command("tail")(tail)
    topics.command("outbox")(outbox)
    app.add_typer(topics, name="topics")
    rows = typer.Typer(no_args_is_help=True, help="Messages that wait to be published.")
    rows.command("get")(get_row)
    rows.command("release")(release)
    rows.command("cancel")(cancel)
    app.add_typer(rows, name="outbox")
