"""Changing what a function mounts: everything else of it stays, and a new version is published."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from nova.api.functions import Deploy, FunctionSpec
from nova.control.deploy import Deployer, Draft
from nova.control.views import check_match, etag, function_view, settable_fields
from nova.domain.identity import Scope
from nova.domain.layer import LayerRef
from nova.domain.version import VersionConfig
from nova.domain.volume import Mount
from nova.errors import not_found
from nova.http import body as bodies
from nova.http.handler import Answer, Req
from nova.payload import encode
from nova.store.db import Connection
from nova.store.functions import FunctionRecord, FunctionStore
from nova.store.versions import VersionRecord, VersionStore

View = Callable[[int, VersionConfig], BaseModel]
"""Shows a part of a version's configuration."""


@dataclass(slots=True)
class Change:
    """A function in a transaction of its own, locked."""

    conn: Connection
    function: FunctionRecord
    head: VersionRecord
    deployer: Deployer
    activate: bool
    actor: str

    async def apply(
        self, *, layers: tuple[LayerRef, ...] | None = None, mounts: tuple[Mount, ...] | None = None
    ) -> None:
        """Publish a version with these; None: as before. Raises as a deploy does."""
        spec = bodies.parse(FunctionSpec, encode(settable_fields(self.head.config, self.function.settings)))
        draft = Draft(spec.runtime, spec, activate=self.activate, actor=self.actor, layers=layers, mounts=mounts)
        self.function = await self.deployer.deploy(self.conn, self.function, self.head, draft)
        self.head = await head_of(self.deployer.versions, self.function, self.conn)

    def answer(self, view: View) -> Answer:
        return _answer(self.function, self.head, view)


class Remounter:
    def __init__(self, deployer: Deployer) -> None:
        self._deployer = deployer
        self._functions: FunctionStore = deployer.functions

    @asynccontextmanager
    async def changing(self, req: Req[Any, Any], deploy: Deploy | None) -> AsyncIterator[Change]:
        """The function that the request names, in the state that the caller expects."""
        async with self._deployer.writing() as conn:
            function = await self._functions.lock(conn, req.scope, req.params["name"])
            if function is None:
                raise not_found("function", req.params["name"])
            head = await head_of(self._deployer.versions, function, conn)
            check_match(req.if_match, etag(function.etag, function_view(function, head)))
            yield Change(conn, function, head, self._deployer, deploy != "publish", req.identity.subject)

    async def shown(self, scope: Scope, name: str, view: View) -> Answer:
        function = await self._functions.lookup(scope, name)
        if function is None:
            raise not_found("function", name)
        return _answer(function, await head_of(self._deployer.versions, function), view)


async def head_of(versions: VersionStore, function: FunctionRecord, conn: Connection | None = None) -> VersionRecord:
    head = await versions.version(function.id, function.head_version, conn)
    if head is None:
        raise not_found("function", function.name)
    return head


def _answer(function: FunctionRecord, head: VersionRecord, view: View) -> Answer:
    """With the ETag of the function: that is what changes."""
    headers = {"ETag": f'"{etag(function.etag, function_view(function, head))}"'}
    return Answer(view(head.version, head.config), None, headers)
