"""This worker's part of what all workers of a ``nova up`` may have together: of the node's instances, and of a function's."""

from dataclasses import replace
from typing import Any, cast

from nova.config import PoolSettings
from nova.domain.function import FunctionSnapshot
from nova.domain.ownership import Ownership
from nova.execution.admission import NodeMemory
from nova.execution.snapshots import NetworkDefaults, RuntimeResolver, SnapshotMaker
from nova.store.functions import FunctionRecord
from nova.store.versions import VersionRecord


class PoolPart:
    """``pool.*`` as a worker's fleet reads it: the node's bound is this worker's part of it, everything else is as set now."""

    def __init__(self, settings: PoolSettings, ownership: Ownership) -> None:
        self._settings = settings
        self._ownership = ownership
        self._capacity = NodeMemory().capacity()

    @property
    def max_global_instances(self) -> int:
        whole = self._settings.max_global_instances or self._capacity
        each, over = divmod(whole, self._ownership.count)
        return max(1, each + (self._ownership.own < over))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._settings, name)


def part_of(settings: PoolSettings, ownership: Ownership) -> PoolSettings:
    """The settings of a fleet that is one of several on this node."""
    return cast(PoolSettings, PoolPart(settings, ownership))


class PartMaker(SnapshotMaker):
    """Makes snapshots whose ``max_replicas`` is this worker's part of the function's."""

    def __init__(self, runtimes: RuntimeResolver, networks: NetworkDefaults, ownership: Ownership) -> None:
        super().__init__(runtimes, networks)
        self._ownership = ownership

    def make(self, function: FunctionRecord, version: VersionRecord) -> FunctionSnapshot:
        snapshot = super().make(function, version)
        whole = snapshot.max_replicas
        part = self._ownership.part((function.scope.tenant, function.scope.namespace, function.name), whole)
        # a function that has just been given fewer instances than there are workers is gathered again within a second
        return snapshot if part == whole else replace(snapshot, max_replicas=max(1, part))
