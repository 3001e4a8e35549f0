"""Every setting of the platform: sections, keys, defaults, and which of them act without a restart.

Durations are seconds as floats; text such as ``500ms``, ``60s``, ``10m``, ``2h`` or ``30d`` is understood. A section object
is shared by whoever needs it and read at use, so a hot key acts as soon as it is set. Keys of features that this version does not
have are accepted only with the value that means "off": nothing is stored that does not work.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from nova.config.access import (
    ApiKeySettings,
    AuthSettings,
    EgressSettings,
    RateLimitSettings,
    SecretsOff,
    StaticKey,
    Tier,
)
from nova.config.backends import (
    DockerSettings,
    FirecrackerSettings,
    ImageSettings,
    QemuSettings,
    SandboxSettings,
    WasmSettings,
)
from nova.config.events import (
    EventSettings,
    QueueSettings,
    RetentionSettings,
    SchedulesSettings,
    TriggerSettings,
    WorkflowSettings,
)
from nova.config.functions import (
    BuildSettings,
    ExecutionSettings,
    ExecutorSettings,
    FunctionSettings,
    LimitSettings,
    NetworkPolicySettings,
    PoolSettings,
    RuntimePoolSettings,
    VolumeSettings,
)
from nova.config.server import (
    ClusterSettings,
    DaemonSettings,
    GrpcSettings,
    HttpSettings,
    LoggingSettings,
    MetricsSettings,
    PostgresSettings,
    TracingSettings,
)
from nova.config.values import Section, network, seconds

__all__ = [
    "KEYS",
    "ApiKeySettings",
    "AuthSettings",
    "BuildSettings",
    "ClusterSettings",
    "DaemonSettings",
    "DockerSettings",
    "EgressSettings",
    "ExecutionSettings",
    "ExecutorSettings",
    "FirecrackerSettings",
    "FunctionSettings",
    "GrpcSettings",
    "HttpSettings",
    "ImageSettings",
    "Key",
    "LimitSettings",
    "LoggingSettings",
    "MetricsSettings",
    "NetworkPolicySettings",
    "PoolSettings",
    "PostgresSettings",
    "QemuSettings",
    "QueueSettings",
    "RateLimitSettings",
    "RetentionSettings",
    "RuntimePoolSettings",
    "SandboxSettings",
    "SchedulesSettings",
    "SecretsOff",
    "Section",
    "Settings",
    "StaticKey",
    "Tier",
    "TracingSettings",
    "TriggerSettings",
    "VolumeSettings",
    "WasmSettings",
    "WorkflowSettings",
    "assign",
    "get",
    "network",
    "seconds",
]


class Settings(Section):
    postgres: PostgresSettings = PostgresSettings()
    pool: PoolSettings = PoolSettings()
    executor: ExecutorSettings = ExecutorSettings()
    daemon: DaemonSettings = DaemonSettings()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()
    auth: AuthSettings = AuthSettings()
    rate_limit: RateLimitSettings = RateLimitSettings()
    http: HttpSettings = HttpSettings()
    limits: LimitSettings = LimitSettings()
    network_policy: NetworkPolicySettings = NetworkPolicySettings()
    sandbox: SandboxSettings = SandboxSettings()
    docker: DockerSettings = DockerSettings()
    firecracker: FirecrackerSettings = FirecrackerSettings()
    qemu: QemuSettings = QemuSettings()
    wasm: WasmSettings = WasmSettings()
    images: ImageSettings = ImageSettings()
    functions: FunctionSettings = FunctionSettings()
    build: BuildSettings = BuildSettings()
    execution: ExecutionSettings = ExecutionSettings()
    queue: QueueSettings = QueueSettings()
    schedules: SchedulesSettings = SchedulesSettings()
    workflows: WorkflowSettings = WorkflowSettings()
    events: EventSettings = EventSettings()
    triggers: TriggerSettings = TriggerSettings()
    cluster: ClusterSettings = ClusterSettings()
    retention: RetentionSettings = RetentionSettings()
    egress: EgressSettings = EgressSettings()
    tracing: TracingSettings = TracingSettings()
    grpc: GrpcSettings = GrpcSettings()
    secrets: SecretsOff = SecretsOff()
    volumes: VolumeSettings = VolumeSettings()

    @property
    def log_level(self) -> str:
        return self.logging.level or self.daemon.log_level

    @property
    def data_dir(self) -> Path:
        return self.daemon.data_dir.expanduser().resolve()

    @property
    def images_dir(self) -> Path:
        return Path(self.images.dir).expanduser().resolve() if self.images.dir else self.data_dir / "images"

    @property
    def volumes_dir(self) -> Path:
        return Path(self.volumes.dir).expanduser().resolve() if self.volumes.dir else self.data_dir / "volumes"


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its dotted name and what is known of it."""

    name: str
    field: FieldInfo
    section: type[Section]

    @property
    def attribute(self) -> str:
        return self.name.rpartition(".")[2]

    def _extra(self, flag: str) -> bool:
        extra = self.field.json_schema_extra
        return isinstance(extra, dict) and bool(extra.get(flag))

    @property
    def hot(self) -> bool:
        return self._extra("hot")

    @property
    def secret(self) -> bool:
        return self._extra("secret")

    @property
    def default(self) -> Any:
        return self.field.get_default(call_default_factory=True)


def _keys(model: type[Section], prefix: str) -> Iterator[Key]:
    for name, info in model.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Section):
            yield from _keys(info.annotation, f"{prefix}{name}.")
        else:
            yield Key(f"{prefix}{name}", info, model)


KEYS: dict[str, Key] = {key.name: key for key in _keys(Settings, "")}
"""Every setting by its dotted name."""


def get(settings: Settings, name: str) -> Any:
    """The value of a dotted key."""
    value: Any = settings
    for part in name.split("."):
        value = getattr(value, part)
    return value


def assign(settings: Settings, name: str, value: Any) -> None:
    """Set one key in place, validated. Raises pydantic's ValidationError."""
    *parents, leaf = name.split(".")
    section: Any = settings
    for part in parents:
        section = getattr(section, part)
    setattr(section, leaf, value)
