"""Images of runtimes in the engine: imported from the platform's own image files, once for each digest."""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

import structlog

from nova.errors import NovaError
from nova.execution.backends.docker.engine import Engine

log = structlog.get_logger(__name__)

LABEL_IMAGE = "nova.image"


class ImageFile(Protocol):
    """A root folder as a file."""

    @property
    def digest(self) -> str: ...

    @property
    def path(self) -> Path: ...


class ImageFiles(Protocol):
    """Where image files come from."""

    def find(self, runtime: str, form: Literal["tar"]) -> ImageFile | None:
        """The file of a runtime, None when nobody has built it. Raises NovaError for runtimes that cannot have one."""
        ...

    def require(self, runtime: str, form: Literal["tar"]) -> ImageFile:
        """As :meth:`find`; raises NovaError ``runtime_unavailable`` with the command that makes what is missing."""
        ...


class EngineImages:
    """``prefix`` begins the repository names: ``nova-runtime-python:<12 digits of the digest>``."""

    def __init__(self, engine: Engine, files: ImageFiles, prefix: str) -> None:
        self._engine = engine
        self._files = files
        self._prefix = prefix
        self._tags: dict[str, str] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def runtimes(self, candidates: Sequence[str]) -> frozenset[str]:
        """Those of ``candidates`` that have an image file."""
        return frozenset(filter(self._has, candidates))

    async def ensure(self, runtime: str) -> str:
        """The name of the runtime's image, which is in the engine then.

        Raises NovaError ``runtime_unavailable`` with the command that makes a missing one; EngineLost, EngineRefused.
        """
        if runtime in self._tags:
            return self._tags[runtime]
        async with self._turns[runtime]:
            file = await asyncio.to_thread(self._files.require, runtime, "tar")
            digest = file.digest.removeprefix("sha256:")
            tag = f"{self._prefix}{runtime}:{digest[:12]}"
            if not await self._engine.has_image(tag):
                await self._engine.import_image(file.path, tag, {LABEL_IMAGE: digest})
                log.info("image imported into the engine", image=tag)
            self._tags[runtime] = tag
        return tag

    def forget(self) -> None:
        """Somebody may have removed images, or made newer ones: look again before the next use."""
        self._tags.clear()

    def _has(self, runtime: str) -> bool:
        try:
            return self._files.find(runtime, "tar") is not None
        except NovaError:
            return False
