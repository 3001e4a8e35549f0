"""Making one instance for a function: its tree on disk, an isolated place from a backend, the code loaded in it."""

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from nova.clock import Clock
from nova.domain.function import FunctionSnapshot
from nova.errors import NovaError, as_refusal
from nova.execution.backends.base import (
    Backend,
    Channel,
    InitFailed,
    InitSpec,
    Instance,
    InstanceSpec,
    LayerMount,
    VolumeMount,
)
from nova.execution.slots import BootTimes, LoadFailed
from nova.ids import new_id

log = structlog.get_logger(__name__)


class Artifacts(Protocol):
    async def materialise(self, digest: str) -> Path:
        """The tree of an artifact as a read-only folder on this node; raises NovaError."""
        ...


class Guests(Protocol):
    def attach(self, snapshot: FunctionSnapshot, channel: Channel) -> None:
        """Let the instance behind ``channel``, which has loaded ``snapshot``, ask for what the guest API offers."""
        ...


class Kept(Protocol):
    """Functions that were loaded once and are kept so."""

    async def restore(self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec) -> Instance | None:
        """An instance that has the function loaded; None when there is none to come from. Its Init follows."""
        ...

    def restored(self, backend: Backend, snapshot: FunctionSnapshot, took_us: int) -> None:
        """The instance serves."""
        ...

    async def failed(self, backend: Backend, snapshot: FunctionSnapshot, reason: str) -> None:
        """The instance did not come up; there are to be no others like it."""
        ...

    def loaded(self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec, import_us: int) -> None:
        """An instance has loaded the function itself, and its language took so long to import it."""
        ...


class Mounts(Protocol):
    """Volumes of functions."""

    async def attach(self, snapshot: FunctionSnapshot, instance_id: str) -> tuple[VolumeMount, ...]:
        """What an instance is to mount, ready for it until it is released; raises NovaError."""
        ...

    async def release(self, instance_id: str) -> None:
        """The instance has stopped, or was never made. Idempotent; never fails."""
        ...


class BackendSelector(Protocol):
    async def select(self, snapshot: FunctionSnapshot) -> Backend:
        """The backend that runs this function; raises NovaError ``unsupported``."""
        ...


@dataclass(frozen=True, slots=True)
class Booted:
    """A loaded instance, the backend that must stop it, and how many calls it takes at once."""

    backend: Backend
    instance: Instance
    concurrency: int
    times: BootTimes


