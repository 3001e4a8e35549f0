"""Replays: the kept input of a finished call, run again, and where the two ends differ."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, create_model

from nova.api.invocations import CallError, Status
from nova.api.rollouts import require_qualifier
from nova.api.table import BY_HANDLER, Model, Plane, Route

_FIELDS: dict[str, Any] = {
    "qualifier": (Annotated[str, AfterValidator(require_qualifier)] | None, None),
    "async": (bool, False),  # a keyword of Python cannot be written as an attribute
}
ReplayQuery: type[Model] = create_model("ReplayQuery", __base__=Model, **_FIELDS)
"""``qualifier``: what runs it, a version's number or an alias; unless given, what the call itself asked for. ``async``: put it
into the queue and answer at once."""


class End(Model):
    """How one of the two ended. ``error`` is null for a success."""

    request_id: str
    version: int
    status: Status
    error: CallError | None
    duration_ms: float


class Difference(Model):
    """One place of the outputs, as a JSON Pointer. A side that has nothing there is left out of ``sides``; a value nested
    deeper than 100 levels is null."""

    path: str
    sides: list[Literal["before", "after"]]
    before: Any = None
    after: Any = None


class Replay(Model):
    """``compared`` says how far the two could be compared: ``status`` when an output was not kept, or was a stream.

    ``differences`` are at most 50. ``same``: nothing that was compared differs.
    """

    original: End
    replay: End
    compared: Literal["output", "status"]
    same: bool
    differences: list[Difference] = Field(description="from the original's output to the replay's")


ROUTES = (
    Route(
        op="invocation.replay",
        method="POST",
        path="/invocations/{id}/replay",
        summary="Run the kept input of a call again; 410 when it was not kept whole",
        plane=Plane.EXECUTION,
        permission="payload:read",
        audit="invocation.replay",
        query=ReplayQuery,
        answer=Replay,
        resource=BY_HANDLER,
        tag="invocations",
    ),
)
