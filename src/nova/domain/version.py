"""What a function is made of: the settings that act at once, and the configuration that each version freezes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nova.domain.asyncs import AsyncDestinations, AsyncPolicy
from nova.domain.function import Capacity, Capture, EntryKind, Limits, Mode, NetworkPolicy, SnapshotPolicy, Window
from nova.domain.layer import LayerRef
from nova.domain.volume import Mount

UrlMode = Literal["buffered", "stream"]
"""How a function URL answers: when the call has ended, or as its pieces come."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Settings that act at once on every version. Each version keeps a copy, which activating it puts back.

    ``min_replicas`` of the live version stand ready. ``max_replicas`` 0 means the node's capacity. ``idle_ttl_s`` None means
    the pool's own. ``max_calls`` and ``max_instance_age_s`` 0 mean that instances are not replaced.
    """

    min_replicas: int = 0
    max_replicas: int = 100
    idle_ttl_s: float | None = None
    max_calls: int = 0
    max_instance_age_s: int = 0
    provisioned: tuple[Window, ...] = ()
    capacity: Capacity = field(default_factory=Capacity)
    function_url: bool = True
    url_mode: UrlMode = "buffered"
    capture: Capture = field(default_factory=Capture)
    async_policy: AsyncPolicy = field(default_factory=AsyncPolicy)
    async_destinations: AsyncDestinations = field(default_factory=AsyncDestinations)


@dataclass(frozen=True, slots=True)
class FunctionSettings:
    """Everything of a function that lies outside its versions."""

    recorded: Recorded = field(default_factory=Recorded)
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionConfig:
    """The frozen configuration of one version; its code is the tree with the version's ``code_hash``.

    ``runtime`` is the id as the user gave it; ``handler_given`` tells a handler that was named from one that followed from
    the entry file. ``network`` None means the backend's default: ``egress-only``, or offline where the host cannot filter.
    ``dependency_files`` names the files of the tree that came by that field: new code keeps them unless it brings its own.
    """

    runtime: str
    handler: str
    entry: str
    entry_kind: EntryKind
    handler_given: bool = False
    mode: Mode = "persistent"
    timeout_s: int = 30
    stream_idle_s: int = 0
    snapshot: SnapshotPolicy = "auto"
    concurrency: int = 1
    backend: str = "auto"
    limits: Limits = field(default_factory=Limits)
    network: NetworkPolicy | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    dependency_files: tuple[str, ...] = ()
    layers: tuple[LayerRef, ...] = ()
    mounts: tuple[Mount, ...] = ()
    recorded: Recorded = field(default_factory=Recorded)
