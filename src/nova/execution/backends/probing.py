"""Backends that are looked at when there is time, or when somebody asks; and whether anything ever booted on one."""

import asyncio
import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import structlog

from nova import __version__
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.function import Limits, NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.base import RESOURCES, STRENGTH, Backend, Capabilities, InstanceSpec, Isolation
from nova.ids import new_id
from nova.service import to_its_end

log = structlog.get_logger(__name__)

START_S: Final = 10.0
AGAIN_S: Final = 30.0
"""What was said of a backend is good for so long; one that was not available is looked at again after it."""
PROOF_S: Final = 120.0
_PROOF_LIMITS: Final = Limits(memory_mb=256)
_ISOLATION: Final[Mapping[str, Isolation]] = {
    "firecracker": "vm",
    "qemu": "vm",
    "sandbox": "container",
    "docker": "container",
    "wasm": "wasm",
}


def unavailable(name: str, reason: str) -> Capabilities:
    """Of a backend that cannot be had here."""
    nothing = dict.fromkeys(RESOURCES, "no")
    return Capabilities(False, reason, _ISOLATION.get(name, "process"), nothing, strength=STRENGTH.get(name, 0))  # type: ignore[arg-type]


class Candidate:
    """A backend that may be there. :meth:`look` starts it, once, and asks what it can do; whatever goes wrong is the reason
    why it is not available, and no trouble of anybody else's."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Backend],
        missing: Callable[[], str] = str,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``missing`` says what this host lacks for it, empty when it is worth a try; ``make`` makes it then. Both may import
        what nobody else needs, so they are called in a thread."""
        self.name = name
        self.backend: Backend | None = None
        self.known: Capabilities | None = None
        """what it said last; None before the first look"""
        self._make = make
        self._missing = missing
        self._clock = clock
        self._looked = 0.0
        self._turn = asyncio.Lock()

    @classmethod
    def of(cls, backend: Backend) -> "Candidate":
        """One that is there already."""
        return cls(backend.name, lambda: backend)

    @property
    def stale(self) -> bool:
        return self.known is None or self._clock.monotonic() - self._looked > AGAIN_S

    async def look(self) -> Capabilities:
        """What it can do, not older than :data:`AGAIN_S` seconds. Never raises."""
        async with self._turn:
            if self.known is None or self.stale:
                try:
                    async with asyncio.timeout(START_S):
                        self.known = await self._ask()
                except Exception as error:
                    self.known = unavailable(self.name, _told(error))
                    log.warning("a backend is not available", backend=self.name, reason=self.known.reason)
                self._looked = self._clock.monotonic()
            return self.known

    async def _ask(self) -> Capabilities:
        if self.backend is None:
            if reason := await to_its_end(self._missing):
                return unavailable(self.name, reason)
            backend = await to_its_end(self._make)
            try:
                await backend.start()
            except BaseException:
                await _closed(backend)
                raise
            self.backend = backend
        return await self.backend.capabilities()

    async def close(self) -> None:
        async with self._turn:
            if self.backend is not None:
                await self.backend.close()


async def _closed(backend: Backend) -> None:
    try:
        await backend.close()
    except Exception:
        log.exception("a backend that did not start could not be closed", backend=backend.name)


def _told(error: Exception) -> str:
    if isinstance(error, NovaError):
        return error.detail
    if isinstance(error, TimeoutError):
        return f"it did not start within {START_S:g} s"
    if not isinstance(error, OSError | ImportError | RuntimeError | ValueError):
        log.error("a backend failed to start", exc_info=error)
    return str(error) or type(error).__name__


class Proofs:
    """Which backends have booted an instance on this host, kept in one file.

    A proof is good for the files (programs, kernels, images), the kernel and the version of Nova that it was made with. A
    failure is not kept: the next daemon tries again.
    """

    def __init__(self, file: Path, depends: Mapping[str, Callable[[], Iterable[Path]]]) -> None:
        """``depends``: by backend, the files that its boots depend on."""
        self._file = file
        self._depends = depends

    def holds(self, backend: str) -> bool:
        kept = self._read().get(backend)
        return isinstance(kept, str) and kept == self._key(backend)

    def keep(self, backend: str) -> None:
        proofs = {**self._read(), backend: self._key(backend)}
        beside = self._file.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(proofs, sort_keys=True))
        beside.replace(self._file)

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _key(self, backend: str) -> str:
        words = [__version__, platform.release(), platform.machine()]
        for path in sorted(self._depends.get(backend, tuple)()):
            with contextlib.suppress(OSError):
                found = path.stat()
                words.append(f"{path} {found.st_size} {found.st_mtime_ns}")
        return hashlib.sha256("\n".join(words).encode()).hexdigest()


async def prove(backend: Backend, capabilities: Capabilities) -> str:
    """Boot an instance without code and hear its agent; why that did not work, empty when it did."""
    runtimes = capabilities.runtimes
    runtime = "python" if runtimes is None or "python" in runtimes else min(runtimes, default="")
    if not runtime:
        return "it has no runtime to boot"
    spec = InstanceSpec(new_id(), runtime, "", None, _PROOF_LIMITS, NetworkPolicy(isolation_mode="strict"))
    try:
        async with asyncio.timeout(PROOF_S):
            instance = await backend.create(spec)
            try:
                return "" if await instance.channel.ping(5.0) else "the agent of a guest did not answer"
            finally:
                await backend.stop(instance, reason="probe")
    except Exception as error:
        return f"a guest did not boot: {_told(error)}"


def refused(capabilities: Capabilities, reason: str) -> Capabilities:
    """What is left of a backend whose probe failed."""
    return replace(capabilities, available=False, reason=reason)
