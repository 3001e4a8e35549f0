"""The declarative route table: one row per operation, from which everything else is made.

Router, permission check, audit action, body validation, OpenAPI and the clients' methods all read these rows. The noun
modules beside this one hold the models and contribute ``ROUTES``; planes bind handlers to rows by ``op``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")
BY_HANDLER = "(handler)"


class Model(BaseModel):
    """Base of every request and response body: a field that does not exist is refused by name."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_timedelta="float")


class Plane(StrEnum):
    """Which plane answers; decides who gets a request when the planes run apart."""

    CONTROL = "control"
    EXECUTION = "execution"
    GATEWAY = "gateway"
    OBSERVABILITY = "observability"


class Kind(StrEnum):
    """How the handler speaks.

    JSON in and out; ASGI: the handler returns an ASGI application (a Starlette response is one) that answers; SSE: it returns
    an iterator of events; UPLOAD: it reads the body itself, as a stream.
    """

    JSON = "json"
    ASGI = "asgi"
    SSE = "sse"
    UPLOAD = "upload"


class Page(Model, Generic[T]):
    """The envelope of every list. ``next_cursor`` is opaque; null at the end."""

    items: list[T]
    next_cursor: str | None = None


class PageQuery(Model):
    """``limit`` 1–500. ``cursor`` comes from the page before."""

    limit: Annotated[int, Field(ge=1, le=500)] = 100
    cursor: str | None = None


class Empty(Model):
    """No body, no query."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    ``path`` has ``{param}`` segments; ``permission`` None means public; ``audit`` None means no trail (reads and calls);
    ``resource`` names the path parameter with the function that permissions are checked against; None: the operation is not
    about one function; :data:`BY_HANDLER`: the handler checks, or filters by, the function that each thing belongs to.
    """

    op: str
    method: str
    path: str
    summary: str
    plane: Plane
    permission: str | None
    audit: str | None = None
    body: type[BaseModel] | None = None
    query: type[BaseModel] = Empty
    answer: type[BaseModel] | None = None
    status: int = 200
    kind: Kind = Kind.JSON
    resource: str | None = "name"
    platform: bool = False
    """True: only platform identities, whatever the permission (settings, runtimes, tenants)."""
    scoped: bool = True
    """False: acts outside any namespace, so the scope headers do not matter (tenants, settings, descriptions)."""
    idempotent: bool = False
    """True: the handler honours ``Idempotency-Key``; elsewhere a POST with one is refused rather than ignored."""
    tag: str = ""

    @property
    def params(self) -> tuple[str, ...]:
        return tuple(part[1:-1].split(":")[0] for part in self.path.split("/") if part.startswith("{"))


_NOUNS = (
    "functions",
    "calls",
    "prewarm",
    "readiness",
    "code",
    "versions",
    "aliases",
    "rollouts",
    "builds",
    "invocations",
    "replays",
    "asyncs",
    "schedules",
    "topics",
    "subscriptions",
    "workflows",
    "runs",
    "durable",
    "triggers",
    "state",
    "layers",
    "volumes",
    "snapshots",
    "series",
    "runtimes",
    "images",
    "backends",
    "apikeys",
    "tenants",
    "cluster",
    "system",
)


def routes() -> Iterator[Route]:
    """Every row of the table."""
    for noun in _NOUNS:
        module: Any = import_module(f"nova.api.{noun}")
        yield from module.ROUTES
