"""Handlers of aliases."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nova.api import aliases as api
from nova.api.table import Empty, Page, PageQuery
from nova.control.deploy import Deployer
from nova.control.views import check_match, etag
from nova.domain.alias import MAX_ALIASES, NOT_STICKY, WHOLE, Alias, Match, Split, Sticky, split_of
from nova.errors import FieldError, NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.store.aliases import AliasRecord, AliasStore
from nova.store.db import Connection
from nova.store.functions import FunctionRecord, FunctionStore, announce
from nova.store.versions import VersionStore


class AliasHandlers:
    """Create, read, change and delete aliases. A change reaches every process with the function's generation."""

    def __init__(
        self, deployer: Deployer, functions: FunctionStore, versions: VersionStore, aliases: AliasStore
    ) -> None:
        self._deployer = deployer
        self._functions = functions
        self._versions = versions
        self._aliases = aliases

    @handles("alias.create")
    async def create(self, req: Req[api.AliasCreate, Empty]) -> Answer:
        split = _split(req.body)
        if split is None:
            raise _one_target()
        async with self._deployer.writing() as conn:
            function = await self._locked(conn, req)
            if len(function.aliases) >= MAX_ALIASES and req.body.name not in function.aliases:
                raise NovaError("invalid_state", f"a function has at most {MAX_ALIASES} aliases")
            alias = Alias(
                req.body.name, split, req.body.description or "", sticky_of(req.body.sticky), _match(req.body)
            )
            await self._require_versions(conn, function, alias)
            if not await self._aliases.insert(conn, function.id, alias):
                raise NovaError("already_exists", f"alias {alias.name!r} exists already")
            record = await self._changed(conn, function, alias.name)
        return _answer(record)

    @handles("alias.list")
    async def list(self, req: Req[None, PageQuery]) -> Page[api.Alias]:
        function = await self._functions.lookup(req.scope, req.params["name"])
        if function is None:
            raise not_found("function", req.params["name"])
        values = paging.decode(req.query.cursor, str)
        after = str(values[0]) if values else None
        found = await self._aliases.page(function.id, after=after, limit=req.query.limit + 1)
        shown = found[: req.query.limit]
        more = paging.encode([shown[-1].alias.name]) if len(found) > len(shown) else None
        return Page[api.Alias](items=[_view(record) for record in shown], next_cursor=more)

    @handles("alias.get")
    async def get(self, req: Req[None, Empty]) -> Answer:
        function = await self._functions.lookup(req.scope, req.params["name"])
        record = await self._aliases.get(function.id, req.params["alias"]) if function else None
        if record is None:
            raise not_found("alias" if function else "function", req.params["alias" if function else "name"])
        return _answer(record)

    @handles("alias.patch")
    async def patch(self, req: Req[api.AliasPatch, Empty]) -> Answer:
        members: Mapping[str, Any] = req.raw_body
        if {"version", "traffic_split"} & members.keys() and _split(req.body) is None:
            raise _one_target()
        async with self._deployer.writing() as conn:
            function = await self._locked(conn, req)
            alias = await self._current(conn, function, req)
            if (split := _split(req.body)) is not None:
                alias = replace(alias, split=split)
            if "sticky" in members:
                alias = replace(alias, sticky=sticky_of(req.body.sticky))
            if "match" in members:
                alias = replace(alias, match=_match(req.body))
            await self._require_versions(conn, function, alias)
            if "description" in members:
                alias = replace(alias, description=req.body.description or "")
            await self._aliases.save(conn, function.id, alias)
            record = await self._changed(conn, function, alias.name)
        return _answer(record)

    @handles("alias.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        async with self._deployer.writing() as conn:
            function = await self._locked(conn, req)
            alias = await self._current(conn, function, req)
            await self._aliases.delete(conn, function.id, alias.name)
            await announce(conn, req.scope, function.name, await self._functions.touch(conn, function.id))

    async def _locked(self, conn: Connection, req: Req[Any, Empty]) -> FunctionRecord:
        function = await self._functions.lock(conn, req.scope, req.params["name"])
        if function is None:
            raise not_found("function", req.params["name"])
        return function

    async def _current(self, conn: Connection, function: FunctionRecord, req: Req[Any, Empty]) -> Alias:
        """The alias in the path, in the state that the caller expects."""
        record = await self._aliases.get(function.id, req.params["alias"], conn)
        if record is None:
            raise not_found("alias", req.params["alias"])
        check_match(req.if_match, etag(record.etag, _view(record)))
        return record.alias

    async def _require_versions(self, conn: Connection, function: FunctionRecord, alias: Alias) -> None:
        for version in sorted(alias.versions):
            if await self._versions.version(function.id, version, conn) is None:
                raise invalid("version", f"version {version} does not exist")

    async def _changed(self, conn: Connection, function: FunctionRecord, name: str) -> AliasRecord:
        generation = await self._functions.touch(conn, function.id)
        await announce(conn, function.scope, function.name, generation)
        record = await self._aliases.get(function.id, name, conn)
        if record is None:
            raise not_found("alias", name)
        return record


def _split(body: api.AliasPatch) -> Split | None:
    """Where a request points to; None when it does not say. Raises ``validation_failed``."""
    if body.version is not None and body.traffic_split is not None:
        raise _one_target()
    if body.version is not None:
        return ((body.version, WHOLE),)
    if body.traffic_split is None:
        return None
    try:
        return split_of({int(version): round(weight * 100) for version, weight in body.traffic_split.items()})
    except ValueError as exc:
        raise invalid("traffic_split", str(exc)) from None


def sticky_of(given: api.Sticky | None) -> Sticky:
    return NOT_STICKY if given is None else Sticky(given.by, given.name)


def _match(body: api.AliasPatch) -> tuple[Match, ...]:
    return tuple(Match(rule.by, rule.name, rule.value, rule.version) for rule in body.match or ())


def _one_target() -> NovaError:
    message = "give one of version and traffic_split"
    return NovaError(
        "validation_failed", message, errors=[FieldError(f, message) for f in ("version", "traffic_split")]
    )


def _view(record: AliasRecord) -> api.Alias:
    split = record.alias.split
    single = len(split) == 1
    return api.Alias(
        name=record.alias.name,
        version=split[0][0] if single else None,
        traffic_split=None if single else {str(version): weight / 100 for version, weight in split},
        sticky=api.Sticky(by=record.alias.sticky.by, name=record.alias.sticky.name),
        match=[api.Match(by=m.by, name=m.name, value=m.value, version=m.version) for m in record.alias.match],
        description=record.alias.description,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def _answer(record: AliasRecord) -> Answer:
    view = _view(record)
    return Answer(view, headers={"ETag": f'"{etag(record.etag, view)}"'})
