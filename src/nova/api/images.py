"""Images: the root file systems of containers and machines, one per runtime and form on each node."""

from typing import Literal

from nova.api.table import Model, Page, PageQuery, Plane, Route

Form = Literal["tar", "ext4"]
ImageBackend = Literal["docker", "firecracker", "qemu"]


class PrepareBody(Model):
    """``backend`` decides which form is made."""

    backend: ImageBackend


class ImageView(Model):
    """``digest`` stands for what it is made of. ``outdated``: of older parts than the node has now, nothing new uses it.
    ``building``: ``detail`` is the step; ``failed``: why. ``size_mb`` is what it takes on disk."""

    runtime: str
    version: str | None
    form: Form
    digest: str
    status: Literal["ready", "outdated", "building", "failed"]
    detail: str | None
    size_mb: float
    node: str


ROUTES = (
    Route(
        op="image.list",
        method="GET",
        path="/system/images",
        summary="The images of the answering node, those that are being made and those that could not be",
        plane=Plane.EXECUTION,
        permission="runtime:read",
        query=PageQuery,
        answer=Page[ImageView],
        resource=None,
        scoped=False,
        tag="runtimes",
    ),
    Route(
        op="runtime.prepare",
        method="POST",
        path="/runtimes/{id}/prepare",
        summary="Make the image that a backend needs for a runtime, on the answering node; follow it in GET /system/images",
        plane=Plane.EXECUTION,
        permission="config:write",
        audit="runtime.prepare",
        body=PrepareBody,
        answer=ImageView,
        status=202,
        resource=None,
        platform=True,
        scoped=False,
        tag="runtimes",
    ),
)
