"""Subscriptions: who gets the messages of a topic, and what became of each of them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field

from nova.api.table import Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.asyncs import MAX_ATTEMPTS, MAX_BACKOFF_MS
from nova.domain.hosts import is_webhook_url
from nova.domain.message import TOPIC
from nova.domain.names import NAME, is_qualifier

Target = Literal["function", "workflow", "webhook"]
OnDlq = Literal["continue", "block"]
Status = Literal["queued", "succeeded", "dlq", "skipped"]
MAX_REPLAY = 10_000
MAX_IDS = 500


def _qualifier(text: str) -> str:
    if not is_qualifier(text):
        raise ValueError("a version number, an alias, live or $LATEST")
    return text


def _url(text: str) -> str:
    if not is_webhook_url(text):
        raise ValueError("an http or https URL without credentials")
    return text


Name = Annotated[str, Field(pattern=NAME)]
Topic = Annotated[str, Field(pattern=TOPIC)]
Secret = Annotated[
    str, Field(pattern=r"^whsec_[A-Za-z0-9+/]{32,88}={0,2}$", description="whsec_ and 24 to 64 bytes in base64")
]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")]
HeaderValue = Annotated[str, Field(pattern=r"^[!-~]([ -~\t]*[!-~])?$", max_length=1024)]
Sequence = Annotated[int, Field(ge=0, le=2**62)]


class SubscriptionFields(Model):
    """What is delivered, how fast, and what happens when it fails.

    ``filters``: a message must fit them all; dialects of the CloudEvents Subscriptions API. ``ordered``: messages of one
    ordering key are delivered one at a time, in their order. ``on_dlq``: what a dead message does to its successors of the same
    key. A batch (functions only) has at most one message of each ordering key.
    """

    enabled: bool = True
    qualifier: Annotated[str, AfterValidator(_qualifier)] | None = None
    filters: list[dict[str, Any]] = Field([], max_length=100)
    max_attempts: int = Field(3, ge=1, le=MAX_ATTEMPTS, description="executions of one delivery")
    backoff_base_ms: int = Field(1_000, ge=1, le=MAX_BACKOFF_MS)
    backoff_max_ms: int = Field(60_000, ge=1, le=MAX_BACKOFF_MS)
    timeout_s: float | None = Field(None, ge=0.1, le=900, description="for a call; default: the function's own")
    max_inflight: int = Field(10, ge=1, le=1000, description="calls under way at once")
    rate_limit_per_sec: float = Field(0, ge=0, le=100_000, description="messages; 0: no limit")
    ordered: bool = True
    on_dlq: OnDlq = "continue"
    dead_letter_topic: Topic | None = Field(None, description="dead messages are also published there")
    batch_size: int = Field(1, ge=1, le=100, description="above 1 the function gets a list of events")
    batch_window_ms: int = Field(0, ge=0, le=60_000, description="wait so long for a batch to become full")
    webhook_method: Literal["POST", "PUT", "PATCH"] = "POST"
    webhook_headers: dict[HeaderName, HeaderValue] = Field({}, max_length=20)
    webhook_timeout_ms: int = Field(30_000, ge=100, le=300_000)


class SubscriptionCreate(SubscriptionFields):
    """``start``: what is delivered first, the next message that is published or the oldest that is kept."""

    name: Name
    type: Target
    function_name: Name | None = None
    workflow_name: Name | None = None
    webhook_url: Annotated[str, Field(max_length=2048), AfterValidator(_url)] | None = None
    consumer_group: Name | None = Field(None, description="unique in the topic; default: the name")
    webhook_signing_secret: Secret | None = Field(None, description="default: one is made")
    start: Literal["latest", "earliest"] = "latest"


class SubscriptionPatch(Model):
    """A merge patch: null means the default. A new ``webhook_signing_secret`` (null: one is made) signs at once; for a day the
    old one signs beside it."""

    name: Name | None = None
    function_name: Name | None = None
    workflow_name: Name | None = None
    webhook_url: str | None = None
    consumer_group: Name | None = None
    webhook_signing_secret: Secret | None = None
    enabled: bool | None = None
    qualifier: str | None = None
    filters: list[dict[str, Any]] | None = None
    max_attempts: int | None = None
    backoff_base_ms: int | None = None
    backoff_max_ms: int | None = None
    timeout_s: float | None = None
    max_inflight: int | None = None
    rate_limit_per_sec: float | None = None
    ordered: bool | None = None
    on_dlq: OnDlq | None = None
    dead_letter_topic: str | None = None
    batch_size: int | None = None
    batch_window_ms: int | None = None
    webhook_method: Literal["POST", "PUT", "PATCH"] | None = None
    webhook_headers: dict[str, str | None] | None = None
    webhook_timeout_ms: int | None = None


class Subscription(SubscriptionFields):
    """``webhook_signing_secret`` is shown whole when it is new, and masked later.

    ``lag``: messages that are not delivered yet, ``queued`` of them wait after an attempt, behind another, or for a replay.
    ``last_acked_sequence``: everything up to it is done. ``expired``: messages that retention removed before they were read.
    """

    id: str
    topic: str
    name: str
    type: Target
    function_name: str | None
    workflow_name: str | None
    webhook_url: str | None
    consumer_group: str
    webhook_signing_secret: str | None
    disabled_reason: str | None
    lag: int
    queued: int
    dlq: int
    expired: int
    oldest_unacked_age_s: float | None
    last_acked_sequence: int
    generation: int
    created_by: str
    created_at: datetime
    updated_at: datetime


class Attempt(Model):
    """One that failed."""

    no: int
    started_at: datetime
    request_id: str | None
    error: str | None
    duration_ms: float


class Delivery(Model):
    """One message for one subscription. ``started_at``, ``duration_ms`` and ``request_id`` are of the last attempt, which is a
    call's, or a workflow's run. ``generation`` counts replays and seeks."""

    id: str
    subscription_id: str
    topic: str
    sequence: int
    generation: int
    replay: bool
    status: Status
    attempts: int
    ordering_key: str | None
    next_run_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    duration_ms: float | None
    request_id: str | None
    error: str | None
    failed_attempts: list[Attempt]


class DeliveryQuery(PageQuery):
    status: Status | None = None


class Seek(Model):
    """Where to go on: after ``to_sequence``'s predecessor, so with that message; or by time; or at an end. Give one."""

    to_sequence: Sequence | None = None
    to_time: AwareDatetime | None = None
    to: Literal["earliest", "latest"] | None = None


