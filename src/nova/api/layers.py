"""Layers: files that many functions mount read-only, in numbered versions that never change."""

from datetime import datetime
from typing import Annotated

from pydantic import Field

from nova.api.functions import Deploy, FileContent, Name
from nova.api.table import Empty, Kind, Model, Page, PageQuery, Plane, Route
from nova.domain.layer import MAX_LAYERS

_READ, _WRITE = "layer:read", "layer:write"
_FUNCTION = "/functions/{name}/layers"
Reference = Annotated[str, Field(min_length=1, max_length=80, description="name (its newest version) or name@version")]


class LayerPublish(Model):
    """A version of a layer: ``files`` here, or an archive beside this as multipart."""

    name: Name
    runtimes: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(
        [], max_length=20, description="what may mount it; empty: every runtime"
    )
    description: str = Field("", max_length=4096)
    files: dict[str, str | FileContent] | None = Field(
        None, min_length=1, description="by path: base64, or an object that also says whether it may be executed"
    )


class LayerVersion(Model):
    """``size`` is the bytes of its files, ``digest`` that of the whole tree: equal files have equal digests."""

    name: str
    version: int
    digest: str
    size: int
    files: int
    runtimes: list[str]
    description: str
    created_by: str
    created_at: datetime


class Layer(LayerVersion):
    """The newest version; ``versions`` are the numbers of all that there are, newest first."""

    versions: list[int]


class LayerUser(Model):
    """A version of a function that mounts the layer."""

    function: str
    version: int
    layer_version: int
    live: bool


class FunctionLayersChange(Model):
    """All layers of a function, in order: of two with the same file the later one wins."""

    layers: list[Reference] = Field(max_length=MAX_LAYERS)
    deploy: Deploy | None = Field(
        None, description="activate (default): the new version goes live; publish: it only exists"
    )


class MountedLayer(Model):
    """``path`` is where it lies inside."""

    name: str
    version: int
    digest: str
    size: int
    runtimes: list[str]
    path: str


class FunctionLayers(Model):
    """Of the version of the function that was deployed last."""

    version: int
    layers: list[MountedLayer]


ROUTES = (
    Route(
        op="layer.publish",
        method="POST",
        path="/layers",
        summary="Publish a version of a layer; JSON, or multipart with `archive` (zip, tar, tar.gz) and `meta` (the JSON)",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="layer.publish",
        body=LayerPublish,
        answer=LayerVersion,
        status=201,
        kind=Kind.UPLOAD,
        resource=None,
        tag="layers",
    ),
    Route(
        op="layer.list",
        method="GET",
        path="/layers",
        summary="The newest version of each layer, by name",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PageQuery,
        answer=Page[LayerVersion],
        resource=None,
        tag="layers",
    ),
    Route(
        op="layer.get",
        method="GET",
        path="/layers/{layer}",
        summary="A layer's newest version, and which there are",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=Layer,
        resource=None,
        tag="layers",
    ),
    Route(
        op="layer.version",
        method="GET",
        path="/layers/{layer}/versions/{version}",
        summary="One version of a layer",
        plane=Plane.CONTROL,
        permission=_READ,
        answer=LayerVersion,
        resource=None,
        tag="layers",
    ),
    Route(
        op="layer.functions",
        method="GET",
        path="/layers/{layer}/functions",
        summary="The versions of functions that mount a layer",
        plane=Plane.CONTROL,
        permission=_READ,
        query=PageQuery,
        answer=Page[LayerUser],
        resource=None,
        tag="layers",
    ),
    Route(
        op="layer.delete",
        method="DELETE",
        path="/layers/{layer}",
        summary="Delete a layer with all its versions, which nothing may mount",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="layer.delete",
        query=Empty,
        status=204,
        resource=None,
        tag="layers",
    ),
    Route(
        op="layer.delete_version",
        method="DELETE",
        path="/layers/{layer}/versions/{version}",
        summary="Delete one version of a layer, which nothing may mount",
        plane=Plane.CONTROL,
        permission=_WRITE,
        audit="layer.delete_version",
        query=Empty,
        status=204,
        resource=None,
        tag="layers",
    ),
    Route(
        op="function.layers",
        method="GET",
        path=_FUNCTION,
        summary="The layers of a function",
        plane=Plane.CONTROL,
        permission="function:read",
        answer=FunctionLayers,
        tag="layers",
    ),
    Route(
        op="function.set_layers",
        method="PUT",
        path=_FUNCTION,
        summary="Set the layers of a function; publishes a version",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="function.set_layers",
        body=FunctionLayersChange,
        answer=FunctionLayers,
        tag="layers",
    ),
)
