"""orbit subscriptions and orbit deliveries: who gets the messages of a topic, and what became of them."""

import json
from typing import Annotated, Any

import typer

from nova.cli import lists
from nova.cli.output import Column, cell, status, when
from nova.cli.session import CliError, Session, command
from nova.cli.topics import Topic
from nova.client import Json

Which = Annotated[str, typer.Argument(metavar="SUBSCRIPTION", help="Its id, or TOPIC/NAME.", show_default=False)]
Delivery = Annotated[str, typer.Argument(metavar="DELIVERY", show_default=False)]
Function = Annotated[str | None, typer.Option("--function", help="Call this function with each message.")]
Workflow = Annotated[str | None, typer.Option("--workflow", help="Start this workflow with each message.")]
Webhook = Annotated[str | None, typer.Option("--webhook", metavar="URL", help="Send each message there.")]
Filter = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="JSON", help="""'{"prefix":{"type":"order."}}'; all of several must fit."""),
]
Field = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Any other field, such as max_inflight=50; may be repeated."),
]
_SETTABLE = (
    "qualifier",
    "consumer_group",
    "max_attempts",
    "backoff_base_ms",
    "backoff_max_ms",
    "timeout_s",
    "max_inflight",
    "rate_limit_per_sec",
    "ordered",
    "on_dlq",
    "dead_letter_topic",
    "batch_size",
    "batch_window_ms",
    "webhook_method",
    "webhook_headers",
    "webhook_signing_secret",
    "webhook_timeout_ms",
    "enabled",
    "name",
)
_TEXTS = frozenset({"name", "qualifier", "consumer_group", "on_dlq", "dead_letter_topic", "webhook_method"})

COLUMNS = (
    Column("name", "name"),
    Column("type", "type"),
    Column("target", lambda s: s["function_name"] or s["workflow_name"] or s["webhook_url"]),
    Column("state", lambda s: "on" if s["enabled"] else (s["disabled_reason"] or "paused")),
    Column("lag", "lag"),
    Column("waiting", "queued"),
    Column("dlq", "dlq"),
    Column("acked", "last_acked_sequence", wide=True),
    Column("by", "created_by", wide=True),
    Column("id", "id"),
)
DELIVERY_COLUMNS = (
    Column("sequence", "sequence"),
    Column("status", status("status")),
    Column("attempts", "attempts"),
    Column("key", "ordering_key"),
    Column("started", when("started_at")),
    Column("next", when("next_run_at")),
    Column("replay", lambda row: "yes" if row["replay"] else cell(None), wide=True),
    Column("error", "error"),
    Column("id", "id"),
)


def _find(session: Session, which: str) -> str:
    """The id of a subscription that is named by its id, or by topic and name."""
    topic, slash, name = which.partition("/")
    if not slash:
        return which
    for page in session.client.pages("subscription.list", {"name": topic}):
        for found in page["items"]:
            if found["name"] == name:
                return str(found["id"])
    raise CliError(f"topic {topic!r} has no subscription {name!r}", 3)


def _fields(filters: list[str] | None, given: list[str] | None) -> Json:
    body: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or name not in _SETTABLE:
            raise CliError(f"--set: FIELD=VALUE with one of {', '.join(sorted(_SETTABLE))}", 2)
        body[name] = _value(name, value)
    if filters is not None:
        body["filters"] = [_json(text) for text in filters]
    return body


def _value(name: str, text: str) -> Any:
    """null and what is no text are read as JSON."""
    if text == "null":
        return None
    return text if name in _TEXTS or name == "webhook_signing_secret" else _json(text)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise CliError(f"{text!r} is not JSON: {exc}", 2) from None


def _shown(session: Session, made: Json, done: str) -> None:
    if not session.out.for_people:
        session.out.item(made, name="id")
        return
    session.out.done(f"{done} {made['topic']}/{made['name']}")
    secret = made["webhook_signing_secret"]
    if secret and "…" not in secret:
        session.out.note(f"signed with {secret}, which is shown this once")