class Replay(Model):
    """Deliver kept messages again: from ``from_sequence`` or ``from_time`` on up to ``to_sequence``, at most ``limit`` of
    them; or those of ``message_ids``. What does not fit the filters is left out."""

    from_sequence: Sequence | None = None
    from_time: AwareDatetime | None = None
    message_ids: list[Annotated[str, Field(max_length=64)]] | None = Field(None, min_length=1, max_length=MAX_IDS)
    to_sequence: Sequence | None = None
    limit: int = Field(1000, ge=1, le=MAX_REPLAY)


class Replayed(Model):
    """``deliveries`` were queued, of ``generation``."""

    generation: int
    deliveries: int


class Trial(Model):
    """``payload`` is the data of the event that is delivered."""

    payload: Any = None


class TrialResult(Model):
    """``output`` is what a function answered. ``fits``: would a message like it pass the filters?"""

    status: Literal["succeeded", "failed"]
    error: str | None
    output: Any
    request_id: str | None
    duration_ms: float
    fits: bool


class Retried(Model):
    retried: int


class Purged(Model):
    purged: int


_READ = "event:read"
_MANAGE = "event:manage"
_OF_TOPIC = "/topics/{name}/subscriptions"
_ITEM = "/subscriptions/{id}"
_DELIVERY = "/deliveries/{id}"

ROUTES = (
    Route(
        op="subscription.create",
        method="POST",
        path=_OF_TOPIC,
        summary="Deliver a topic's messages to a function, a workflow or a webhook",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.create",
        body=SubscriptionCreate,
        answer=Subscription,
        status=201,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.list",
        method="GET",
        path=_OF_TOPIC,
        summary="Subscriptions of a topic, newest first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PageQuery,
        answer=Page[Subscription],
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.get",
        method="GET",
        path=_ITEM,
        summary="One subscription, and how far it is",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Subscription,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.patch",
        method="PATCH",
        path=_ITEM,
        summary="Change a subscription; it acts at once",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.update",
        body=SubscriptionPatch,
        answer=Subscription,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.delete",
        method="DELETE",
        path=_ITEM,
        summary="Delete a subscription with its deliveries",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.delete",
        query=Empty,
        status=204,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.pause",
        method="POST",
        path=_ITEM + "/pause",
        summary="Begin no delivery until it is resumed; messages wait",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.pause",
        answer=Subscription,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.resume",
        method="POST",
        path=_ITEM + "/resume",
        summary="Go on where it was",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.resume",
        answer=Subscription,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.seek",
        method="POST",
        path=_ITEM + "/seek",
        summary="Go on from another place of the topic; what is delivered again is marked as a replay",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.seek",
        body=Seek,
        answer=Subscription,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.replay",
        method="POST",
        path=_ITEM + "/replay",
        summary="Deliver kept messages again, also those that had succeeded, beside the new ones",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.replay",
        body=Replay,
        answer=Replayed,
        status=202,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.test",
        method="POST",
        path=_ITEM + "/test",
        summary="Deliver one event now and say what came of it; nothing is kept",
        plane=Plane.EXECUTION,
        permission=_MANAGE,
        audit="subscription.test",
        body=Trial,
        answer=TrialResult,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.deliveries",
        method="GET",
        path=_ITEM + "/deliveries",
        summary="What became of each message, newest message first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=DeliveryQuery,
        answer=Page[Delivery],
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.dlq.retry",
        method="POST",
        path=_ITEM + "/dlq/retry-all",
        summary="Try every dead delivery again, with all its attempts",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.dlq.retry",
        answer=Retried,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="subscription.dlq.purge",
        method="DELETE",
        path=_ITEM + "/dlq",
        summary="Forget every dead delivery",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="subscription.dlq.purge",
        query=Empty,
        answer=Purged,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="topic.dlq",
        method="GET",
        path="/topics/{name}/dlq",
        summary="Dead deliveries of all subscriptions of a topic, the last first",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PageQuery,
        answer=Page[Delivery],
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="delivery.get",
        method="GET",
        path=_DELIVERY,
        summary="One delivery with its failed attempts",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Delivery,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="delivery.retry",
        method="POST",
        path=_DELIVERY + "/retry",
        summary="Try a delivery that waits or is dead at once",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="delivery.retry",
        answer=Delivery,
        resource=None,
        tag="subscriptions",
    ),
    Route(
        op="delivery.skip",
        method="POST",
        path=_DELIVERY + "/skip",
        summary="Give up a delivery that waits or is dead; its successors go on",
        plane=Plane.CONTROL,
        permission=_MANAGE,
        audit="delivery.skip",
        answer=Delivery,
        resource=None,
        tag="subscriptions",
    ),
)
