"""Requests that bring code: a JSON body, or a multipart one with an archive."""

import asyncio
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request

from nova.config import LimitSettings
from nova.control import archives
from nova.control.sources import limits_of
from nova.domain.tree import MIB, Tree
from nova.errors import NovaError, invalid
from nova.http import body as bodies
from nova.payload import too_large

M = TypeVar("M", bound=BaseModel)
_PARTS = ("archive", "meta")
_AT_ONCE = 2
"""Archives in memory at the same time: each may hold as much as limits.unpacked_mb."""


class Uploads:
    """Reads deploys. One object serves all handlers, because it bounds the memory that they take together."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._unpacking = asyncio.Semaphore(_AT_ONCE)

    async def read(self, http: Request, model: type[M]) -> tuple[M, Tree | None]:
        """The request's members, and the tree of its archive when it has one.

        Multipart: ``archive`` is the file, ``meta`` (optional) the JSON members. The archive is spooled to disk while it
        arrives. Raises ``validation_failed``, ``payload_too_large``, ``unsupported_media_type`` or ``invalid_json``.
        """
        kind = http.headers.get("content-type", "")
        try:
            if kind.partition(";")[0].strip().lower() == "multipart/form-data":
                return await self._multipart(http, model)
            bodies.require_json(kind)
            declared = http.headers.get("content-length")
            limit = max(self._limits.body_mb, self._limits.code_mb) * MIB
            raw = await bodies.read(http.receive, declared.encode() if declared else None, limit)
        except ClientDisconnect:
            raise bodies.ClientGone from None
        return _members(model, raw or b"{}"), None

    async def _multipart(self, http: Request, model: type[M]) -> tuple[M, Tree]:
        try:
            async with http.form(max_files=1, max_fields=1, max_part_size=self._limits.body_mb * MIB) as form:
                parts = dict(form.multi_items())
                if unknown := [name for name in parts if name not in _PARTS]:
                    raise NovaError("unknown_field", f"{unknown[0][:64]}: no such part; send archive and meta")
                archive, meta = parts.get("archive"), parts.get("meta", "{}")
                if not isinstance(archive, UploadFile):
                    raise invalid("archive", "send the archive as a file part")
                if not isinstance(meta, str):
                    raise invalid("meta", "send the members as a JSON text part")
                if (archive.size or 0) > self._limits.archive_mb * MIB:
                    raise too_large(self._limits.archive_mb * MIB)
                members = _members(model, meta.encode())
                async with self._unpacking:
                    tree = await asyncio.to_thread(archives.unpack, archive.file, limits_of(self._limits))
        except MultiPartException as exc:
            raise NovaError("validation_failed", f"the multipart body is not valid: {exc.message}") from None
        return members, tree


def _members(model: type[M], raw: bytes) -> M:
    decoded: Any = bodies.decode(raw)
    if not isinstance(decoded, dict):
        raise NovaError("validation_failed", "send a JSON object")
    return bodies.parse(model, raw)
