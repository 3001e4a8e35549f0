"""Records as the API shows them."""

import hashlib
from dataclasses import asdict
from typing import Any

from pydantic import BaseModel

from nova.api.functions import (
    AsyncDestinations,
    AsyncPolicyView,
    CapacityPolicyView,
    CaptureView,
    ConfigView,
    Destination,
    EgressRule,
    Function,
    FunctionUrlView,
    LimitsView,
    MountedVolume,
    NetworkPolicyView,
    ProvisionedWindow,
    Urls,
)
from nova.api.versions import VersionSummary
from nova.domain import asyncs
from nova.domain.function import NetworkPolicy
from nova.domain.identity import Scope
from nova.domain.version import FunctionSettings, Recorded, VersionConfig
from nova.errors import NovaError
from nova.store.functions import FunctionRecord
from nova.store.versions import VersionRecord


def config_members(config: VersionConfig, recorded: Recorded) -> dict[str, Any]:
    """The members of :class:`ConfigView`."""
    limits = config.limits
    return {
        "runtime": config.runtime,
        "handler": config.handler,
        "entry_point": config.entry,
        "entry_kind": config.entry_kind,
        "mode": config.mode,
        "memory_mb": limits.memory_mb,
        "timeout_s": config.timeout_s,
        "stream_idle_s": config.stream_idle_s,
        "snapshot": config.snapshot,
        "instance_concurrency": config.concurrency,
        "min_replicas": recorded.min_replicas,
        "max_replicas": recorded.max_replicas,
        "idle_ttl_s": recorded.idle_ttl_s,
        "max_calls": recorded.max_calls,
        "max_instance_age_s": recorded.max_instance_age_s,
        "provisioned": [ProvisionedWindow.model_validate(asdict(window)) for window in recorded.provisioned],
        "capacity_policy": CapacityPolicyView.model_validate(asdict(recorded.capacity)),
        "backend": config.backend,
        "limits": LimitsView(
            vcpus=limits.vcpus or None,
            tmp_mb=limits.tmp_mb,
            pids=limits.pids,
            open_files=limits.open_files,
            net_mbps=limits.net_mbps or None,
        ),
        "network_policy": _policy(config.network),
        "env_vars": dict(config.env),
        "dependency_files": list(config.dependency_files),
        "layers": [f"{layer.name}@{layer.version}" for layer in config.layers],
        "mounts": [
            MountedVolume(volume=mount.volume, path=mount.path, read_only=mount.read_only) for mount in config.mounts
        ],
        "function_url": FunctionUrlView(enabled=recorded.function_url, invoke_mode=recorded.url_mode),
        "capture": CaptureView(
            payloads=recorded.capture.payloads,
            max_kb=recorded.capture.max_kb,
            redact=list(recorded.capture.redact),
        ),
        "async_policy": AsyncPolicyView.model_validate(asdict(recorded.async_policy)),
        "async_destinations": AsyncDestinations(
            on_success=_destination(recorded.async_destinations.on_success),
            on_failure=_destination(recorded.async_destinations.on_failure),
        ),
    }


def _destination(target: asyncs.Destination | None) -> Destination | None:
    return None if target is None else Destination(type=target.type, target=target.target)


def config_view(config: VersionConfig) -> ConfigView:
    """A version's configuration, with the settings that it recorded."""
    return ConfigView(**config_members(config, config.recorded))


def function_view(function: FunctionRecord, head: VersionRecord) -> Function:
    return Function(
        **config_members(head.config, function.settings.recorded),
        id=function.id,
        tenant_id=function.scope.tenant,
        namespace=function.scope.namespace,
        name=function.name,
        description=function.settings.description,
        tags=dict(function.settings.tags),
        version=function.live_version,
        head_version=function.head_version,
        latest_version=function.latest_version,
        code_hash=head.code_hash,
        code_size=head.code_size,
        compile_status=head.compile_status,
        compile_error=head.compile_error,
        build_id=head.build_id,
        urls=Urls(
            invoke=f"/v1/functions/{function.name}/invoke",
            function=_function_url(function.scope, function.name) if function.settings.recorded.function_url else None,
        ),
        created_by=function.created_by,
        created_at=function.created_at,
        updated_at=function.updated_at,
    )


def version_members(function: FunctionRecord, version: VersionRecord) -> dict[str, Any]:
    """The members of :class:`VersionSummary`."""
    return {
        "version": version.version,
        "description": version.description,
        "runtime": version.config.runtime,
        "handler": version.config.handler,
        "code_hash": version.code_hash,
        "code_size": version.code_size,
        "compile_status": version.compile_status,
        "compile_error": version.compile_error,
        "build_id": version.build_id,
        "live": version.version == function.live_version,
        "aliases": sorted(alias.name for alias in function.aliases.values() if version.version in alias.versions),
        "created_by": version.created_by,
        "created_at": version.created_at,
    }


def version_summary(function: FunctionRecord, version: VersionRecord) -> VersionSummary:
    return VersionSummary(**version_members(function, version))


def settable_fields(config: VersionConfig, settings: FunctionSettings) -> dict[str, Any]:
    """What is set now, in the form in which it is set: the target of a merge patch."""
    shown = ConfigView(**config_members(config, settings.recorded)).model_dump(mode="json", exclude_none=True)
    for name in ("entry_point", "entry_kind", "dependency_files", "layers", "mounts"):
        del shown[name]
    if not config.handler_given:
        del shown["handler"]
    return {**shown, "description": settings.description, "tags": dict(settings.tags)}


def etag(token: str, shown: BaseModel) -> str:
    """A strong validator of a resource: its token, which changes with every write, and a digest of what is shown."""
    digest = hashlib.sha256(shown.model_dump_json().encode()).hexdigest()
    return f"{token}.{digest[:12]}"


def check_match(wanted: str | None, current: str | None) -> None:
    """Refuse a change that was made for another state of the resource; ``current`` None: there is none yet.

    Raises ``etag_mismatch``.
    """
    if wanted is not None and wanted != current:
        raise NovaError("etag_mismatch", "If-Match names another state; read the resource again")


def _policy(policy: NetworkPolicy | None) -> NetworkPolicyView | None:
    if policy is None:
        return None
    return NetworkPolicyView(
        isolation_mode=policy.isolation_mode,
        egress_rules=[EgressRule(host=r.host, port=r.port, protocol=r.protocol) for r in policy.egress_rules],
        deny_external_access=policy.deny_external_access,
    )


def _function_url(scope: Scope, name: str) -> str:
    if scope == Scope():
        return f"/fn/{name}"
    return f"/t/{scope.tenant}/{scope.namespace}/fn/{name}"
