"""Aliases: stable names for one version, or for several by weight."""

import re
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nova.api.functions import POINTER
from nova.api.table import Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.alias import MAX_ARMS, MAX_RULES
from nova.domain.names import ALIAS, LIVE

VersionNumber = Annotated[int, Field(ge=1, le=2**31 - 1)]


def _two_decimals(weight: float) -> float:
    if abs(weight * 100 - round(weight * 100)) > 1e-6:
        raise ValueError("at most two decimals")
    return weight


def _not_built_in(name: str) -> str:
    if name == LIVE:
        raise ValueError(f"{LIVE!r} is built in: activate a version instead")
    return name


Weight = Annotated[float, Field(gt=0, le=100), AfterValidator(_two_decimals)]
Split = Annotated[
    dict[Annotated[str, Field(pattern=r"^[1-9][0-9]{0,9}$")], Weight],
    Field(min_length=1, max_length=MAX_ARMS, description="percent by version; the sum is 100"),
]


_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_POINTER = re.compile(POINTER)


class Sticky(Model):
    """What keeps a caller on one version while it is there. ``X-Nova-Sticky-Key`` works whatever this says, and first.

    ``name`` is the header's, cookie's or query parameter's, or a JSON Pointer into the payload. Only function URLs have a
    query; queued calls, schedules and calls by functions carry neither headers nor cookies, so each of them is drawn.
    """

    by: Literal["none", "header", "cookie", "query", "ip", "identity", "payload"] = "none"
    name: str = Field("", max_length=256)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.by in ("none", "ip", "identity"):
            if self.name:
                raise ValueError(f"name: not with by={self.by}")
        elif self.by == "payload":
            if not _POINTER.fullmatch(self.name) or not self.name:
                raise ValueError("name: a JSON Pointer into the payload, such as /user/id")
        elif not self.name or (self.by != "query" and not _HEADER.fullmatch(self.name)):
            raise ValueError(f"name: the name of the {self.by}")
        return self


class Match(Model):
    """Calls whose header, or query parameter of a function URL, is exactly ``value`` run ``version``."""

    by: Literal["header", "query"]
    name: str = Field(min_length=1, max_length=256)
    value: str = Field(max_length=1024)
    version: VersionNumber

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.by == "header" and not _HEADER.fullmatch(self.name):
            raise ValueError("name: the name of the header")
        return self


class AliasPatch(Model):
    """``version`` and ``traffic_split`` replace each other. Of the rules of ``match`` the first that fits decides."""

    version: VersionNumber | None = None
    traffic_split: Split | None = None
    sticky: Sticky | None = None
    match: list[Match] | None = Field(None, max_length=MAX_RULES)
    description: str | None = Field(None, max_length=4096)


class AliasCreate(AliasPatch):
    """Exactly one of ``version`` and ``traffic_split``."""

    name: Annotated[str, Field(pattern=ALIAS), AfterValidator(_not_built_in)]


class Alias(Model):
    """``version`` is null when the alias splits traffic, ``traffic_split`` when it does not."""

    name: str
    version: int | None
    traffic_split: dict[str, float] | None
    sticky: Sticky
    match: list[Match]
    description: str
    created_at: datetime
    updated_at: datetime


_PATH = "/functions/{name}/aliases"

ROUTES = (
    Route(
        op="alias.create",
        method="POST",
        path=_PATH,
        summary="Create an alias",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="alias.create",
        body=AliasCreate,
        answer=Alias,
        status=201,
        tag="aliases",
    ),
    Route(
        op="alias.list",
        method="GET",
        path=_PATH,
        summary="Aliases by name",
        plane=Plane.CONTROL,
        permission="function:read",
        query=PageQuery,
        answer=Page[Alias],
        tag="aliases",
    ),
    Route(
        op="alias.get",
        method="GET",
        path=_PATH + "/{alias}",
        summary="One alias",
        plane=Plane.CONTROL,
        permission="function:read",
        answer=Alias,
        tag="aliases",
    ),
    Route(
        op="alias.patch",
        method="PATCH",
        path=_PATH + "/{alias}",
        summary="Point an alias elsewhere",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="alias.update",
        body=AliasPatch,
        answer=Alias,
        tag="aliases",
    ),
    Route(
        op="alias.delete",
        method="DELETE",
        path=_PATH + "/{alias}",
        summary="Delete an alias",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="alias.delete",
        query=Empty,
        status=204,
        tag="aliases",
    ),
)
