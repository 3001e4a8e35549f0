"""What a handler of a plane sees: a request that has passed every guard, and what it may answer."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel
from starlette.requests import Request

from nova.domain.identity import Identity, Scope
from nova.errors import not_found

B = TypeVar("B")
Q = TypeVar("Q")
H = TypeVar("H", bound=Callable[..., Any])
Handler = Callable[..., Awaitable[Any]]
_OP = "__nova_op__"


@dataclass(slots=True)
class Req(Generic[B, Q]):
    """One request to a JSON, SSE or upload operation.

    ``params`` are the path parameters, percent-decoded once. ``raw_body`` is the JSON object as sent (for merge patches:
    which members were there). ``http`` is there for uploads and streams only; nothing else should need it.
    """

    identity: Identity
    scope: Scope
    request_id: str
    params: Mapping[str, str]
    body: B
    query: Q
    http: Request
    raw_body: Any = None
    if_match: str | None = None
    dry_run: bool = False


@dataclass(slots=True)
class Answer:
    """What a handler returns when status or headers differ from the route's own."""

    body: BaseModel | Mapping[str, Any] | None = None
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


def handles(op: str) -> Callable[[H], H]:
    """Mark a method as the handler of one operation of the route table."""

    def mark(function: H) -> H:
        setattr(function, _OP, op)
        return function

    return mark


def identifier(kind: str, text: str) -> str:
    """The id that stands in a path. Raises ``not_found``: what is no id names nothing."""
    try:
        return str(UUID(text))
    except ValueError:
        raise not_found(kind, text) from None


def handlers_of(owner: object) -> dict[str, Handler]:
    """The marked methods of an object, by operation."""
    found: dict[str, Handler] = {}
    for name in dir(type(owner)):
        op = getattr(getattr(type(owner), name, None), _OP, None)
        if op is not None:
            found[op] = getattr(owner, name)
    return found
