"""After a change of a function: what was kept loaded for versions that no call reaches any more is dropped."""

import asyncio

import structlog

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.catalog import Catalog
from nova.execution.sealing import Sealer
from nova.service import Background

log = structlog.get_logger(__name__)


class SealedFunctions:
    """The sealer as a service that follows the catalogue. What cannot be looked up now is dropped when it is idle."""

    def __init__(self, sealer: Sealer, catalog: Catalog) -> None:
        self._sealer = sealer
        self._catalog = catalog
        self._changed: set[tuple[Scope, str]] = set()
        self._wake = asyncio.Event()
        self._tasks = Background("snapshots.changes")
        catalog.on_change(self._on_change)

    async def start(self) -> None:
        await self._sealer.start()
        self._tasks.spawn("drop", self._run())

    async def close(self) -> None:
        await self._tasks.close()
        await self._sealer.close()

    def _on_change(self, scope: Scope, function: str) -> None:
        if self._sealer.of(scope, function):
            self._changed.add((scope, function))
            self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._changed:
                scope, function = self._changed.pop()
                try:
                    entry = await self._catalog.entry(scope, function)
                except NovaError as error:
                    log.warning("old snapshots stay until they are idle", function=function, cause=error.code)
                    continue
                keep = {snapshot.pool_key for snapshot in entry.snapshots.values()} if entry is not None else set()
                await self._sealer.drop(scope, function, keep=keep)
