"""Handlers of builds. Control inserts and reads rows; the execution plane builds."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

from nova.api.builds import Build, Rebuild
from nova.api.table import Empty, Page, PageQuery
from nova.domain.build import FINISHED
from nova.errors import invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles, identifier
from nova.http.sse import Event
from nova.security import access
from nova.store.builds import BuildRecord, BuildStore
from nova.store.functions import FunctionStore
from nova.store.listen import Channel, Listener

_POLL_S = 2.0
"""A log is looked at again after this long even when no notification came."""


class BuildHandlers:
    def __init__(self, builds: BuildStore, functions: FunctionStore, listener: Listener) -> None:
        self._builds = builds
        self._functions = functions
        self._changes = _Changes(listener)

    @handles("build.list")
    async def list(self, req: Req[None, PageQuery]) -> Page[Build]:
        name = req.params["name"]
        if await self._functions.lookup(req.scope, name) is None:
            raise not_found("function", name)
        after = paging.decode(req.query.cursor, str)
        before = paging.row_id(str(after[0])) if after else None
        found = await self._builds.list(req.scope, name, limit=req.query.limit + 1, before=before)
        shown = found[: req.query.limit]
        more = paging.encode([shown[-1].id]) if len(found) > len(shown) else None
        return Page[Build](items=[_view(record) for record in shown], next_cursor=more)

    @handles("build.create")
    async def create(self, req: Req[Rebuild, Empty]) -> Answer:
        build_id = await self._builds.rebuild(
            req.scope, req.params["name"], req.body.version, activate=req.body.activate
        )
        record = await self._builds.get(req.scope, build_id)
        return Answer(_view(record), headers={"Location": f"/builds/{build_id}"})

    @handles("build.get")
    async def get(self, req: Req[None, Empty]) -> Build:
        return _view(await self._record(req, "build:read"))

    @handles("build.cancel")
    async def cancel(self, req: Req[None, Empty]) -> Build:
        record = await self._record(req, "build:manage")
        await self._builds.cancel(req.scope, record.id)
        return _view(await self._builds.get(req.scope, record.id))

    @handles("build.logs")
    async def logs(self, req: Req[None, Empty]) -> AsyncIterator[Event]:
        """Ends with the build. The id of an event is where the next one begins, so a client can go on after a break."""
        offset = _offset(req.http.headers.get("last-event-id"))
        build_id = (await self._record(req, "build:read")).id
        with self._changes.of(build_id) as changed:
            while True:
                changed.clear()
                piece = await self._builds.read_log(req.scope, build_id, offset)
                if piece.text:
                    offset += len(piece.text)
                    yield Event({"text": piece.text}, event="log", id=str(offset))
                if piece.status in FINISHED:
                    break
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), _POLL_S)
        yield Event(_view(await self._builds.get(req.scope, build_id)), event="end", id=str(offset))

    async def _record(self, req: Req[None, Empty], permission: str) -> BuildRecord:
        """The build, if the caller may do this to its function. Raises ``not_found`` or ``forbidden``."""
        record = await self._builds.get(req.scope, identifier("build", req.params["id"]))
        access.require(req.identity, permission, record.function)
        return record


class _Watch:
    def __init__(self, watches: dict[str, set[asyncio.Event]], build_id: str) -> None:
        self._watches = watches
        self._build_id = build_id
        self._event = asyncio.Event()

    def __enter__(self) -> asyncio.Event:
        self._watches.setdefault(self._build_id, set()).add(self._event)
        return self._event

    def __exit__(self, *_exc: object) -> None:
        events = self._watches[self._build_id]
        events.discard(self._event)
        if not events:
            del self._watches[self._build_id]


class _Changes:
    """Wakes whoever follows a build, by one registration with the listener."""

    def __init__(self, listener: Listener) -> None:
        self._watches: dict[str, set[asyncio.Event]] = {}
        listener.on(Channel.BUILDS, self._changed)

    def of(self, build_id: str) -> _Watch:
        return _Watch(self._watches, build_id)

    def _changed(self, build_id: str) -> None:
        for event in self._watches.get(build_id, ()):
            event.set()


def _view(record: BuildRecord) -> Build:
    duration = None
    if record.started_at is not None and record.finished_at is not None:
        duration = round((record.finished_at - record.started_at).total_seconds() * 1000)
    return Build(
        id=record.id,
        function=record.function,
        version=record.version,
        status=record.status,
        cached=record.cached,
        activate=record.activate,
        artifact=record.artifact,
        toolchain=record.toolchain,
        error=record.error,
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        duration_ms=duration,
    )


def _offset(last_event_id: str | None) -> int:
    if last_event_id is None:
        return 0
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 10):
        raise invalid("Last-Event-ID", "not an event id of this stream")
    return int(last_event_id)
