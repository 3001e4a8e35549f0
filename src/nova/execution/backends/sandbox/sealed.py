"""Functions that are kept loaded: a donor that serves nobody, and beside it an instance that stands ready to be one."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from nova.errors import NovaError
from nova.execution.backends.base import InitFailed, InitSpec, InstanceSpec, SnapshotRefused
from nova.execution.backends.sandbox.cells import Cell, Cells, Kind
from nova.execution.backends.sandbox.client import LauncherLost, LauncherRefused
from nova.service import Background

log = structlog.get_logger(__name__)

NO_SNAPSHOT = "Nova.NoSnapshot"
"""The error of a worker that cannot be forked."""


@dataclass(slots=True, eq=False)
class Sealed:
    """One function. ``line`` is a descriptor of its worker's line; ``heirs`` are the living instances below it."""

    cell: Cell
    spec: InstanceSpec
    line: int
    heirs: set[Cell] = field(default_factory=set)
    spare: Cell | None = None
    """forked and waiting to be claimed"""
    spare_task: asyncio.Task[None] | None = None
    dropped: bool = False

    @property
    def usable(self) -> bool:
        return not self.dropped and self.cell.channel.usable and not self.cell.ended.done()


class Seals:
    """The snapshots of one backend, by key. ``claim`` gives a place its limits, network rules and code."""

    def __init__(self, cells: Cells, claim: Callable[[Cell, InstanceSpec], Awaitable[None]]) -> None:
        self._cells = cells
        self._claim = claim
        self._sealed: dict[str, Sealed] = {}
        self._draining: set[Sealed] = set()
        self._background = Background("sandbox.snapshots")

    def cell(self, key: str) -> Cell | None:
        """The place of the loaded function."""
        sealed = self._sealed.get(key)
        return sealed.cell if sealed is not None and sealed.usable else None

    async def close(self) -> None:
        await self._background.close()
        for key in list(self._sealed):
            await self.drop(key)
        for sealed in list(self._draining):
            await self._bury(sealed)

    async def make(self, key: str, spec: InstanceSpec, init: InitSpec) -> None:
        """Load the function once more and keep it. An older one with this key is dropped.

        Raises SnapshotRefused, InitFailed, NovaError, LauncherLost, LauncherRefused.
        """
        cell = await self._cells.boot(_kind(spec), donor=True)
        line = -1
        try:
            await self._claim(cell, spec)
            cell.link.instance_id = spec.instance_id
            line = cell.link.standing_line()
            try:
                await cell.channel.init(init)
            except InitFailed as failed:
                if failed.error.type == NO_SNAPSHOT:
                    raise SnapshotRefused(failed.error.message) from None
                raise
        except BaseException:
            if line >= 0:
                os.close(line)
            await self._cells.end(cell)
            raise
        await self.drop(key)
        sealed = self._sealed[key] = Sealed(cell, spec, line)
        cell.channel.on_lost(lambda: self._lost(key, sealed))
        self._prepare(sealed)

    async def restore(self, key: str) -> Cell | None:
        """An instance with the function loaded that waits for Init; None when there is no snapshot, or it is lost."""
        sealed = self._sealed.get(key)
        if sealed is None or not sealed.usable:
            return None
        spare, sealed.spare = sealed.spare, None
        if spare is not None and spare.channel.usable and not spare.ended.done():
            self._prepare(sealed)
            return spare
        try:
            return await self._fork(sealed)
        except (LauncherRefused, NovaError, OSError) as error:
            log.warning("a snapshot could not be restored", reason=str(error))
            return None

    async def drop(self, key: str) -> None:
        """No further instance comes from it; it goes when the last one has ended."""
        sealed = self._sealed.pop(key, None)
        if sealed is None:
            return
        sealed.dropped = True
        self._draining.add(sealed)
        if sealed.spare_task is not None:
            sealed.spare_task.cancel()
            await asyncio.wait([sealed.spare_task])
        if sealed.spare is not None:
            await self._cells.end(sealed.spare)
        await self._bury_if_alone(sealed)

    def _prepare(self, sealed: Sealed) -> None:
        """Have the next instance ready, off the path of calls."""
        if sealed.spare_task is None or sealed.spare_task.done():
            sealed.spare_task = self._background.spawn("fork", self._make_spare(sealed))

    async def _make_spare(self, sealed: Sealed) -> None:
        await asyncio.sleep(SPARE_DELAY_S)
        if sealed.spare is not None or not sealed.usable:
            return
        with contextlib.suppress(LauncherRefused, LauncherLost, NovaError, OSError):
            sealed.spare = await self._fork(sealed)

    async def _fork(self, sealed: Sealed) -> Cell:
        cell = await self._cells.inherit(sealed.cell, sealed.line, lambda cell: self._claim(cell, sealed.spec))
        sealed.heirs.add(cell)
        cell.ended.add_done_callback(lambda _ended: self._heir_ended(sealed, cell))
        return cell

    def _heir_ended(self, sealed: Sealed, cell: Cell) -> None:
        sealed.heirs.discard(cell)
        if sealed.spare is cell:
            sealed.spare = None
            self._background.spawn("free", self._free(cell))
        if sealed.dropped and not sealed.heirs:
            self._background.spawn("drain", self._bury_if_alone(sealed))

    async def _free(self, cell: Cell) -> None:
        await self._cells.end(cell)

    async def _bury_if_alone(self, sealed: Sealed) -> None:
        if not sealed.heirs and sealed in self._draining:
            await self._bury(sealed)

    async def _bury(self, sealed: Sealed) -> None:
        if sealed.line >= 0:
            os.close(sealed.line)
            sealed.line = -1
        await self._cells.end(sealed.cell)
        self._draining.discard(sealed)

    def _lost(self, key: str, sealed: Sealed) -> None:
        if self._sealed.get(key) is sealed:
            log.warning("a snapshot was lost")
            self._background.spawn("drop", self.drop(key))


SPARE_DELAY_S = 0.05
"""The next instance is forked this long after the last was taken, so that it does not compete with its first call."""


def _kind(spec: InstanceSpec) -> Kind:
    return Kind(spec.runtime, spec.runtime_version, online=not spec.network.offline)