@command
def create(
    session: Session,
    topic: Topic,
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    function: Function = None,
    workflow: Workflow = None,
    webhook: Webhook = None,
    earliest: Annotated[bool, typer.Option("--earliest", help="Begin with the oldest message that is kept.")] = False,
    filters: Filter = None,
    given: Field = None,
) -> None:
    """Deliver a topic's messages to a function, a workflow or a webhook."""
    targets = {"function": function, "workflow": workflow, "webhook": webhook}
    named = [(kind, target) for kind, target in targets.items() if target is not None]
    if len(named) != 1:
        raise CliError("give one of --function, --workflow and --webhook", 2)
    ((kind, target),) = named
    field = "webhook_url" if kind == "webhook" else f"{kind}_name"
    body = {"name": name, "type": kind, field: target, "start": "earliest" if earliest else "latest"}
    made = session.client.call("subscription.create", {"name": topic}, body=body | _fields(filters, given))
    _shown(session, made, "created")


@command
def list_subscriptions(
    session: Session, topic: Topic, limit: lists.Limit = None, everything: lists.All = False
) -> None:
    """Subscriptions of a topic, newest first."""
    page = lists.fetch(session.client, "subscription.list", {"name": topic}, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no subscriptions")


@command
def get(session: Session, subscription: Which) -> None:
    """One subscription, and how far it is."""
    session.out.item(session.client.call("subscription.get", {"id": _find(session, subscription)}), name="id")


@command
def update(
    session: Session,
    subscription: Which,
    function: Function = None,
    workflow: Workflow = None,
    webhook: Webhook = None,
    filters: Filter = None,
    given: Field = None,
) -> None:
    """Change what is said, leave the rest; --set FIELD=null is the default."""
    targets = {"function_name": function, "workflow_name": workflow, "webhook_url": webhook}
    body = _fields(filters, given) | {name: value for name, value in targets.items() if value is not None}
    if not body:
        raise CliError("say what to change", 2)
    changed = session.client.call("subscription.patch", {"id": _find(session, subscription)}, body=body)
    _shown(session, changed, "changed")


@command
def delete(session: Session, subscription: Which) -> None:
    """Delete a subscription with its deliveries."""
    found = _find(session, subscription)
    session.confirm(f"Delete the subscription {subscription}?")
    session.client.call("subscription.delete", {"id": found})
    session.out.done(f"deleted the subscription {subscription}")


@command
def pause(session: Session, subscription: Which) -> None:
    """Begin no delivery until it is resumed; messages wait."""
    _shown(session, session.client.call("subscription.pause", {"id": _find(session, subscription)}), "paused")


@command
def resume(session: Session, subscription: Which) -> None:
    """Go on where it was."""
    _shown(session, session.client.call("subscription.resume", {"id": _find(session, subscription)}), "resumed")


@command
def seek(
    session: Session,
    subscription: Which,
    to: Annotated[str, typer.Argument(metavar="earliest|latest|SEQUENCE|TIME", show_default=False)],
) -> None:
    """Go on from another place of the topic."""
    if to in ("earliest", "latest"):
        body: Json = {"to": to}
    else:
        body = {"to_sequence": int(to)} if to.isdigit() else {"to_time": to}
    moved = session.client.call("subscription.seek", {"id": _find(session, subscription)}, body=body)
    _shown(session, moved, "moved")


@command
def replay(
    session: Session,
    subscription: Which,
    first: Annotated[str | None, typer.Option("--from", metavar="SEQUENCE|TIME")] = None,
    last: Annotated[int | None, typer.Option("--to", metavar="SEQUENCE")] = None,
    message: Annotated[list[str] | None, typer.Option("--message", metavar="ID", help="May be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, max=10_000, help="At most so many (1000).")] = None,
) -> None:
    """Deliver kept messages again, also those that had succeeded."""
    start = {} if first is None else {"from_sequence": int(first)} if first.isdigit() else {"from_time": first}
    rest = {"to_sequence": last, "message_ids": message, "limit": limit}
    body = {**start, **{name: value for name, value in rest.items() if value is not None}}
    told = session.client.call("subscription.replay", {"id": _find(session, subscription)}, body=body)
    if session.out.for_people:
        session.out.done(f"{told['deliveries']} deliveries, generation {told['generation']}")
    else:
        session.out.item(told, name="generation")


@command
def try_one(
    session: Session,
    subscription: Which,
    data: Annotated[str, typer.Argument(metavar="[JSON]", help="The payload; null.")] = "null",
) -> None:
    """Deliver one event now, and say what came of it."""
    body = {"payload": _json(data)}
    told = session.client.call("subscription.test", {"id": _find(session, subscription)}, body=body)
    session.out.item(told, name="status")


@command
def list_deliveries(
    session: Session,
    subscription: Which,
    only: Annotated[str | None, typer.Option("--status", metavar="queued|succeeded|dlq|skipped")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """What became of each message, newest message first."""
    path = {"id": _find(session, subscription)}
    query = {"status": only}
    page = lists.fetch(session.client, "subscription.deliveries", path, query, limit=limit, everything=everything)
    session.out.items(page, DELIVERY_COLUMNS, name="id", empty="nothing was delivered yet")


@command
def get_delivery(session: Session, delivery: Delivery) -> None:
    """One delivery with its failed attempts."""
    session.out.item(session.client.call("delivery.get", {"id": delivery}), name="id")


@command
def retry(session: Session, delivery: Delivery) -> None:
    """Try a delivery that waits or is dead at once."""
    session.client.call("delivery.retry", {"id": delivery})
    session.out.done(f"tries {delivery} again")


@command
def skip(session: Session, delivery: Delivery) -> None:
    """Give up a delivery that waits or is dead."""
    session.client.call("delivery.skip", {"id": delivery})
    session.out.done(f"skipped {delivery}")


@command
def dead(session: Session, topic: Topic, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Dead deliveries of all subscriptions of a topic, the last first."""
    page = lists.fetch(session.client, "topic.dlq", {"name": topic}, limit=limit, everything=everything)
    session.out.items(page, DELIVERY_COLUMNS, name="id", empty="nothing is dead")


@command
def retry_all(session: Session, subscription: Which) -> None:
    """Try every dead delivery again, with all its attempts."""
    told = session.client.call("subscription.dlq.retry", {"id": _find(session, subscription)})
    session.out.done(f"tries {told['retried']} deliveries again")


@command
def purge(session: Session, subscription: Which) -> None:
    """Forget every dead delivery."""
    found = _find(session, subscription)
    session.confirm(f"Forget the dead deliveries of {subscription}?")
    told = session.client.call("subscription.dlq.purge", {"id": found})
    session.out.done(f"forgot {told['purged']} deliveries")


def register(app: typer.Typer) -> None:
    subscriptions = typer.Typer(no_args_is_help=True, help="Who gets the messages of a topic.")
    subscriptions.command("create")(create)
    subscriptions.command("list")(list_subscriptions)
    subscriptions.command("get")(get)
    subscriptions.command("update")(update)
    subscriptions.command("delete")(delete)
    subscriptions.command("pause")(pause)
    subscriptions.command("resume")(resume)
    subscriptions.command("seek")(seek)
    subscriptions.command("replay")(replay)
    subscriptions.command("test")(try_one)
    app.add_typer(subscriptions, name="subscriptions")
    deliveries = typer.Typer(no_args_is_help=True, help="What became of messages, one by one.")
    deliveries.command("list")(list_deliveries)
    deliveries.command("get")(get_delivery)
    deliveries.command("retry")(retry)
    deliveries.command("skip")(skip)
    deliveries.command("dead")(dead)
    deliveries.command("retry-all")(retry_all)
    deliveries.command("purge")(purge)
    app.add_typer(deliveries, name="deliveries")
