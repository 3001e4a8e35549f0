"""What a first call would have to fetch is fetched when the function changes: its snapshot and its code on this node's disk."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import structlog

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.catalog import Catalog
from nova.service import Background

log = structlog.get_logger(__name__)
MOST = 1000
"""Functions that wait to be fetched; of more, those that changed first are left to their first call."""


class Artifacts(Protocol):
    async def materialise(self, digest: str) -> Path: ...


class FetchAhead:
    """One function at a time, so that a storm of deploys leaves the database to the calls. ``here`` tells whether this
    process would run a function."""

    def __init__(
        self,
        catalog: Catalog,
        artifacts: Artifacts,
        here: Callable[[Scope, str], bool] = lambda _scope, _function: True,
    ) -> None:
        self._catalog = catalog
        self._artifacts = artifacts
        self._here = here
        self._changed: dict[tuple[Scope, str], None] = {}
        self._wake = asyncio.Event()
        self._tasks = Background("ahead")
        catalog.on_change(self._on_change)

    async def start(self) -> None:
        self._tasks.spawn("fetch", self._run())

    async def close(self) -> None:
        await self._tasks.close()

    def _on_change(self, scope: Scope, function: str) -> None:
        if not self._here(scope, function):
            return
        self._changed.pop((scope, function), None)
        self._changed[scope, function] = None
        if len(self._changed) > MOST:
            del self._changed[next(iter(self._changed))]
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changed:
                scope, function = next(iter(self._changed))
                del self._changed[scope, function]
                try:
                    entry = await self._catalog.entry(scope, function)
                    if entry is not None and entry.live is not None:
                        for digest in (entry.live.artifact, *(layer.artifact for layer in entry.live.layers)):
                            await self._artifacts.materialise(digest)
                except (NovaError, OSError) as error:  # a call will find out, and say so
                    log.debug("not fetched ahead", function=function, error=str(error))
                except Exception:
                    log.exception("a function could not be fetched ahead", function=function)
