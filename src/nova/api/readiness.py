"""Can a function be called now, and if not, why."""

from typing import Literal

from nova.api.table import Empty, Model, Plane, Route


class Reason(Model):
    """One thing that stands in the way, or that delays calls. ``code`` is what a call would be refused with."""

    code: str
    detail: str
    field: str | None = None


class Place(Model):
    """How things stand on the node that answers."""

    backend: str | None
    ready: int
    busy: int
    booting: int
    waiting: int


class Readiness(Model):
    """``cold``: the next call waits for an instance. ``reasons`` say why the function is not invokable, ``warnings`` what may
    hold a call up."""

    function: str
    invokable: bool
    state: Literal["warm", "cold", "not invokable"]
    version: int | None
    runtime: str | None
    reasons: list[Reason] = []
    warnings: list[Reason] = []
    here: Place | None = None


ROUTES = (
    Route(
        op="function.readiness",
        method="GET",
        path="/functions/{name}/readiness",
        summary="Whether the function can be called now, and if not, why",
        plane=Plane.EXECUTION,
        permission="function:read",
        query=Empty,
        answer=Readiness,
        tag="functions",
    ),
)
