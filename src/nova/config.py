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
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
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


def ipv4_network(text: str) -> str:
    """As :func:`network`, IPv4 only."""
    if ipaddress.ip_network(network(text), strict=False).version != 4:
        raise ValueError(f"{text!r} is not an IPv4 address or network")
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
    max_conns: int = Field(20, ge=2, le=1000, description="connections of this process, at most")
    min_conns: int = Field(2, ge=1, le=1000, description="connections kept open")
    statement_timeout: Seconds = Field(30.0, description="a query that takes longer is ended")


class RuntimePoolSettings(Section):
    runtimes: dict[str, int] = Field(
        default={"python": 4, "node": 2}, description="blank instances kept ready per runtime"
    )


class PoolSettings(Section):
    idle_ttl: Seconds = Field(
        60.0, description="an instance without calls is stopped after this", json_schema_extra=HOT
    )
    cleanup_interval: Seconds = Field(10.0, description="how often idle instances are looked for")
    health_check_interval: Seconds = Field(30.0, description="how often idle instances are asked for a sign of life")
    max_global_instances: int = Field(0, ge=0, description="0: as many as memory allows", json_schema_extra=HOT)
    max_tenant_instances: int = Field(
        0,
        ge=0,
        description="instances of one tenant on a node, booting ones included; 0: not limited",
        json_schema_extra=HOT,
    )
    memory_budget_mb: int = Field(
        0,
        ge=0,
        description="MiB of the machine's memory that may be in use; above nine tenths nothing boots; 0: all of it",
        json_schema_extra=HOT,
    )
    max_queue_depth: int = Field(
        1000, ge=0, le=100_000, description="waiting calls per function", json_schema_extra=HOT
    )
    max_queue_wait: Seconds = Field(
        10.0, description="a call waits this long for an instance, at most", json_schema_extra=HOT
    )
    runtime_pool: RuntimePoolSettings = RuntimePoolSettings()


class ExecutorSettings(Section):
    log_batch_size: int = Field(100, ge=1, le=10_000, description="call records written together")
    log_buffer_size: int = Field(
        1000, ge=1, le=1_000_000, description="call records in memory; more go to the spill file"
    )
    log_flush_interval: Seconds = Field(0.5, description="a batch that is not full is written after this")
    log_timeout: Seconds = Field(5.0, description="one try of writing a batch")
    log_retention_days: int = Field(
        30, ge=1, le=3650, description="call records older than this are deleted", json_schema_extra=HOT
    )
    capture_max_kb: int = Field(
        64, ge=0, le=6144, description="captured payload per call, at most", json_schema_extra=HOT
    )


class DaemonSettings(Section):
    http_addr: str = Field("127.0.0.1:9000", description="where the server listens: host:port, [v6]:port or :port")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="of the server's own log")
    data_dir: Path = Field(Path("~/.nova"), description="database, artifacts, caches and spill of this server")
    drain_s: Seconds = Field(10.0, description="how long a shutdown waits for calls in flight")
    workers: int = Field(
        1, ge=1, le=32, description="processes that `nova up` serves with; each owns a part of the functions"
    )
    spread_at: float = Field(
        0.8,
        ge=0.01,
        le=1,
        description="a function whose owner's loop wants more than this share of a core is spread over all",
    )
    planes: list[Literal["control", "execution", "scheduling", "events", "observability", "gateway"]] = Field(
        default=[], description="what `nova daemon` serves; empty: every plane"
    )


class LoggingSettings(Section):
    level: Literal["", "debug", "info", "warning", "error"] = Field(
        "", description="wins over daemon.log_level", json_schema_extra=HOT
    )
    format: Literal["text", "json"] = Field("text", description="of the server's own log, on stderr")


