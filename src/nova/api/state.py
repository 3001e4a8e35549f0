"""State: what a function keeps between its calls, by key."""

from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, RootModel

from nova.api.table import Model, Page, PageQuery, Plane, Route
from nova.domain.state import MAX_COUNT, MAX_TTL_S

_PATH = "/functions/{name}/state"
_READ, _WRITE = "state:read", "state:write"

Key = Annotated[str, Field(min_length=1, max_length=512, description="at most 512 bytes, without control characters")]
Ttl = Annotated[int, Field(ge=1, le=MAX_TTL_S, description="seconds from now until the key is gone; unset: it stays")]
Expected = Annotated[
    int, Field(ge=0, lt=2**63, description="only over this version; 0: only when there is no such key")
]


class StatePut(Model):
    """A value, as any JSON of at most 256 KiB."""

    value: Any
    ttl_s: Ttl | None = None
    expected_version: Expected | None = None


class StateIncrement(Model):
    """Adds to a whole number, 0 when there is none. Without ``ttl_s`` the key's end stays as it is."""

    by: int = Field(1, ge=-MAX_COUNT, le=MAX_COUNT)
    ttl_s: Ttl | None = None


class StateItem(Model):
    """A key without its value; ``size`` is the value's in bytes."""

    key: str
    size: int
    version: int
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime


class StateEntry(Model):
    """``version`` begins at 1 and grows by one with each write."""

    key: str
    value: Any
    version: int
    expires_at: datetime | None
    created_at: datetime
    updated_at: datetime


class StateFound(RootModel[StateEntry | Page[StateItem]]):
    """One entry when ``key`` was given, else a list."""


class StateQuery(PageQuery):
    """``key`` for one entry, else a list; ``prefix`` is literal, and so are % and _."""

    key: Key | None = None
    prefix: Annotated[str, Field(max_length=512)] | None = None


class StateDelete(Model):
    """One of ``key`` and ``prefix``."""

    key: Key | None = None
    prefix: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    expected_version: Expected | None = None


class StateKey(Model):
    key: Key


ROUTES = (
    Route(
        op="state.get",
        method="GET",
        path=_PATH,
        summary="One entry of a function's state, or the keys in it",
        plane=Plane.CONTROL,
        permission=_READ,
        query=StateQuery,
        answer=StateFound,
        tag="state",
    ),
    Route(
        op="state.put",
        method="PUT",
        path=_PATH,
        summary="Set a key of a function's state",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="state.put",
        body=StatePut,
        query=StateKey,
        answer=StateEntry,
        tag="state",
    ),
    Route(
        op="state.increment",
        method="POST",
        path=_PATH + "/increment",
        summary="Add to a number in a function's state, in one step",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="state.increment",
        body=StateIncrement,
        query=StateKey,
        answer=StateEntry,
        tag="state",
    ),
    Route(
        op="state.delete",
        method="DELETE",
        path=_PATH,
        summary="Delete a key of a function's state, or every key with a prefix",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="state.delete",
        query=StateDelete,
        status=204,
        tag="state",
    ),
)
