"""Runtimes: the languages of this host. Read only; a language comes with the platform."""

from typing import Literal

from nova.api.table import Model, Page, PageQuery, Plane, Route
from nova.domain.function import Mode


class RuntimeView(Model):
    """``versions`` are the ids beside ``id`` that functions may name. ``reason`` says why it is unavailable.

    ``entrypoint`` is the command that runs a plain script of this runtime; ``manifests`` are the files from which
    dependencies are installed; ``template`` is sample code that runs as it is.
    """

    id: str
    name: str
    version: str | None
    versions: list[str]
    status: Literal["available", "unavailable"]
    reason: str | None
    family: Literal["interpreted", "wasm", "custom"]
    entrypoint: list[str]
    file_extension: str
    default_handler: str
    modes: list[Mode]
    manifests: list[str]
    template: str


ROUTES = (
    Route(
        op="runtime.list",
        method="GET",
        path="/runtimes",
        summary="List runtimes",
        plane=Plane.CONTROL,
        permission="runtime:read",
        query=PageQuery,
        answer=Page[RuntimeView],
        resource=None,
        scoped=False,
        tag="runtimes",
    ),
    Route(
        op="runtime.get",
        method="GET",
        path="/runtimes/{id}",
        summary="Get a runtime, by any id that functions may name",
        plane=Plane.CONTROL,
        permission="runtime:read",
        answer=RuntimeView,
        resource=None,
        scoped=False,
        tag="runtimes",
    ),
)
