"""Functions: what can be set, what is shown, and the routes of the resource itself."""

import contextlib
import ipaddress
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from nova.api.table import Kind, Model, Page, PageQuery, Plane, Route
from nova.domain import asyncs, cron, windows
from nova.domain.environment import check_environment
from nova.domain.function import (
    CapturePolicy,
    CompileStatus,
    EntryKind,
    IsolationMode,
    Mode,
    ShedStatus,
    SnapshotPolicy,
)
from nova.domain.hosts import host_pattern, is_webhook_url
from nova.domain.message import is_topic
from nova.domain.names import NAME, is_name
from nova.domain.version import UrlMode
from nova.domain.volume import MOUNT_PATH

Backend = Literal["auto", "sandbox", "docker", "firecracker", "qemu", "wasm"]
Deploy = Literal["activate", "publish"]
Name = Annotated[str, Field(pattern=NAME)]
POINTER = r"^(/([^/~]|~[01])*)*$"
"""A JSON Pointer (RFC 6901)."""


def _address(host: str) -> str:
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_network(host, strict=False)) if "/" in host else str(ipaddress.ip_address(host))
    return host_pattern(host)


def _environment(variables: dict[str, str | None] | None) -> dict[str, str | None] | None:
    check_environment(variables or {})
    return variables


class FileContent(Model):
    """A file that is not plain text, or that may be executed."""

    base64: str
    executable: bool = False


class Limits(Model):
    """Limits of one instance beside memory. ``vcpus``: unset, one for each 1769 MiB of memory."""

    vcpus: float | None = Field(None, ge=0.1, le=32)
    tmp_mb: int | None = Field(None, ge=1, le=10240, description="size of /tmp; default 64")
    pids: int | None = Field(None, ge=8, le=4096, description="processes and threads; default 256")
    open_files: int | None = Field(None, ge=32, le=65536, description="per process; default 1024")
    net_mbps: int | None = Field(None, ge=1, le=10_000, description="Mbit/s each way; unset, not limited")


class EgressRule(Model):
    """One destination that may be reached. ``port`` 0: every port.

    ``host``: an IP address, a CIDR, a host name, or ``*.example.com`` for every name below ``example.com``.
    """

    host: Annotated[str, Field(max_length=255), AfterValidator(_address)]
    port: int = Field(0, ge=0, le=65535)
    protocol: Literal["tcp", "udp", "any"] = "any"


class NetworkPolicy(Model):
    """What instances may reach. The host, other instances and link-local addresses are blocked under every policy.

    ``egress-only``: the rules, or anywhere when there are none. ``strict``: only the rules, so none means offline.
    ``none``: anywhere. ``deny_external_access`` leaves only private addresses.
    """

    isolation_mode: IsolationMode | None = Field(None, description="default egress-only")
    egress_rules: list[EgressRule] | None = Field(None, max_length=100)
    deny_external_access: bool | None = None


class FunctionUrl(Model):
    enabled: bool | None = Field(None, description="serve the function under /fn/{name}; default true")
    invoke_mode: UrlMode | None = Field(
        None, description="buffered (default): answer when the call has ended; stream: as its pieces come"
    )


class Capture(Model):
    """Which payloads the records of calls keep. Over ``max_kb`` (KiB) a payload is not kept; ``redact``: JSON Pointers."""

    payloads: CapturePolicy | None = Field(None, description="default all")
    max_kb: int | None = Field(None, ge=0, le=6144, description="default 64")
    redact: list[Annotated[str, Field(max_length=256, pattern=POINTER)]] | None = Field(None, max_length=100)


class AsyncPolicy(Model):
    """How asynchronous calls of the function are tried, unless the call says otherwise."""

    max_attempts: int | None = Field(None, ge=1, le=asyncs.MAX_ATTEMPTS, description="executions, default 3")
    backoff_base_ms: int | None = Field(None, ge=0, le=asyncs.MAX_BACKOFF_MS, description="default 1000; doubles")
    backoff_max_ms: int | None = Field(None, ge=0, le=asyncs.MAX_BACKOFF_MS, description="default 60000")
    max_age_s: int | None = Field(
        None, ge=1, le=asyncs.MAX_AGE_S, description="older calls are given up; default 86400"
    )
    max_inflight: int | None = Field(None, ge=1, le=asyncs.MAX_AT_ONCE, description="run at once; unset, not limited")
    rate_limit_per_s: float | None = Field(
        None, gt=0, le=asyncs.MAX_RATE, description="start per second; unset, not limited"
    )


class Destination(Model):
    """``target``: the name of a function, topic or workflow of the same scope, or the http or https URL of a webhook."""

    type: asyncs.DestinationType
    target: str = Field(min_length=1, max_length=2048)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.type == "function" and not is_name(self.target):
            raise ValueError("target: the name of a function")
        if self.type == "topic" and not is_topic(self.target):
            raise ValueError("target: the name of a topic")
        if self.type == "workflow" and not is_name(self.target):
            raise ValueError("target: the name of a workflow")
        if self.type == "webhook" and not is_webhook_url(self.target):
            raise ValueError("target: an http or https URL without credentials")
        return self


