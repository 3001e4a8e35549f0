"""Call records: what every finished call leaves behind, as logs of a function and as invocations of a scope."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from nova.api.table import BY_HANDLER, Kind, Model, Page, PageQuery, Plane, Route
from nova.domain.names import NAME
from nova.domain.outcome import Outcome

Status = Literal["success", "error"]
Text = Annotated[str, Field(min_length=1, max_length=256)]
DEFAULT_TAIL = 10
MAX_TAIL = 500


class CallError(Model):
    """``type`` is the class raised, or a ``Nova.*`` type when the platform found the fault."""

    type: str
    message: str
    stack: list[str] = []


class Invocation(Model):
    """One finished call. Its id is the request id. Times in milliseconds, sizes in bytes."""

    id: str
    created_at: datetime
    tenant_id: str
    namespace: str
    function_id: str
    function: str
    version: int
    qualifier: str | None
    runtime: str
    trigger: str
    caller: str
    status: Status
    outcome: Outcome = Field(description="how it ended, in one word")
    error: CallError | None
    cold_start: bool
    start_source: str
    instance_id: str
    duration_ms: float
    queue_ms: float
    boot_ms: float = Field(description="getting an isolated instance; 0 when warm")
    runtime_ms: float = Field(description="the part of boot_ms in which the language started")
    init_ms: float = Field(description="loading the code; 0 when warm")
    import_ms: float = Field(description="the part of init_ms in which the code was imported")
    handler_ms: float = Field(description="from sending the input to having the result")
    input_size: int
    output_size: int
    trace_id: str | None
    client_request_id: str | None


class CallLog(Invocation):
    """A call with what it printed; each stream at most 256 KiB."""

    stdout: str
    stderr: str


class CallDetail(CallLog):
    """A call with everything that was kept of it.

    ``captured`` names the payloads that the function's capture policy kept. ``input`` and ``output`` show them to callers
    who hold ``payload:read``, unless they are nested deeper than 100 levels.
    """

    captured: list[Literal["input", "output"]]
    input: Any = None
    output: Any = None


class Prints(Model):
    """What one call printed."""

    id: str
    created_at: datetime
    function: str
    version: int
    status: Status
    stdout: str
    stderr: str


class LogQuery(Model):
    """Either the newest calls (``tail``, 10 unless said), or pages (``limit``, ``cursor``).

    ``q`` is text that the prints contain; ``request_id`` must be a call of this function, else 404.
    """

    tail: int | None = Field(None, ge=1, le=MAX_TAIL)
    limit: int | None = Field(None, ge=1, le=500)
    cursor: str | None = None
    request_id: str | None = Field(None, max_length=64)
    status: Status | None = None
    outcome: Outcome | None = None
    q: Text | None = None
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    version: int | None = Field(None, ge=1)
    cold_start: bool | None = None


class StreamQuery(Model):
    """A live tail. It begins now, or at ``since``, or after the header ``Last-Event-ID``."""

    since: AwareDatetime | None = None
    q: Text | None = Field(None, description="only lines that contain this text")
    request_id: str | None = Field(None, max_length=64)


class InvocationQuery(PageQuery):
    function: str | None = Field(None, pattern=NAME)
    status: Status | None = None
    outcome: Outcome | None = None
    runtime: Text | None = None
    version: int | None = Field(None, ge=1)
    caller: Text | None = None
    trace_id: str | None = Field(None, pattern=r"^[0-9a-f]{32}$")
    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    min_duration_ms: float | None = Field(None, ge=0)
    cold_start: bool | None = None
    q: Text | None = Field(None, description="text that the prints contain")


ROUTES = (
    Route(
        op="function.logs",
        method="GET",
        path="/functions/{name}/logs",
        summary="Finished calls of a function with what they printed, newest first",
        plane=Plane.EXECUTION,
        permission="log:read",
        query=LogQuery,
        answer=Page[CallLog],
        tag="logs",
    ),
    Route(
        op="function.logs.stream",
        method="GET",
        path="/functions/{name}/logs/stream",
        summary="Live tail: a `line` event for each printed line, a `call` event for each finished call",
        plane=Plane.EXECUTION,
        permission="log:read",
        query=StreamQuery,
        kind=Kind.SSE,
        tag="logs",
    ),
    Route(
        op="invocation.list",
        method="GET",
        path="/invocations",
        summary="Finished calls of every function in the scope, newest first",
        plane=Plane.EXECUTION,
        permission="log:read",
        query=InvocationQuery,
        answer=Page[Invocation],
        resource=BY_HANDLER,
        tag="invocations",
    ),
    Route(
        op="invocation.get",
        method="GET",
        path="/invocations/{id}",
        summary="One finished call",
        plane=Plane.EXECUTION,
        permission="log:read",
        answer=CallDetail,
        resource=BY_HANDLER,
        tag="invocations",
    ),
    Route(
        op="invocation.logs",
        method="GET",
        path="/invocations/{id}/logs",
        summary="What one call printed",
        plane=Plane.EXECUTION,
        permission="log:read",
        answer=Prints,
        resource=BY_HANDLER,
        tag="invocations",
    ),
)