class Booter:
    """Boots instances, one call each. A failure at any point, or a cancellation, leaves no instance behind."""

    def __init__(
        self,
        artifacts: Artifacts,
        backends: BackendSelector,
        clock: Clock,
        guests: Guests | None = None,
        kept: Kept | None = None,
        mounts: Mounts | None = None,
    ) -> None:
        self._artifacts = artifacts
        self._backends = backends
        self._clock = clock
        self._guests = guests
        self._kept = kept
        self._mounts = mounts

    async def boot(self, snapshot: FunctionSnapshot) -> Booted:
        """Raises :class:`LoadFailed` for the user's code and NovaError for everything else."""
        began = self._clock.monotonic()
        backend, spec = await self.plan(snapshot)
        if not snapshot.mounts:
            return await self._make(backend, snapshot, spec, began)
        if self._mounts is None:
            raise NovaError("unsupported", "mounts: there are no volumes here")
        mounted = replace(spec, mounts=await self._mounts.attach(snapshot, spec.instance_id))
        try:
            return await self._make(backend, snapshot, mounted, began)
        except BaseException:
            await asyncio.shield(self._mounts.release(spec.instance_id))
            raise

    async def stop(self, backend: Backend, instance: Instance, *, reason: str) -> None:
        """End an instance that :meth:`boot` made, and give back what it mounted."""
        try:
            await backend.stop(instance, reason=reason)
        finally:
            if self._mounts is not None:
                await self._mounts.release(instance.instance_id)

    async def _make(self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec, began: float) -> Booted:
        booted = await self._restore(backend, snapshot, spec, began)
        return booted or await self._load(backend, snapshot, spec, began)

    async def plan(self, snapshot: FunctionSnapshot) -> tuple[Backend, InstanceSpec]:
        """Where an instance of this function is made, and what it is like. Raises NovaError."""
        backend = await self._backends.select(snapshot)
        trees = [snapshot.artifact, *(layer.artifact for layer in snapshot.layers)]
        if len(trees) > 1:
            code, *layers = await asyncio.gather(*map(self._artifacts.materialise, trees))
        else:  # here, mostly: on the path of a cold start no task is made for it
            code, layers = await self._artifacts.materialise(snapshot.artifact), []
        spec = InstanceSpec(
            instance_id=new_id(),
            runtime=snapshot.runtime,
            runtime_version=snapshot.runtime_version,
            code=code,
            limits=snapshot.limits,
            network=snapshot.network,
            layers=tuple(LayerMount(path, f"/layers/{number}") for number, path in enumerate(layers)),
        )
        return backend, spec

    async def _restore(
        self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec, began: float
    ) -> Booted | None:
        """An instance that need not load the function; None: there is none, or it did not come up."""
        instance = await self._kept.restore(backend, snapshot, spec) if self._kept is not None else None
        if instance is None or self._kept is None:
            return None
        try:
            booted = await self._init(backend, instance, snapshot, began)
        except LoadFailed as failed:
            await self._kept.failed(backend, snapshot, failed.error.message)
            return None
        self._kept.restored(backend, snapshot, booted.times.instance_us + booted.times.init_us)
        return booted

    async def _load(self, backend: Backend, snapshot: FunctionSnapshot, spec: InstanceSpec, began: float) -> Booted:
        booted = await self._init(backend, await backend.create(spec), snapshot, began)
        if self._kept is not None:
            self._kept.loaded(backend, snapshot, spec, booted.times.import_us)
        return booted

    async def _init(self, backend: Backend, instance: Instance, snapshot: FunctionSnapshot, began: float) -> Booted:
        created = self._clock.monotonic()
        try:
            done = await instance.channel.init(InitSpec.of(snapshot))
        except BaseException as exc:
            await _undo(backend, instance)
            if isinstance(exc, InitFailed):
                spent = self._clock.monotonic()
                times = BootTimes(instance.source, _us(created - began), _us(spent - created), exc.stdout, exc.stderr)
                raise LoadFailed(snapshot, exc.error, instance.instance_id, times) from None
            raise
        loaded = self._clock.monotonic()
        times = BootTimes(
            instance.source,
            _us(created - began),
            _us(loaded - created),
            done.stdout,
            done.stderr,
            done.import_us,
            instance.runtime_us,
        )
        if self._guests is not None:
            self._guests.attach(snapshot, instance.channel)
        return Booted(backend, instance, max(1, min(done.concurrency, snapshot.concurrency)), times)


async def _undo(backend: Backend, instance: Instance) -> None:
    """Stop an instance that nobody will own. Not to be interrupted: the boot may just have been cancelled."""
    stopping = asyncio.ensure_future(backend.stop(instance, reason="init failed"))
    try:
        await asyncio.shield(stopping)
    except asyncio.CancelledError:
        await stopping
        raise
    except Exception:
        log.exception("an instance could not be stopped", instance=instance.instance_id)


def as_failure(exc: BaseException) -> NovaError | LoadFailed:
    """What a caller is told of a failed boot; details of our own faults stay in the log."""
    if isinstance(exc, NovaError | LoadFailed):
        return exc
    log.error("an instance could not be made", exc_info=exc)
    return as_refusal(exc) or NovaError("internal", "an instance could not be made")


def _us(seconds: float) -> int:
    return max(0, round(seconds * 1_000_000))
