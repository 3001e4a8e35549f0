"""Volumes: folders of a fixed size that functions mount and that outlive their instances."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from nova.api.functions import Deploy, MountedVolume, Name
from nova.api.table import Empty, Model, Page, PageQuery, Plane, Route
from nova.domain.volume import MAX_MOUNTS, MAX_SIZE_MB, MIN_SIZE_MB

_READ, _WRITE = "volume:read", "volume:write"
_VOLUME, _FUNCTION = "/volumes/{volume}", "/functions/{name}/mounts"
SizeMb = Annotated[int, Field(ge=MIN_SIZE_MB, le=MAX_SIZE_MB, description="MiB, its file system's own tables included")]
Description = Annotated[str, Field(max_length=4096)]


class VolumeCreate(Model):
    """``shared`` false: one instance writes at a time. It cannot be changed later."""

    name: Name
    size_mb: SizeMb
    shared: bool = Field(False, description="several instances may write at once")
    description: Description = ""


class VolumeChange(Model):
    """An absent member stays as it is."""

    size_mb: SizeMb | None = Field(None, description="it only grows, and from the next instance on")
    description: Description | None = None


class Volume(Model):
    """``node`` is where its files are, null until it is first mounted; ``used_mb`` what its files took when that node last
    looked. ``mounted_by``: functions that have a version which mounts it."""

    name: str
    size_mb: int
    used_mb: float
    shared: bool
    description: str
    node: str | None
    mounted_by: list[str]
    created_by: str
    created_at: datetime
    updated_at: datetime


class FunctionMountsChange(Model):
    """All mounts of a function."""

    mounts: list[MountedVolume] = Field(max_length=MAX_MOUNTS)
    deploy: Deploy | None = Field(
        None, description="activate (default): the new version goes live; publish: it only exists"
    )


class FunctionMounts(Model):
    """Of the version of the function that was deployed last."""

    version: int
    mounts: list[MountedVolume]


ROUTES = (
    Route(
        op="volume.create",
        method="POST",
        path="/volumes",
        summary="Create a volume",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="volume.create",
        body=VolumeCreate,
        answer=Volume,
        status=201,
        resource=None,
        tag="volumes",
    ),
    Route(
        op="volume.list",
        method="GET",
        path="/volumes",
        summary="Volumes, by name",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PageQuery,
        answer=Page[Volume],
        resource=None,
        tag="volumes",
    ),
    Route(
        op="volume.get",
        method="GET",
        path=_VOLUME,
        summary="One volume",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Volume,
        resource=None,
        tag="volumes",
    ),
    Route(
        op="volume.patch",
        method="PATCH",
        path=_VOLUME,
        summary="Let a volume grow, or describe it",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="volume.update",
        body=VolumeChange,
        answer=Volume,
        resource=None,
        tag="volumes",
    ),
    Route(
        op="volume.delete",
        method="DELETE",
        path=_VOLUME,
        summary="Delete a volume with its files, which nothing may mount",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="volume.delete",
        query=Empty,
        status=204,
        resource=None,
        tag="volumes",
    ),
    Route(
        op="function.mounts",
        method="GET",
        path=_FUNCTION,
        summary="The volumes that a function mounts",
        plane=Plane.CONTROL,
        permission="function:read",
        answer=FunctionMounts,
        tag="volumes",
    ),
    Route(
        op="function.set_mounts",
        method="PUT",
        path=_FUNCTION,
        summary="Set the volumes that a function mounts; publishes a version",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="function.set_mounts",
        body=FunctionMountsChange,
        answer=FunctionMounts,
        tag="volumes",
    ),
)