class AsyncDestinations(Model):
    """Where the outcome of asynchronous calls is sent, as a CloudEvents object."""

    on_success: Destination | None = None
    on_failure: Destination | None = None


class CapacityPolicy(Model):
    """When calls are turned away, on each node. Null or 0: the settings of the pool alone decide."""

    max_inflight: int | None = Field(
        None, ge=0, le=100_000, description="calls that run or wait, at once; default 0: not limited"
    )
    max_queue_depth: int | None = Field(
        None, ge=0, le=100_000, description="waiting calls; default pool.max_queue_depth, which also bounds it"
    )
    max_queue_wait_ms: int | None = Field(
        None, ge=1, le=900_000, description="longest wait for an instance; default pool.max_queue_wait"
    )
    shed_status_code: ShedStatus | None = Field(None, description="of calls that are turned away; default 503")


class ProvisionedWindow(Model):
    """``replicas`` instances stand ready for ``duration_s`` seconds from each instant of ``cron`` in ``time_zone`` on."""

    cron: str = Field(min_length=1, max_length=cron.MAX_LENGTH)
    time_zone: str = Field("UTC", max_length=64)
    duration_s: int = Field(ge=60, le=7 * 86400)
    replicas: int = Field(ge=1, le=1000)
    name: str = Field("", max_length=64)

    @model_validator(mode="after")
    def _understood(self) -> Self:
        try:
            cron.parse(self.cron, self.time_zone, anchor=windows.ANCHOR)
        except cron.CronError as exc:
            raise ValueError(f"cron: {exc}") from None
        except ValueError as exc:
            raise ValueError(f"time_zone: {exc}") from None
        return self


class FunctionFields(Model):
    """Everything that can be set and has a default. An absent member and null both mean the default."""

    handler: str | None = Field(None, min_length=1, max_length=256, description="default by runtime")
    mode: Mode | None = Field(None, description="persistent (default): loaded once; process: fresh for each call")
    memory_mb: int | None = Field(None, ge=128, le=10240, description="hard limit of one instance; default 128")
    timeout_s: int | None = Field(None, ge=1, le=900, description="longest call; default 30")
    stream_idle_s: int | None = Field(
        None, ge=0, le=900, description="longest silence of a streaming call; default 0: any"
    )
    snapshot: SnapshotPolicy | None = Field(
        None, description="auto (default): instances may come from one that was loaded once and is kept; off: never"
    )
    instance_concurrency: int | None = Field(
        None, ge=1, le=1000, description="calls at once in one instance; default 1"
    )
    min_replicas: int | None = Field(None, ge=0, le=1000, description="instances kept ready; default 0")
    max_replicas: int | None = Field(
        None, ge=0, le=1000, description="instances at once; 0: what the node can hold; default 100"
    )
    idle_ttl_s: float | None = Field(None, ge=1, le=86400, description="default: the setting pool.idle_ttl")
    max_calls: int | None = Field(
        None, ge=0, le=1_000_000_000, description="an instance is replaced after so many; default 0: never"
    )
    max_instance_age_s: int | None = Field(
        None, ge=0, le=30 * 86400, description="an instance is replaced after so long; default 0: never"
    )
    provisioned: list[ProvisionedWindow] | None = Field(
        None, max_length=20, description="when more instances than min_replicas stand ready; of several, the most"
    )
    capacity_policy: CapacityPolicy | None = None
    backend: Backend | None = Field(None, description="isolation technology; default auto")
    limits: Limits | None = None
    network_policy: NetworkPolicy | None = None
    env_vars: Annotated[dict[str, str | None] | None, AfterValidator(_environment)] = None
    description: str | None = Field(None, max_length=4096)
    tags: (
        dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=256)] | None] | None
    ) = Field(None, max_length=50)
    function_url: FunctionUrl | None = None
    capture: Capture | None = None
    async_policy: AsyncPolicy | None = None
    async_destinations: AsyncDestinations | None = None


class Source(Model):
    """Code, in exactly one form: ``code`` (one file's text), ``files`` by path, or ``code_path`` on the server."""

    code: str | None = None
    files: dict[str, str | FileContent] | None = Field(None, min_length=1)
    code_path: str | None = Field(None, min_length=1, max_length=4096)
    dependency_files: dict[str, str] | None = Field(
        None, description="dependency manifests and lock files by name; kept when only the code changes"
    )


class FunctionSpec(FunctionFields, Source):
    """A whole function, as PUT takes it."""

    runtime: str = Field(min_length=1, max_length=64)


class FunctionCreate(FunctionSpec):
    name: Name


class FunctionPatch(FunctionFields, Source):
    """JSON Merge Patch: null goes back to the default; ``env_vars``, ``tags`` and the nested objects merge by key."""

    runtime: str | None = Field(None, min_length=1, max_length=64)
    deploy: Deploy | None = Field(
        None, description="activate (default): new versions go live once built; publish: they only exist"
    )


class LimitsView(Model):
    vcpus: float | None
    tmp_mb: int
    pids: int
    open_files: int
    net_mbps: int | None


