"""Backends: the isolation technologies of this server, and what each can do here."""

from typing import Literal

from nova.api.table import Model, Page, Plane, Route

Held = Literal["hard", "soft", "no"]


class BackendView(Model):
    """``rank`` is its place where ``auto`` chooses, 1 first; null for one that ``auto`` does not choose from: it is not
    available. ``enforces``: how each limit holds; what does not is refused when a function asks for it. ``runtimes`` null:
    whatever the host has. ``reason`` says why it is not available.

    ``snapshot``: functions can be kept loaded; ``template``: blank instances stand ready; ``reload``: an instance takes new
    code; ``layers``, ``volumes``: can be mounted.
    """

    name: str
    available: bool
    reason: str | None
    rank: int | None
    isolation: Literal["vm", "container", "process", "wasm"]
    enforces: dict[str, Held]
    runtimes: list[str] | None
    snapshot: bool
    template: bool
    reload: bool
    layers: bool
    volumes: bool


class BackendList(Page[BackendView]):
    """All on one page, strongest first. ``default_backend`` is what functions run on that name none."""

    default_backend: str


ROUTES = (
    Route(
        op="backend.list",
        method="GET",
        path="/backends",
        summary="List the backends of this server, and what each can do",
        plane=Plane.CONTROL,
        permission="runtime:read",
        answer=BackendList,
        resource=None,
        scoped=False,
        tag="runtimes",
    ),
)
