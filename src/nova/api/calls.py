"""Calling a function: the answer of a synchronous call."""

from typing import Any

from pydantic import Field

from nova.api.table import Kind, Model, Plane, Route


class CallError(Model):
    """What went wrong inside the function: the class raised, or a ``Nova.*`` type that the platform found out."""

    type: str
    message: str
    stack: list[str]


class InvokeResponse(Model):
    """A call that ran. A function that failed is still a 200: ``error`` is set and X-Nova-Function-Error names its type."""

    request_id: str
    output: Any = Field(description="what the function returned; null when it failed")
    error: CallError | None
    duration_ms: float
    cold_start: bool
    version: int = Field(description="the version that ran")
    deduplicated: bool | None = Field(
        None, description="true: the stored answer of an earlier call with the same Idempotency-Key"
    )
    logs: str | None = Field(None, description="with X-Nova-Log-Type: Tail, the last 4 KiB of what the call printed")


class InvokeQuery(Model):
    """``qualifier``: a version number, an alias, ``live`` (the default) or ``$LATEST``."""

    qualifier: str | None = None


class StreamQuery(InvokeQuery):
    """``logs`` adds what the handler prints, as events of their own."""

    logs: bool = False


ROUTES = (
    Route(
        op="function.invoke",
        method="POST",
        path="/functions/{name}/invoke",
        summary="Call a function and wait for its answer; the body is any JSON value",
        plane=Plane.EXECUTION,
        permission="function:invoke",
        query=InvokeQuery,
        answer=InvokeResponse,
        kind=Kind.ASGI,
        tag="calls",
    ),
    Route(
        op="function.invoke_stream",
        method="POST",
        path="/functions/{name}/invoke-stream",
        summary="Call a function and get its pieces as they come; with Accept: application/octet-stream as bare bytes",
        plane=Plane.EXECUTION,
        permission="function:invoke",
        query=StreamQuery,
        kind=Kind.SSE,
        tag="calls",
    ),
)
