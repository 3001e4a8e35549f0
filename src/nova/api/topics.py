"""Topics of the event bus: what is published, and what is kept of it."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, ValidationInfo, field_validator

from nova.api.table import Empty, Kind, Model, Page, PageQuery, Plane, Route
from nova.domain.message import MAX_BATCH, MAX_DELAY_S, MAX_HEADERS, MAX_KEY, TOPIC
from nova.domain.schemas import check_schema
from nova.domain.topic import MAX_SCHEMA, SchemaMode

OutboxStatus = Literal["held", "pending", "published"]
Key = Annotated[str, Field(min_length=1, max_length=MAX_KEY)]
Headers = Annotated[
    dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")], str],
    Field(max_length=MAX_HEADERS, description="at most 16 KiB together"),
]
Sequence = Annotated[int, Field(ge=0, le=2**62)]


def _usable(schema: dict[str, Any]) -> dict[str, Any]:
    if len(json.dumps(schema, ensure_ascii=False).encode()) > MAX_SCHEMA:
        raise ValueError(f"at most {MAX_SCHEMA} bytes")
    check_schema(schema)
    return schema


class TopicFields(Model):
    """``max_retained_mb`` in MiB of payloads and headers. Whatever is past its age or beyond the size goes, read or not.

    ``schema`` is a JSON Schema (2020-12) of payloads; with ``schema_mode`` ``reject`` a message that does not fit is refused,
    and with it all that are published by the same request. What is in the topic already stays.
    """

    description: Annotated[str, Field(max_length=1024)] = ""
    retention_hours: int = Field(168, ge=1, le=8760, description="messages are kept so long")
    max_retained_mb: int | None = Field(
        None, ge=1, le=1_048_576, description="the newest so many MiB are kept; default: only age counts"
    )
    dedup_window_s: int = Field(
        600, ge=0, le=604_800, description="messages of one dedup_id within it are one message; 0: never"
    )
    payload_schema: Annotated[dict[str, Any], AfterValidator(_usable)] | None = Field(
        None, alias="schema", description="JSON Schema of payloads, at most 64 KiB"
    )
    schema_mode: SchemaMode = Field("off", description="reject: what does not fit the schema is not published")

    @field_validator("schema_mode")
    @classmethod
    def _has_what_it_checks(cls, mode: SchemaMode, given: ValidationInfo) -> SchemaMode:
        if mode == "reject" and given.data.get("payload_schema") is None:
            raise ValueError("reject needs a schema")
        return mode


class TopicCreate(TopicFields):
    name: Annotated[str, Field(pattern=TOPIC)]


class TopicPatch(Model):
    """A merge patch: null means the default."""

    description: str | None = None
    retention_hours: int | None = None
    max_retained_mb: int | None = None
    dedup_window_s: int | None = None
    payload_schema: dict[str, Any] | None = Field(None, alias="schema")
    schema_mode: SchemaMode | None = None


class Topic(TopicFields):
    """``first_sequence`` is the oldest message that is kept, ``last_sequence`` the newest that there ever was.

    ``messages`` and ``bytes`` are what is kept. ``last_published_at`` is null before the first message.
    """

    id: str
    name: str
    messages: int
    bytes: int
    first_sequence: int
    last_sequence: int
    last_published_at: datetime | None
    created_by: str
    created_at: datetime
    updated_at: datetime


class Publish(Model):
    """One message. ``payload`` is any JSON of at most 1 MiB; subscribers get it as it was sent.

    ``ordering_key``: messages that share one are delivered one at a time, in their order. ``dedup_id``: a message of the same
    one within the topic's ``dedup_window_s`` is not published again. A message with ``delay_s`` gets its place in the topic
    when the time has come, and is compared with others then.
    """

    payload: Any
    headers: Headers = {}
    ordering_key: Key | None = None
    dedup_id: Key | None = None
    delay_s: float = Field(0, ge=0, le=MAX_DELAY_S)


class PublishBatch(Model):
    messages: list[Publish] = Field(min_length=1, max_length=MAX_BATCH)


class OutboxAdd(Publish):
    """``hold``: nothing is published before the row is released. ``not_before`` is a time, ``delay_s`` a span; give one."""

    hold: bool = False
    not_before: AwareDatetime | None = None


class PublishedMessage(Model):
    """``sequence`` is the place in the topic; null while a delay runs. ``duplicate``: an earlier message stands for it."""

    id: str
    sequence: int | None
    duplicate: bool


class PublishedOne(Model):
    """201; 200 for a duplicate, 202 while a delay runs."""

    message: PublishedMessage


class PublishedBatch(Model):
    """In the order of the request."""

    messages: list[PublishedMessage]


class Message(Model):
    """``payload`` is for callers who hold ``payload:read``; null for others. ``attributes`` are those of CloudEvents that the
    publisher gave; ``size`` the bytes of payload and headers."""

    sequence: int
    id: str
    payload: Any
    headers: dict[str, str]
    ordering_key: str | None
    attributes: dict[str, str]
    size: int
    published_by: str
    published_at: datetime


class OutboxRow(Model):
    """held: waits to be released. pending: waits for ``not_before``. published: it is the message with the same id, or an
    earlier one stands for it (``duplicate``). ``payload`` is null once it is published, and for callers without
    ``payload:read``."""

    id: str
    topic: str
    status: OutboxStatus
    not_before: datetime
    payload: Any
    headers: dict[str, str]
    ordering_key: str | None
    size: int
    sequence: int | None
    duplicate: bool
    created_by: str
    created_at: datetime
    published_at: datetime | None


class TopicQuery(PageQuery):
    q: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(None, description="text in the name")


class Cascade(Model):
    cascade: bool = Field(False, description="delete its subscriptions with it")


class MessageQuery(PageQuery):
    """From the oldest message on, or from where it is said."""

    from_sequence: Sequence | None = None
    from_time: AwareDatetime | None = None
    ordering_key: Key | None = None


class StreamQuery(Model):
    """It begins with what is published next, at ``from_sequence``, or after the header ``Last-Event-ID``."""

    from_sequence: Sequence | None = None


class OutboxQuery(PageQuery):
    status: OutboxStatus | None = None


_READ = "event:read"
_PUBLISH = "event:publish"
_MANAGE = "event:manage"
_ITEM = "/topics/{name}"
_ROW = "/outbox/{id}"

ROUTES: tuple[Route, ...] = (
    Route(
        op="topic.create",
        method="POST",
        path="/topics",
        summary="Make a topic",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="topic.create",
        body=TopicCreate,
        answer=Topic,
        status=201,
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.list",
        method="GET",
        path="/topics",
        summary="Topics, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=TopicQuery,
        answer=Page[Topic],
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.get",
        method="GET",
        path=_ITEM,
        summary="One topic, and what it holds",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Topic,
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.patch",
        method="PATCH",
        path=_ITEM,
        summary="Change a topic",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="topic.update",
        body=TopicPatch,
        answer=Topic,
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.delete",
        method="DELETE",
        path=_ITEM,
        summary="Delete a topic with its messages; refused while it has subscriptions",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="topic.delete",
        query=Cascade,
        status=204,
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.publish",
        method="POST",
        path=_ITEM + "/publish",
        summary="Publish a message; JSON, or a CloudEvent in binary or structured mode",
        plane=Plane.CONTROL,
        permission=_PUBLISH,
        body=Publish,
        answer=PublishedOne,
        status=201,
        kind=Kind.UPLOAD,
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.publish_batch",
        method="POST",
        path=_ITEM + "/publish-batch",
        summary="Publish up to 500 messages, all or none; JSON, or a batch of CloudEvents",
        plane=Plane.CONTROL,
        permission=_PUBLISH,
        body=PublishBatch,
        answer=PublishedBatch,
        status=201,
        kind=Kind.UPLOAD,
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.messages",
        method="GET",
        path=_ITEM + "/messages",
        summary="Messages that are kept, oldest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=MessageQuery,
        answer=Page[Message],
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.message",
        method="GET",
        path=_ITEM + "/messages/{sequence}",
        summary="One message; 410 once it is past its topic's retention",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Message,
        resource=None,
        tag="topics",
    ),
    Route(
        op="topic.stream",
        method="GET",
        path=_ITEM + "/stream",
        summary="Messages as they are published (SSE)",
        plane=Plane.CONTROL,
        permission=_READ,
        query=StreamQuery,
        kind=Kind.SSE,
        resource=None,
        tag="topics",
    ),
    Route(
        op="outbox.add",
        method="POST",
        path=_ITEM + "/outbox",
        summary="Keep a message, to be published at a time or when it is released",
        plane=Plane.CONTROL,
        permission=_PUBLISH,
        body=OutboxAdd,
        answer=OutboxRow,
        status=202,
        kind=Kind.UPLOAD,
        resource=None,
        tag="topics",
    ),
    Route(
        op="outbox.list",
        method="GET",
        path=_ITEM + "/outbox",
        summary="What waits to be published to a topic, and what was, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=OutboxQuery,
        answer=Page[OutboxRow],
        resource=None,
        tag="topics",
    ),
    Route(
        op="outbox.get",
        method="GET",
        path=_ROW,
        summary="One row of the outbox",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=OutboxRow,
        resource=None,
        tag="topics",
    ),
    Route(
        op="outbox.release",
        method="POST",
        path=_ROW + "/release",
        summary="Let a held row go: it is published now, or at its time",
        plane=Plane.CONTROL,
        permission=_PUBLISH,
        audit="outbox.release",
        answer=OutboxRow,
        status=202,
        resource=None,
        tag="topics",
    ),
    Route(
        op="outbox.cancel",
        method="DELETE",
        path=_ROW,
        summary="Take a row back that is held or pending",
        plane=Plane.CONTROL,
        permission=_PUBLISH,
        audit="outbox.cancel",
        query=Empty,
        status=204,
        resource=None,
        tag="topics",
    ),
)