class MetricsSettings(Section):
    namespace: str = Field("nova", pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", description="prefix of every series")
    histogram_buckets: list[float] = Field(
        default=[5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000],
        description="upper bounds of the duration histograms, in milliseconds",
    )
    max_series: int = Field(
        2000, ge=1, le=1_000_000, description="functions with series of their own; the rest count as _other"
    )


class StaticKey(Section):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    key: str = Field(min_length=16)
    tier: str = "standard"
    tenant_id: str = "default"
    role: Literal["platform-admin", "admin", "operator", "developer", "invoker", "viewer"] = "admin"


class ApiKeySettings(Section):
    enabled: bool = Field(True, description="false: no key proves anything")
    static_keys: list[StaticKey] = Field(
        default=[],
        description="keys that are not in the database: name, key, tier, tenant_id, role",
        json_schema_extra=SECRET,
    )


class AuthSettings(Section):
    enabled: Literal["auto", "true", "false"] = Field(
        "auto",
        description="auto: a direct loopback caller is the local operator, others need a key; true: all do; false: none does",
    )
    api_keys: ApiKeySettings = ApiKeySettings()


class Tier(Section):
    requests_per_second: float = Field(gt=0)
    burst_size: int = Field(ge=1)


class RateLimitSettings(Section):
    enabled: bool = Field(False, description="limit requests per second", json_schema_extra=HOT)
    default_tier: str = Field(
        "standard", description="for callers whose tier is not one of the tiers", json_schema_extra=HOT
    )
    tiers: dict[str, Tier] = Field(
        default={
            "standard": Tier(requests_per_second=100, burst_size=200),
            "premium": Tier(requests_per_second=1000, burst_size=2000),
        },
        min_length=1,
        description="requests per second, and how many at once after a pause, by tier",
        json_schema_extra=HOT,
    )


class HttpSettings(Section):
    cors_origins: list[str] = Field(default=[], description="origins whose pages may read answers")
    trusted_proxies: list[Annotated[str, AfterValidator(network)]] = Field(
        default=[], description="addresses or networks whose Forwarded headers count"
    )
    max_connections: int = Field(10_000, ge=1, description="open at once; one more is answered 503")
    header_timeout: Seconds = Field(10.0, description="for a request's headers, and between two reads of its body")
    tls_cert: str = Field("", description="PEM file with the certificate chain; with tls_key the server speaks HTTPS")
    tls_key: str = Field("", description="PEM file with the private key")


class LimitSettings(Section):
    sync_payload_mb: int = Field(
        6, ge=1, le=64, description="a call's input, and the body of a function URL, in MiB", json_schema_extra=HOT
    )
    stream_mb: int = Field(
        1024, ge=1, le=1_048_576, description="all pieces of one streaming call, in MiB", json_schema_extra=HOT
    )
    code_mb: int = Field(10, ge=1, le=64, description="code given as one text, in MiB", json_schema_extra=HOT)
    body_mb: int = Field(10, ge=1, le=64, description="any other JSON body, in MiB", json_schema_extra=HOT)
    archive_mb: int = Field(
        100, ge=1, le=1024, description="an uploaded archive as it is sent, in MiB", json_schema_extra=HOT
    )
    unpacked_mb: int = Field(
        250, ge=1, le=2048, description="all files of a version together, in MiB", json_schema_extra=HOT
    )
    file_mb: int = Field(50, ge=1, le=512, description="one file, in MiB", json_schema_extra=HOT)
    files: int = Field(5000, ge=1, le=50_000, description="files of a version", json_schema_extra=HOT)
    state_mb: int = Field(
        64,
        ge=1,
        le=65_536,
        description="state of one function, keys and values together, in MiB",
        json_schema_extra=HOT,
    )
    workflow_nodes: int = Field(
        500,
        ge=1,
        le=100_000,
        description="nodes of a workflow, those inside of parallel nodes included",
        json_schema_extra=HOT,
    )
    map_items: int = Field(
        10_000, ge=1, le=1_000_000, description="items that a map node of a workflow goes over", json_schema_extra=HOT
    )


class NetworkPolicySettings(Section):
    default_isolation: Literal["egress-only", "strict", "none"] = Field(
        "egress-only", description="isolation_mode of functions that name no network policy"
    )
    private_egress: bool = Field(
        True, description="false: functions reach private networks only where an egress rule names them by address"
    )
    blocked: list[Annotated[str, AfterValidator(ipv4_network)]] = Field(
        default=[],
        description="addresses and networks that no function reaches, whatever its rules: databases, other nodes",
    )


class SandboxSettings(Section):
    subnet: str = Field("172.31.0.0/16", description="private addresses for instances that may use the network")
    cgroup_root: str = Field(
        "", description="cgroup to work under; empty: the one delegated to the daemon, else the top"
    )
    uid_base: int = Field(200_000, ge=65_536, description="first host uid that instances get as root")


class DockerSettings(Section):
    host: str = Field(
        "unix:///var/run/docker.sock",
        pattern=r"^(unix:///.+)?$",
        description="where the Docker engine of this host listens; empty: Docker is not used",
    )
    image_prefix: str = Field(
        "nova-runtime-", pattern=r"^[a-z0-9]([a-z0-9._/-]*[a-z0-9._/-])?$", description="begins the names of images"
    )
    templates: int = Field(1, ge=0, le=16, description="containers that stand ready for each runtime that is in use")
    channel: Literal["socket", "tcp"] = Field(
        "socket",
        description="how agents are reached; tcp: a port on 127.0.0.1, where containers cannot share a socket with the host;"
        " no templates and no egress then",
    )
    network: str = Field(
        "nova-net",
        pattern=r"^[a-z][a-z0-9-]{0,14}$",
        description="with channel tcp: the engine's network, made if missing",
    )
    port_range_min: int = Field(10_000, ge=1024, le=65_535, description="with channel tcp: the first port")
    port_range_max: int = Field(20_000, ge=1024, le=65_535, description="with channel tcp: the last port")

    @model_validator(mode="after")
    def _some_ports(self) -> Self:
        if self.port_range_max < self.port_range_min:
            raise ValueError("port_range_max is below port_range_min")
        return self


class FirecrackerSettings(Section):
    firecracker_bin: Path = Field(Path("/opt/nova/bin/firecracker"), description="the program")
    jailer_bin: Path = Field(Path("/opt/nova/bin/jailer"), description="its jailer, of the same version")
    kernel_path: Path = Field(
        Path("/opt/nova/kernel/vmlinux"), description="the kernel that machines boot, uncompressed"
    )
    snapshot_dir: Path = Field(Path("/opt/nova/snapshots"), description="where functions are kept that stay loaded")
    socket_dir: Path = Field(
        Path("/tmp/nova/sockets"),
        description="the jails of machines with their sockets; short, and best on the file system of the images",
    )
    log_dir: Path = Field(Path("/tmp/nova/logs"), description="what machines said that did not come up")
    bridge_name: str = Field(
        "novabr0", pattern=r"^[a-z][a-z0-9]{0,8}$", description="the bridge of this host that machines are behind"
    )
    subnet: str = Field("172.30.0.0/24", description="addresses of machines on it, the first is the bridge's own")
    boot_timeout: Seconds = Field(10.0, gt=0, le=120, description="how long a machine has until its agent answers")
    code_drive_size_mb: int = Field(
        16, ge=4, le=512, description="size of a code drive in MB; it grows with the code up to 512"
    )
    vsock_port: int = Field(9999, ge=1, le=65_535, description="where the agent listens inside")
    templates: bool = Field(True, description="keep machines that were booted for nobody; cold starts go on from them")
    drive_mbps: int = Field(
        0, ge=0, le=1_000_000, description="what a machine may read of each of its drives, MB a second; 0: no limit"
    )
    drive_ops: int = Field(0, ge=0, le=10_000_000, description="the same in operations a second; 0: no limit")
    uid: int = Field(400_000, ge=65_536, description="first of 1000 host users, one for each machine")
    gid: int = Field(400_000, ge=65_536, description="host group of all machines")


class QemuSettings(Section):
    bin: str = Field("qemu-system-x86_64", min_length=1, description="the program, by name or path")
    accel: Literal["auto", "kvm", "tcg"] = Field(
        "auto",
        description="kvm: this processor's virtualisation; tcg: emulation; auto: kvm if a guest has run with it here",
    )
    boot_timeout: Seconds = Field(60.0, gt=0, le=600, description="how long a machine has until its agent answers")
    bridge_name: str = Field(
        "novabr0",
        pattern=r"^[a-z][a-z0-9]{0,8}$",
        description="the bridge of this host that machines are behind; Firecracker's may be behind the same",
    )
    subnet: str = Field("172.30.0.0/24", description="addresses of machines on it, the first is the bridge's own")
    templates: bool = Field(True, description="keep machines that were booted for nobody; cold starts go on from them")
    uid: int = Field(402_000, ge=65_536, description="first of 1000 host users, one for each machine, if nova is root")
    gid: int = Field(402_000, ge=65_536, description="host group of all machines")


class WasmSettings(Section):
    fuel: int = Field(
        0,
        ge=0,
        lt=1 << 63,
        description="what a call of a WebAssembly module may use up, about one an instruction; 0: no limit",
    )


class ImageSettings(Section):
    dir: str = Field(
        "", description="images of runtimes and the kernel of machines; empty: images in the data directory"
    )


class FunctionSettings(Section):
    code_path_roots: list[Path] = Field(default=[], description="folders from which code_path may take code")
    build_wait: Seconds = Field(60.0, description="how long a call waits for a version that is being built")


class BuildSettings(Section):
    workers: int = Field(2, ge=1, le=64, description="builds at once on this node")
    timeout: Seconds = Field(600.0, description="all steps of one build")
    memory_mb: int = Field(2048, ge=128, description="one step of a build, in MiB")
    network: Literal["registries", "none"] = Field(
        "registries",
        description="registries: what pip and npm are configured for; none: local folders of packages only",
    )
    cache_mb: int = Field(
        4096, ge=64, description="MiB per tenant for cached builds and for each download cache; per node for artifacts"
    )
    per_tenant: int = Field(2, ge=1, le=64, description="builds of one tenant at once, over all nodes")


class VolumeSettings(Section):
    dir: str = Field("", description="where this node keeps the files of volumes; empty: volumes in the data directory")


class ExecutionSettings(Section):
    backend: Literal["auto", "sandbox", "docker", "firecracker", "qemu"] = Field(
        "auto", description="what functions run on that name no backend; auto: the strongest that works here"
    )
    strict_limits: bool = Field(False, description="refuse limits that the host can only enforce softly")


class QueueSettings(Section):
    lease: Seconds = Field(30.0, description="work of a process that fell silent is taken over after this")
    batch: int = Field(32, ge=1, le=1000, description="rows claimed together, at most")
    workers: int = Field(
        32, ge=1, le=4096, description="async calls that one process runs at once", json_schema_extra=HOT
    )


class TracingSettings(Section):
    enabled: bool = Field(False, description="export a span for every hop of a sampled call")
    exporter: Literal["otlp", "otlp-http", "stdout"] = Field("otlp", description="otlp is OTLP over gRPC")
    endpoint: str = Field("localhost:4317", description="of the collector: host:port, or a URL for otlp-http")
    service_name: str = Field("nova", description="service.name of the spans")
    sample_rate: float = Field(
        1.0, ge=0, le=1, description="share of the calls that are traced unless the caller's traceparent decides"
    )


class GrpcSettings(Section):
    enabled: bool = Field(False, description="nova up serves gRPC too; comet always does")
    addr: str = Field("127.0.0.1:9090", description="where gRPC listens: host:port, :port or unix:/path")
    service_token: str = Field(
        "",
        description="what planes prove themselves with; empty: one is made at first start and kept in the database",
        json_schema_extra=SECRET,
    )


class ClusterSettings(Section):
    node_id: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,64}$", description="name of this node; empty: its host name")
    address: str = Field("", description="host:port under which others reach this node's gRPC; empty: found out")
    labels: dict[str, str] = Field(default={}, description="for people and placement, such as zone")


class SchedulesSettings(Section):
    lookahead: Seconds = Field(1.0, description="how far ahead due schedules are read")


class WorkflowSettings(Section):
    workers: int = Field(
        64, ge=1, le=10_000, description="runs that one process advances at the same time", json_schema_extra=HOT
    )
    max_depth: int = Field(
        16, ge=1, le=1000, description="workflows that start one another, one below the other", json_schema_extra=HOT
    )


class TriggerSettings(Section):
    fs_roots: list[Path] = Field(
        default=[], description="directories of this machine that filesystem triggers may watch; empty: none"
    )


class RetentionSettings(Section):
    async_days: int = Field(
        7, ge=1, le=3650, description="finished async calls are kept so long", json_schema_extra=HOT
    )
    dlq_days: int = Field(30, ge=1, le=3650, description="dead letters are kept so long", json_schema_extra=HOT)
    deliveries_days: int = Field(
        7,
        ge=1,
        le=3650,
        description="what was delivered or published from an outbox is kept so long",
        json_schema_extra=HOT,
    )
    schedule_runs_days: int = Field(
        30, ge=1, le=3650, description="the history of schedules is kept so long", json_schema_extra=HOT
    )
    runs_days: int = Field(
        30, ge=1, le=3650, description="finished runs of workflows are kept so long", json_schema_extra=HOT
    )
    builds_days: int = Field(30, ge=1, le=3650, description="finished builds are kept so long", json_schema_extra=HOT)
    audit_days: int = Field(365, ge=1, le=3650, description="audit rows are kept so long", json_schema_extra=HOT)
    metrics_minute_days: int = Field(
        7, ge=1, le=400, description="time series by the minute are kept so long", json_schema_extra=HOT
    )
    metrics_hour_days: int = Field(
        400, ge=1, le=3650, description="time series by the hour are kept so long", json_schema_extra=HOT
    )
    traces_hours: int = Field(24, ge=1, le=720, description="spans are kept so long", json_schema_extra=HOT)


class EgressSettings(Section):
    allow: list[Annotated[str, AfterValidator(network)]] = Field(
        default=[], description="private networks that webhooks may reach all the same"
    )


class SecretsOff(Section):
    enabled: Literal[False] = Field(False, description="not part of this version")


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
