"""From what a user asked for to the configuration that a version freezes: defaults, runtime rules, entry point."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nova.api.functions import Destination as DestinationFields
from nova.api.functions import FunctionFields, NetworkPolicy
from nova.domain.asyncs import AsyncDestinations, AsyncPolicy, Destination
from nova.domain.function import Capacity, Capture, EgressRule, EntryKind, Limits, Mode, Window
from nova.domain.function import NetworkPolicy as Policy
from nova.domain.tree import EXECUTABLE, SourceFile, Tree
from nova.domain.version import FunctionSettings, Recorded, VersionConfig
from nova.errors import invalid
from nova.runtimes.manifest import Manifest
from nova.runtimes.registry import Runtimes


@dataclass(frozen=True, slots=True)
class Place:
    """Where execution begins: the file, the handler in it, and whether that handler is there at all."""

    entry: str
    handler: str
    kind: EntryKind


@dataclass(frozen=True, slots=True)
class Language:
    """A runtime as one function uses it. ``handler`` None: the user names none."""

    runtime: str
    manifest: Manifest
    handler: str | None

    @classmethod
    def of(cls, runtimes: Runtimes, runtime: str, handler: str | None) -> "Language":
        """Raises ``validation_failed`` naming ``runtime`` or ``handler``, or ``runtime_unavailable``."""
        resolved = runtimes.resolve(runtime)
        manifest = resolved.manifest
        if handler is not None and not manifest.accepts_handler(handler):
            example = manifest.default_handler
            raise invalid(
                "handler", f"{handler!r} has not the form that {resolved.runtime} expects, such as {example!r}"
            )
        return cls(resolved.runtime, manifest, handler)

    @property
    def inline_path(self) -> str:
        """Where a single file goes: the module of the handler."""
        return self.manifest.inline_name(self.handler or self.manifest.default_handler)

    def place(self, tree: Tree, entry_point: str | None) -> Place:
        """The file to load: the one given, else the handler's, else one of the manifest's candidates.

        Raises ``validation_failed`` naming ``entry_point`` or ``handler``.
        """
        if entry_point is not None and entry_point not in tree:
            raise invalid("entry_point", f"{entry_point!r} is not among the files")
        if self.handler is not None:
            return self._place_named(tree, self.handler, entry_point)
        default = self.manifest.default_handler
        entry = entry_point or self.manifest.find_entry(tree.paths, default)
        entry = entry or next((path for path in self.manifest.entry_candidates if path in tree), None)
        if entry is None:
            candidates = ", ".join(self.manifest.entry_candidates)
            raise invalid("handler", f"no file to begin with: name a handler, or provide one of {candidates}")
        handler = self._handler_in(entry)
        return Place(entry, handler, self._kind(tree, entry, handler))

    def _place_named(self, tree: Tree, handler: str, entry_point: str | None) -> Place:
        """A handler that was named is taken at its word: when the file lacks it, Init says so."""
        looked_for = self.manifest.entry_names(handler)
        if entry_point is not None and entry_point not in looked_for:
            raise invalid("entry_point", f"{entry_point!r} is not where the handler {handler!r} would be")
        entry = entry_point or self.manifest.find_entry(tree.paths, handler)
        if entry is None:
            raise invalid("handler", f"no file for {handler!r}: looked for {', '.join(looked_for)}")
        return Place(entry, handler, "handler")

    def _handler_in(self, entry: str) -> str:
        """The default handler's function, in the file that it is."""
        default, separator = self.manifest.default_handler, self.manifest.module_separator
        if entry in self.manifest.entry_names(default):
            return default
        if not separator:
            return entry
        module = posixpath.splitext(entry)[0].replace("/", separator)
        return f"{module}.{default.rpartition('.')[2]}"

    def _kind(self, tree: Tree, entry: str, handler: str) -> EntryKind:
        if not self.manifest.script:  # whatever it is, the worker runs it
            return "handler"
        file = tree.get(entry)
        if file is None or file.text is None or entry not in self.manifest.entry_names(handler):
            return "script"
        return self.manifest.entry_kind(file.text, handler, entry)


def with_executable_entry(tree: Tree, entry: str, language: Language) -> Tree:
    """A runtime without an extension runs the entry file itself, which must then be executable."""
    file = tree.get(entry)
    if language.manifest.extension or file is None or file.is_link or file.mode == EXECUTABLE:
        return tree
    return tree.with_files(SourceFile(file.path, EXECUTABLE, file.data))


