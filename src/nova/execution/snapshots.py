"""From rows to a :class:`FunctionSnapshot`, and the key that decides which instances a snapshot may use."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from sys import getsizeof
from types import MappingProxyType
from typing import Protocol

from nova.domain.function import FunctionSnapshot, NetworkPolicy
from nova.domain.shadow import SHADOW_VARIABLE
from nova.domain.version import VersionConfig
from nova.errors import NovaError
from nova.payload import encode
from nova.store.functions import FunctionRecord
from nova.store.versions import VersionRecord

_OUTSIDE_THE_KEY = frozenset(
    {
        "pool_key",
        "compile_status",
        "build_id",
        "max_replicas",
        "idle_ttl_s",
        "function_url",
        "capture",
        "capacity",
        "max_calls",
        "max_instance_age_s",
        "generation",
        "shadow",
    }
)
"""What may change while instances live: it shapes calls or pools, never an instance."""


class RuntimeName(Protocol):
    """A resolved runtime: ``python3.11`` as given becomes ``python`` and the version that is installed."""

    @property
    def runtime(self) -> str: ...

    @property
    def version(self) -> str: ...


class RuntimeResolver(Protocol):
    def resolve(self, runtime: str) -> RuntimeName:
        """Raises NovaError ``runtime_unavailable`` when this node has no toolchain for it."""
        ...


class NetworkDefaults(Protocol):
    def default_network(self, backend: str, runtime: str) -> NetworkPolicy:
        """The policy of functions that name none, on the backend that ``backend`` (or ``auto``) stands for."""
        ...

    async def ready(self, backend: str, runtime: str) -> None:
        """Wait until :meth:`default_network` knows this backend."""
        ...


class SnapshotMaker:
    """Makes snapshots of built versions."""

    def __init__(self, runtimes: RuntimeResolver, networks: NetworkDefaults) -> None:
        self._runtimes = runtimes
        self._networks = networks

    async def ready(self, version: VersionRecord) -> None:
        """Wait until what :meth:`make` has to know of the node is known."""
        try:
            runtime = self._runtimes.resolve(version.config.runtime).runtime
        except NovaError:  # make() will say so
            return
        await self._networks.ready(version.config.backend, runtime)

    def make(self, function: FunctionRecord, version: VersionRecord) -> FunctionSnapshot:
        """Raises NovaError when this node lacks the runtime, ValueError for a version that is not built."""
        if not version.built or version.artifact is None:
            raise ValueError(f"version {version.version} of {function.name} is not built")
        config, recorded = version.config, function.settings.recorded
        runtime = self._runtimes.resolve(config.runtime)
        snapshot = FunctionSnapshot(
            scope=function.scope,
            function_id=function.id,
            name=function.name,
            version=version.version,
            runtime=runtime.runtime,
            runtime_version=runtime.version,
            handler=config.handler,
            entry=config.entry,
            entry_kind=config.entry_kind,
            mode=config.mode,
            timeout_s=config.timeout_s,
            concurrency=config.concurrency,
            limits=config.limits,
            network=config.network or self._networks.default_network(config.backend, runtime.runtime),
            env=MappingProxyType(dict(config.env)),
            artifact=version.artifact,
            compile_status=version.compile_status,
            build_id=version.build_id,
            backend=config.backend,
            max_replicas=_most(recorded.max_replicas, config),
            idle_ttl_s=recorded.idle_ttl_s,
            max_calls=recorded.max_calls,
            max_instance_age_s=recorded.max_instance_age_s,
            capacity=recorded.capacity,
            function_url=recorded.function_url,
            capture=recorded.capture,
            generation=function.generation,
            stream_idle_s=config.stream_idle_s,
            snapshot=config.snapshot,
            shadow=function.shadow,
            layers=config.layers,
            mounts=config.mounts,
        )
        return replace(snapshot, pool_key=pool_key(snapshot))


def _most(max_replicas: int, config: VersionConfig) -> int:
    """One instance where it must be the only one that writes to a volume: more would only wait for it."""
    return 1 if any(mount.exclusive for mount in config.mounts) else max_replicas


def shadowed(snapshot: FunctionSnapshot) -> FunctionSnapshot:
    """The same version for copies of calls: its instances are their own, and are told."""
    marked = replace(snapshot, env=MappingProxyType({**snapshot.env, SHADOW_VARIABLE: "1"}))
    return replace(marked, pool_key=pool_key(marked))


def pool_key(snapshot: FunctionSnapshot) -> str:
    """A digest over everything that shapes an instance, the function's identity included."""
    plain = asdict(replace(snapshot, env={}))
    shape = {name: value for name, value in plain.items() if name not in _OUTSIDE_THE_KEY}
    shape["env"] = sorted(snapshot.env.items())
    return hashlib.sha256(encode(shape)).hexdigest()


def weight(snapshot: FunctionSnapshot) -> int:
    """Bytes that a cached snapshot takes, rather too many than too few (``tests/execution/test_catalog_memory.py``)."""
    texts = _texts(snapshot.env) + sum(map(getsizeof, snapshot.capture.redact))
    mounted = 450 * len(snapshot.layers) + 400 * len(snapshot.mounts)
    return 1800 + texts + mounted + sum(250 + len(rule.host) for rule in snapshot.network.egress_rules)


def record_weight(function: FunctionRecord) -> int:
    """Bytes that a cached function takes beside its snapshots."""
    settings = function.settings
    aliases = sum(
        350
        + getsizeof(alias.name)
        + getsizeof(alias.description)
        + 150 * len(alias.split)
        + sum(120 + getsizeof(rule.name) + getsizeof(rule.value) for rule in alias.match)
        for alias in function.aliases.values()
    )
    texts = _texts(settings.tags) + sum(map(getsizeof, settings.recorded.capture.redact))
    if function.shadow is not None:
        texts += 300 + sum(map(getsizeof, function.shadow.ignore))
    windows = 400 * len(settings.recorded.provisioned)
    return 2900 + getsizeof(settings.description) + texts + aliases + windows


def _texts(named: Mapping[str, str]) -> int:
    """With 50 bytes for each place in the dictionary."""
    return sum(getsizeof(name) + getsizeof(value) + 50 for name, value in named.items())
