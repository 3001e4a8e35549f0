"""Aliases: stable names for one version, or for several by weight."""

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from nova.api.table import Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.alias import MAX_ARMS
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


class AliasPatch(Model):
    """``version`` and ``traffic_split`` replace each other."""

    version: VersionNumber | None = None
    traffic_split: Split | None = None
    description: str | None = Field(None, max_length=4096)


class AliasCreate(AliasPatch):
    """Exactly one of ``version`` and ``traffic_split``."""

    name: Annotated[str, Field(pattern=ALIAS), AfterValidator(_not_built_in)]


class Alias(Model):
    """``version`` is null when the alias splits traffic, ``traffic_split`` when it does not."""

    name: str
    version: int | None
    traffic_split: dict[str, float] | None
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