def settings_of(fields: FunctionFields) -> FunctionSettings:
    """What acts at once, with defaults filled in."""
    url, capture, policy, targets = fields.function_url, fields.capture, fields.async_policy, fields.async_destinations
    recorded = Recorded(
        **_given(
            min_replicas=fields.min_replicas,
            max_replicas=fields.max_replicas,
            idle_ttl_s=fields.idle_ttl_s,
            max_calls=fields.max_calls,
            max_instance_age_s=fields.max_instance_age_s,
            provisioned=_windows(fields),
            capacity=Capacity(**_given(**fields.capacity_policy.model_dump())) if fields.capacity_policy else None,
            function_url=url.enabled if url else None,
            url_mode=url.invoke_mode if url else None,
            capture=Capture(
                **_given(
                    payloads=capture.payloads,
                    max_kb=capture.max_kb,
                    redact=tuple(capture.redact) if capture.redact is not None else None,
                )
            )
            if capture
            else None,
            async_policy=AsyncPolicy(**_given(**policy.model_dump())) if policy else None,
            async_destinations=AsyncDestinations(_destination(targets.on_success), _destination(targets.on_failure))
            if targets
            else None,
        )
    )
    most = recorded.max_replicas
    if most and recorded.min_replicas > most:
        raise invalid("min_replicas", f"at most max_replicas, which is {most}")
    if most and (large := [window for window in recorded.provisioned if window.replicas > most]):
        raise invalid("provisioned", f"replicas: at most max_replicas, which is {most}, not {large[0].replicas}")
    return FunctionSettings(recorded, fields.description or "", _present(fields.tags))


def _windows(fields: FunctionFields) -> tuple[Window, ...] | None:
    if fields.provisioned is None:
        return None
    return tuple(
        Window(window.cron, window.duration_s, window.replicas, window.time_zone, window.name)
        for window in fields.provisioned
    )


def _destination(given: DestinationFields | None) -> Destination | None:
    return None if given is None else Destination(given.type, given.target)


def config_of(
    fields: FunctionFields,
    runtime: str,
    language: Language,
    place: Place,
    dependency_files: Sequence[str],
    recorded: Recorded,
) -> VersionConfig:
    """What a version freezes, with defaults filled in. Raises ``validation_failed``."""
    limits = fields.limits
    modes = language.manifest.modes
    mode: Mode = fields.mode or ("persistent" if "persistent" in modes else "process")
    if mode not in modes:
        raise invalid("mode", f"{language.runtime} has {' and '.join(modes)}")
    if mode == "durable" and place.kind == "script":
        raise invalid("mode", "a script has no steps: a durable function has a handler")
    if mode == "durable" and (fields.instance_concurrency or 1) > 1:
        raise invalid("instance_concurrency", "a durable function has one call at a time in an instance")
    return VersionConfig(
        runtime=runtime,
        handler=place.handler,
        entry=place.entry,
        entry_kind=place.kind,
        handler_given=language.handler is not None,
        mode=mode,
        limits=Limits(
            **_given(
                memory_mb=fields.memory_mb,
                vcpus=limits.vcpus if limits else None,
                pids=limits.pids if limits else None,
                tmp_mb=limits.tmp_mb if limits else None,
                open_files=limits.open_files if limits else None,
                net_mbps=limits.net_mbps if limits else None,
            )
        ),
        network=_policy(fields.network_policy),
        env=_present(fields.env_vars),
        dependency_files=tuple(sorted(dependency_files)),
        recorded=recorded,
        **_given(
            timeout_s=fields.timeout_s,
            stream_idle_s=fields.stream_idle_s,
            snapshot=fields.snapshot,
            concurrency=fields.instance_concurrency,
            backend=fields.backend,
        ),
    )


def _policy(policy: NetworkPolicy | None) -> Policy | None:
    if policy is None:
        return None
    rules = tuple(EgressRule(rule.host, rule.port, rule.protocol) for rule in policy.egress_rules or [])
    return Policy(
        **_given(isolation_mode=policy.isolation_mode, deny_external_access=policy.deny_external_access),
        egress_rules=rules,
    )


def _given(**values: Any) -> dict[str, Any]:
    """Without those that are None, which leaves them to the defaults."""
    return {name: value for name, value in values.items() if value is not None}


def _present(values: Mapping[str, str | None] | None) -> dict[str, str]:
    return {name: value for name, value in (values or {}).items() if value is not None}


def merge_patch(target: Any, patch: Any) -> Any:
    """JSON Merge Patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged
