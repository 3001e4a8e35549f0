"""Every setting of the platform: sections, keys, defaults, and which of them act without a restart.

Durations are seconds as floats; text such as ``500ms``, ``60s``, ``10m``, ``2h`` or ``30d`` is understood. A section object
is shared by whoever needs it and read at use, so a hot key acts as soon as it is set. Keys of features that this version does not
have are accepted only with the value that means "off": nothing is stored that does not work.
"""

import ipaddress
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")


def seconds(value: Any) -> float:
    """``1.5``, ``"60s"``, ``"500ms"`` → seconds."""
    if isinstance(value, bool):
        raise ValueError("a duration such as 500ms, 60s or 10m")
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _UNITS[match[2]]
    raise ValueError("a duration such as 500ms, 60s or 10m")


def network(text: str) -> str:
    """An IP address or a network such as ``10.0.0.0/8``."""
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address or a network such as 10.0.0.0/8") from None
    return text


Seconds = Annotated[float, BeforeValidator(seconds), Field(gt=0)]
HOT: JsonDict = {"hot": True}
SECRET: JsonDict = {"secret": True}


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class PostgresSettings(Section):
    dsn: str = Field(
        "", description="connection string; empty: the embedded server in the data directory", json_schema_extra=SECRET
    )
    max_conns: int = Field(20, ge=2, le=1000)
    min_conns: int = Field(2, ge=1, le=1000)
    statement_timeout: Seconds = 30.0


class RuntimePoolSettings(Section):
    runtimes: dict[str, int] = Field(
        default={"python": 4, "node": 2}, description="blank instances kept ready per runtime"
    )
    refill_interval: Seconds = Field(30.0, description="how often missing blank instances are looked for")


class PoolSettings(Section):
    idle_ttl: Seconds = Field(
        60.0, description="an instance without calls is stopped after this", json_schema_extra=HOT
    )
    cleanup_interval: Seconds = 10.0
    health_check_interval: Seconds = 30.0
    max_global_instances: int = Field(0, ge=0, description="0: as many as memory allows", json_schema_extra=HOT)
    max_queue_depth: int = Field(
        1000, ge=0, le=100_000, description="waiting calls per function", json_schema_extra=HOT
    )
    max_queue_wait: Seconds = Field(10.0, json_schema_extra=HOT)
    runtime_pool: RuntimePoolSettings = RuntimePoolSettings()


class ExecutorSettings(Section):
    log_batch_size: int = Field(100, ge=1, le=10_000)
    log_buffer_size: int = Field(1000, ge=1, le=1_000_000)
    log_flush_interval: Seconds = 0.5
    log_timeout: Seconds = 5.0
    log_retention_days: int = Field(30, ge=1, le=3650, json_schema_extra=HOT)
    capture_max_kb: int = Field(
        64, ge=0, le=6144, description="captured payload per call, at most", json_schema_extra=HOT
    )


class DaemonSettings(Section):
    http_addr: str = "127.0.0.1:9000"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    data_dir: Path = Path("~/.nova")
    drain_s: Seconds = Field(10.0, description="how long a shutdown waits for calls in flight")


class LoggingSettings(Section):
    level: Literal["", "debug", "info", "warning", "error"] = Field(
        "", description="wins over daemon.log_level", json_schema_extra=HOT
    )
    format: Literal["text", "json"] = "text"


class MetricsSettings(Section):
    namespace: str = Field("nova", pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")
    histogram_buckets: list[float] = Field(
        default=[5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000], description="milliseconds"
    )
    max_series: int = Field(2000, ge=1, le=1_000_000)


class StaticKey(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    key: str = Field(min_length=16)
    tier: str = "standard"
    tenant_id: str = "default"
    role: Literal["platform-admin", "admin", "operator", "developer", "invoker", "viewer"] = "admin"


class ApiKeySettings(Section):
    enabled: bool = True
    static_keys: list[StaticKey] = Field(default=[], json_schema_extra=SECRET)


class AuthSettings(Section):
    enabled: Literal["auto", "true", "false"] = Field(
        "auto", description="auto: a direct loopback caller is the local operator"
    )
    api_keys: ApiKeySettings = ApiKeySettings()


class Tier(Section):
    requests_per_second: float = Field(gt=0)
    burst_size: int = Field(ge=1)


class RateLimitSettings(Section):
    enabled: bool = Field(False, json_schema_extra=HOT)
    default_tier: str = Field("standard", json_schema_extra=HOT)
    tiers: dict[str, Tier] = Field(
        default={
            "standard": Tier(requests_per_second=100, burst_size=200),
            "premium": Tier(requests_per_second=1000, burst_size=2000),
        },
        min_length=1,
        json_schema_extra=HOT,
    )


class HttpSettings(Section):
    cors_origins: list[str] = []
    trusted_proxies: list[Annotated[str, AfterValidator(network)]] = Field(
        default=[], description="addresses or networks whose Forwarded headers count"
    )
    max_connections: int = Field(10_000, ge=1)
    header_timeout: Seconds = Field(10.0, description="for a request's headers, and between two reads of its body")


class LimitSettings(Section):
    sync_payload_mb: int = Field(6, ge=1, le=64, json_schema_extra=HOT)
    code_mb: int = Field(10, ge=1, le=64, json_schema_extra=HOT)
    body_mb: int = Field(10, ge=1, le=64, json_schema_extra=HOT)
    archive_mb: int = Field(100, ge=1, le=1024, json_schema_extra=HOT)
    unpacked_mb: int = Field(250, ge=1, le=2048, json_schema_extra=HOT)
    file_mb: int = Field(50, ge=1, le=512, json_schema_extra=HOT)
    files: int = Field(5000, ge=1, le=50_000, json_schema_extra=HOT)


class NetworkPolicySettings(Section):
    default_isolation: Literal["egress-only", "strict", "none"] = "egress-only"


class SandboxSettings(Section):
    subnet: str = Field("172.31.0.0/16", description="private addresses for instances that may use the network")
    cgroup_root: str = Field(
        "", description="cgroup to work under; empty: the one delegated to the daemon, else the top"
    )
    uid_base: int = Field(200_000, ge=65_536, description="first host uid that instances get as root")


class FunctionSettings(Section):
    code_path_roots: list[Path] = Field(default=[], description="folders from which code_path may take code")
    build_wait: Seconds = Field(60.0, description="how long a call waits for a version that is being built")


class BuildSettings(Section):
    workers: int = Field(2, ge=1, le=64)
    timeout: Seconds = 600.0
    memory_mb: int = Field(2048, ge=128)
    network: Literal["registries", "none"] = "registries"
    cache_mb: int = Field(4096, ge=64)
    per_tenant: int = Field(2, ge=1, le=64)


class ExecutionSettings(Section):
    backend: Literal["auto", "sandbox"] = "auto"
    strict_limits: bool = Field(False, description="refuse limits that the host can only enforce softly")


class QueueSettings(Section):
    lease: Seconds = 30.0
    batch: int = Field(32, ge=1, le=1000)


class TracingOff(Section):
    enabled: Literal[False] = False


class GrpcOff(Section):
    enabled: Literal[False] = False


class SecretsOff(Section):
    enabled: Literal[False] = False


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
    functions: FunctionSettings = FunctionSettings()
    build: BuildSettings = BuildSettings()
    execution: ExecutionSettings = ExecutionSettings()
    queue: QueueSettings = QueueSettings()
    tracing: TracingOff = TracingOff()
    grpc: GrpcOff = GrpcOff()
    secrets: SecretsOff = SecretsOff()

    @property
    def log_level(self) -> str:
        return self.logging.level or self.daemon.log_level

    @property
    def data_dir(self) -> Path:
        return self.daemon.data_dir.expanduser().resolve()


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
