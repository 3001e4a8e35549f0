"""Asynchronous invocations: calls that are accepted, queued and run later, and the letters that died."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from nova.api.table import BY_HANDLER, Empty, Kind, Model, Page, PageQuery, Plane, Route
from nova.domain import asyncs
from nova.domain.asyncs import JobStatus
from nova.domain.names import NAME

Attempts = Annotated[int, Field(ge=1, le=asyncs.MAX_ATTEMPTS, strict=True)]
Text = Annotated[str, Field(min_length=1, max_length=256)]
Key = Annotated[str, Field(min_length=1, max_length=asyncs.MAX_KEY, pattern=r"^[^\x00-\x1f]+$")]


class InvokeAsync(Model):
    """A call that nobody waits for. What is not given comes from the function's ``async_policy``.

    ``delay_s`` and ``not_before`` exclude each other; ``debounce_key`` excludes both, and ``idempotency_key``. Equal
    ``idempotency_key``s within ``idempotency_ttl_s`` are one job.
    """

    payload: Any = Field(default={}, description="what the function gets, at most 1 MiB; default {}")
    qualifier: str | None = Field(None, max_length=128, description="a version number, an alias, live or $LATEST")
    max_attempts: Attempts | None = None
    backoff_base_ms: int | None = Field(None, ge=0, le=asyncs.MAX_BACKOFF_MS, strict=True)
    backoff_max_ms: int | None = Field(None, ge=0, le=asyncs.MAX_BACKOFF_MS, strict=True)
    max_age_s: int | None = Field(None, ge=1, le=asyncs.MAX_AGE_S, strict=True)
    delay_s: float | None = Field(
        None, ge=0, le=asyncs.MAX_DELAY_S, description="run no earlier than in so many seconds"
    )
    not_before: AwareDatetime | None = Field(None, description="run no earlier than at this time, within 30 days")
    idempotency_key: str | None = Field(None, min_length=1, max_length=asyncs.MAX_KEY, pattern=r"^[!-~]+$")
    idempotency_ttl_s: int | None = Field(None, ge=1, le=asyncs.MAX_KEY_TTL_S, strict=True, description="default a day")
    priority: asyncs.Priority = Field(
        "normal", description="of a tenant's jobs that are due, higher ones are taken first"
    )
    concurrency_key: Key | None = Field(None, description="jobs of the function that share it take turns")
    concurrency_limit: int | None = Field(
        None, ge=1, le=asyncs.MAX_AT_ONCE, strict=True, description="of them run at once; default 1"
    )
    debounce_key: Key | None = Field(
        None, description="a job with this key that nobody has taken yet is replaced by this one, and put off"
    )
    debounce_s: float | None = Field(None, gt=0, le=86_400, description="by so much; default 1")
    debounce_max_s: float | None = Field(
        None, gt=0, le=asyncs.MAX_DELAY_S, description="no longer after the first one than this"
    )
    callback_url: Text | None = Field(None, max_length=2048, description="is told how the job ended, signed")
    keep_s: int | None = Field(
        None,
        ge=60,
        le=asyncs.MAX_KEEP_S,
        strict=True,
        description="how long the ended job is kept; default retention.*",
    )


class AcceptedJob(Model):
    """The call is in the database. ``status`` is that of an earlier job when its idempotency key was repeated."""

    invocation_id: str
    status: JobStatus
    function: str


class JobFailure(Model):
    """The class that the function raised, or a ``Nova.*`` type that the platform found out."""

    type: str
    message: str
    stack: list[str] = []


class Attempt(Model):
    """One execution. ``duration_ms`` and ``request_id`` are null when the worker was lost under it."""

    no: int
    started_at: datetime | None
    request_id: str | None
    error: JobFailure | None
    duration_ms: float | None


class Job(Model):
    """``attempt`` counts executions since it was queued. ``next_run_at`` is null while it runs and when it has ended.

    ``source`` is what called: ``api``, ``schedule:<name>``, or ``async:<id>`` for another job's destination.
    """

    id: str
    function: str
    function_id: str
    qualifier: str | None
    status: JobStatus
    paused: bool
    attempt: int
    max_attempts: int
    backoff_base_ms: int
    backoff_max_ms: int
    max_age_s: int
    source: str
    caller: str
    trace_id: str | None
    priority: asyncs.Priority
    concurrency_key: str | None
    idempotency_key: str | None
    error: JobFailure | None
    request_id: str | None
    version: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    next_run_at: datetime | None


class JobDetail(Job):
    """``payload`` and ``output`` are for callers who hold ``payload:read``; null for others."""

    attempts: list[Attempt]
    payload: Any = None
    output: Any = None


class JobQuery(PageQuery):
    """Times are those of acceptance."""

    status: str | None = Field(None, max_length=64, description="one or several, separated by commas")
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class ScopeJobQuery(JobQuery):
    function: str | None = Field(None, pattern=NAME)


class DlqQuery(PageQuery):
    function: str | None = Field(None, pattern=NAME)
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class WaitQuery(Model):
    wait_s: float = Field(0, ge=0, le=60, description="answer when the job has ended, or after this many seconds")


class Rates(Model):
    """Jobs per second."""

    enqueued_1m: float
    enqueued_5m: float
    finished_1m: float
    finished_5m: float


class JobSummary(Model):
    """``queued`` counts what waits, ``held`` what waits because it is paused; the two do not overlap."""

    queued: int
    held: int
    running: int
    succeeded: int
    dlq: int
    cancelled: int
    oldest_queued_s: float | None = Field(description="how long the first in the queue is overdue")
    rates: Rates


class RetryJob(Model):
    max_attempts: Attempts | None = Field(None, description="default: as before")


class DeadLetters(Model):
    """Which dead letters; what is not given does not restrict. ``since`` is when they died."""

    function: str | None = Field(None, pattern=NAME)
    error_contains: Text | None = Field(None, description="text in the error's type or message")
    since: AwareDatetime | None = None


class Jobs(Model):
    """Which jobs; what is not given does not restrict. Times are those of acceptance."""

    function: str | None = Field(None, pattern=NAME)
    concurrency_key: Key | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None


class CancelJobs(Jobs):
    """Of those that are queued or run."""


class RetryJobs(Jobs):
    """``status``: of those that ended so."""

    status: list[Literal["dlq", "cancelled"]] = Field(["dlq", "cancelled"], min_length=1, max_length=2)
    max_attempts: Attempts | None = Field(None, description="default: as before")


class Cancelled(Model):
    cancelled: int


class Requeued(Model):
    retried: int


class JobChange(Model):
    """``end`` follows the last one."""

    status: JobStatus
    paused: bool
    attempt: int
    error: JobFailure | None
    next_run_at: datetime | None


class RetryDeadLetters(DeadLetters):
    max_attempts: Attempts | None = Field(None, description="default: as before")


class Retried(Model):
    """``total`` is how many matched when the request came."""

    retried: int
    total: int


class Purged(Model):
    purged: int


class Changed(Model):
    """How many queued jobs it concerned."""

    changed: int


class GlobalPause(Model):
    """``reason`` is shown to whoever asks why nothing runs."""

    paused: bool = Field(strict=True)
    reason: str = Field("", max_length=512)


class GlobalPauseView(GlobalPause):
    changed_by: str
    changed_at: datetime


class WebhookSecret(Model):
    """What webhooks of the function are signed with, as receivers of Standard Webhooks take it."""

    function: str
    secret: str = Field(description="whsec_…")
    created_at: datetime


_PATH = "/async-invocations"


def _steer(verb: Literal["retry", "pause", "resume", "cancel"], summary: str, body: type[Model] | None = None) -> Route:
    return Route(
        op=f"async.{verb}",
        method="POST",
        path=f"{_PATH}/{{id}}/{verb}",
        summary=summary,
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit=f"async.{verb}",
        body=body,
        answer=Job,
        resource=BY_HANDLER,
        tag="async",
    )


ROUTES = (
    Route(
        op="function.invoke_async",
        method="POST",
        path="/functions/{name}/invoke-async",
        summary="Call a function later: accepted when the answer comes, run with retries",
        plane=Plane.EXECUTION,
        permission="function:invoke",
        body=InvokeAsync,
        answer=AcceptedJob,
        status=202,
        idempotent=True,
        tag="async",
    ),
    Route(
        op="function.async",
        method="GET",
        path="/functions/{name}/async-invocations",
        summary="Jobs of a function, newest first",
        plane=Plane.EXECUTION,
        permission="async:read",
        query=JobQuery,
        answer=Page[Job],
        tag="async",
    ),
    Route(
        op="function.webhook_secret",
        method="GET",
        path="/functions/{name}/webhook-secret",
        summary="What webhooks of the function's jobs are signed with; made when first asked for",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="function.webhook_secret",
        answer=WebhookSecret,
        tag="async",
    ),
    Route(
        op="async.list",
        method="GET",
        path=_PATH,
        summary="Jobs of every function in the scope, newest first",
        plane=Plane.EXECUTION,
        permission="async:read",
        query=ScopeJobQuery,
        answer=Page[Job],
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="async.summary",
        method="GET",
        path=f"{_PATH}/summary",
        summary="How many jobs there are of each status, how old the queue is, how fast it moves",
        plane=Plane.EXECUTION,
        permission="async:read",
        query=Empty,
        answer=JobSummary,
        resource=None,
        tag="async",
    ),
    Route(
        op="async.gate",
        method="GET",
        path=f"{_PATH}/global-pause",
        summary="Does the queue stand still?",
        plane=Plane.EXECUTION,
        permission="async:read",
        answer=GlobalPauseView,
        resource=None,
        tag="async",
    ),
    Route(
        op="async.set_gate",
        method="PUT",
        path=f"{_PATH}/global-pause",
        summary="Stop the whole platform's queue, or let it go on; jobs that run are not touched",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="async.set_gate",
        body=GlobalPause,
        answer=GlobalPauseView,
        resource=None,
        platform=True,
        scoped=False,
        tag="async",
    ),
    Route(
        op="async.cancel_all",
        method="POST",
        path=f"{_PATH}/cancel-all",
        summary="End jobs that are queued or run",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="async.cancel_all",
        body=CancelJobs,
        answer=Cancelled,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="async.retry_all",
        method="POST",
        path=f"{_PATH}/retry-all",
        summary="Queue dead and cancelled jobs again",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="async.retry_all",
        body=RetryJobs,
        answer=Requeued,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="async.events",
        method="GET",
        path=f"{_PATH}/{{id}}/events",
        summary="A job's states as they change, until it has ended",
        plane=Plane.EXECUTION,
        permission="async:read",
        answer=JobChange,
        kind=Kind.SSE,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="dlq.list",
        method="GET",
        path=f"{_PATH}/dlq",
        summary="Dead letters, newest first",
        plane=Plane.EXECUTION,
        permission="async:read",
        query=DlqQuery,
        answer=Page[Job],
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="dlq.retry_all",
        method="POST",
        path=f"{_PATH}/dlq/retry-all",
        summary="Queue dead letters again",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="dlq.retry_all",
        body=RetryDeadLetters,
        answer=Retried,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="dlq.purge",
        method="POST",
        path=f"{_PATH}/dlq/purge",
        summary="Delete dead letters",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="dlq.purge",
        body=DeadLetters,
        answer=Purged,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="async.pause_function",
        method="POST",
        path=f"{_PATH}/functions/{{name}}/pause",
        summary="Hold every job of a function, also those that come",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="async.pause_function",
        answer=Changed,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="async.resume_function",
        method="POST",
        path=f"{_PATH}/functions/{{name}}/resume",
        summary="Let a function's jobs go on",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="async.resume_function",
        answer=Changed,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="async.get",
        method="GET",
        path=f"{_PATH}/{{id}}",
        summary="One job with its attempts and, when it has succeeded, its output",
        plane=Plane.EXECUTION,
        permission="async:read",
        query=WaitQuery,
        answer=JobDetail,
        resource=BY_HANDLER,
        tag="async",
    ),
    Route(
        op="async.delete",
        method="DELETE",
        path=f"{_PATH}/{{id}}",
        summary="Delete a job that has ended",
        plane=Plane.EXECUTION,
        permission="async:manage",
        audit="async.delete",
        status=204,
        resource=BY_HANDLER,
        tag="async",
    ),
    _steer("retry", "Queue a dead or cancelled job again", RetryJob),
    _steer("pause", "Hold a job; one that runs is held when it has to be tried again"),
    _steer("resume", "Let a paused job go on"),
    _steer("cancel", "End a job that is queued or runs"),
)
