"""Instances before there are calls: on demand, and the times at which a function has them by its own settings."""

from datetime import datetime

from pydantic import Field

from nova.api.table import Model, Plane, Route

MAX_TTL_S = 86400


class Prewarm(Model):
    """Ask for instances. They are made as a call's would be, stay for ``ttl_s``, and then go the usual way of the idle."""

    target_replicas: int = Field(ge=0, le=1000, description="at least so many; 0 takes an earlier wish back")
    qualifier: str | None = Field(None, description="a version number, an alias, live (the default) or $LATEST")
    ttl_s: int = Field(300, ge=1, le=MAX_TTL_S)


class Prewarmed(Model):
    """``ready`` can take a call now, or are taking one; ``starting`` are on their way. Together at most what the node holds."""

    target: int
    ready: int
    starting: int


class OpeningsQuery(Model):
    count: int = Field(10, ge=1, le=100, description="how many windows to show")


class OpeningView(Model):
    begins_at: datetime
    ends_at: datetime
    replicas: int
    name: str


class Provisioned(Model):
    """``replicas`` is what stands ready now: the most of ``min_replicas`` and the windows that are open. ``windows`` are those
    and the next ones, by time."""

    replicas: int
    windows: list[OpeningView]


ROUTES = (
    Route(
        op="function.prewarm",
        method="POST",
        path="/functions/{name}/prewarm",
        summary="Have instances ready for a while before calls come",
        plane=Plane.EXECUTION,
        permission="function:invoke",
        body=Prewarm,
        answer=Prewarmed,
        status=202,
        audit="function.prewarm",
        tag="functions",
    ),
    Route(
        op="function.provisioned",
        method="GET",
        path="/functions/{name}/provisioned",
        summary="How many instances stand ready now by the function's settings, and its next windows",
        plane=Plane.CONTROL,
        permission="function:read",
        query=OpeningsQuery,
        answer=Provisioned,
        tag="functions",
    ),
)