class NetworkPolicyView(Model):
    isolation_mode: IsolationMode
    egress_rules: list[EgressRule]
    deny_external_access: bool


class FunctionUrlView(Model):
    enabled: bool
    invoke_mode: UrlMode


class CaptureView(Model):
    payloads: CapturePolicy
    max_kb: int
    redact: list[str]


class AsyncPolicyView(Model):
    max_attempts: int
    backoff_base_ms: int
    backoff_max_ms: int
    max_age_s: int
    max_inflight: int | None
    rate_limit_per_s: float | None


class CapacityPolicyView(Model):
    max_inflight: int
    max_queue_depth: int | None
    max_queue_wait_ms: int | None
    shed_status_code: ShedStatus


class MountedVolume(Model):
    """``path`` is where it lies inside: one folder below ``/mnt``."""

    volume: Name
    path: str = Field(pattern=MOUNT_PATH)
    read_only: bool = False


class ConfigView(Model):
    """The frozen configuration of one version. ``network_policy`` null: the default of this server. ``layers``: each as
    name@version, set by a route of their own, as are ``mounts``."""

    runtime: str
    handler: str
    entry_point: str
    entry_kind: EntryKind
    mode: Mode
    memory_mb: int
    timeout_s: int
    stream_idle_s: int
    snapshot: SnapshotPolicy
    instance_concurrency: int
    min_replicas: int
    max_replicas: int
    idle_ttl_s: float | None
    max_calls: int
    max_instance_age_s: int
    provisioned: list[ProvisionedWindow]
    capacity_policy: CapacityPolicyView
    backend: str
    limits: LimitsView
    network_policy: NetworkPolicyView | None
    env_vars: dict[str, str]
    dependency_files: list[str]
    layers: list[str]
    mounts: list[MountedVolume]
    function_url: FunctionUrlView
    capture: CaptureView
    async_policy: AsyncPolicyView
    async_destinations: AsyncDestinations


class Urls(Model):
    """Where to call it, relative to the server. ``function`` is null when the function URL is off."""

    invoke: str
    function: str | None


class Function(ConfigView):
    """A function. ``version`` is the live one; the configuration shown is that of ``head_version``, deployed last."""

    id: str
    tenant_id: str
    namespace: str
    name: str
    description: str
    tags: dict[str, str]
    version: int | None
    head_version: int
    latest_version: int
    code_hash: str
    code_size: int
    compile_status: CompileStatus
    compile_error: str | None
    build_id: str | None
    urls: Urls
    created_by: str
    created_at: datetime
    updated_at: datetime


class FunctionQuery(PageQuery):
    q: str | None = Field(None, min_length=1, max_length=256, description="part of name, description or a tag")
    runtime: str | None = Field(None, max_length=64)
    mode: Mode | None = None
    backend: Backend | None = None
    tag: str | None = Field(None, max_length=385, description="a tag's name, or name=value")
    compile_status: CompileStatus | None = None


class DeleteQuery(Model):
    """Workflows and destinations of other functions that name the function have to be changed first, in any case."""

    cascade: bool = Field(False, description="delete the subscriptions and triggers that call it, too")


class DryRun(Model):
    dry_run: bool = Field(False, description="validate and answer with the would-be resource; write nothing")


ROUTES = (
    Route(
        op="function.create",
        method="POST",
        path="/functions",
        summary="Create a function with its first version",
        plane=Plane.CONTROL,
        permission="function:create",
        audit="function.create",
        body=FunctionCreate,
        query=DryRun,
        answer=Function,
        status=201,
        resource=None,
        tag="functions",
    ),
    Route(
        op="function.list",
        method="GET",
        path="/functions",
        summary="Functions, newest first",
        plane=Plane.CONTROL,
        permission="function:read",
        query=FunctionQuery,
        answer=Page[Function],
        resource=None,
        tag="functions",
    ),
    Route(
        op="function.get",
        method="GET",
        path="/functions/{name}",
        summary="One function",
        plane=Plane.CONTROL,
        permission="function:read",
        answer=Function,
        tag="functions",
    ),
    Route(
        op="function.patch",
        method="PATCH",
        path="/functions/{name}",
        summary="Change some of a function; what its versions freeze makes a new version",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="function.update",
        body=FunctionPatch,
        query=DryRun,
        answer=Function,
        tag="functions",
    ),
    Route(
        op="function.put",
        method="PUT",
        path="/functions/{name}",
        summary="Create or replace; JSON, or multipart with `archive` and `meta` (the JSON without code)",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="function.put",
        body=FunctionSpec,
        query=DryRun,
        answer=Function,
        kind=Kind.UPLOAD,
        tag="functions",
    ),
    Route(
        op="function.delete",
        method="DELETE",
        path="/functions/{name}",
        summary="Delete a function with its versions, aliases, code, state, schedules and jobs",
        plane=Plane.CONTROL,
        permission="function:delete",
        audit="function.delete",
        query=DeleteQuery,
        status=204,
        tag="functions",
    ),
)
