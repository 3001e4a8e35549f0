"""Settings of functions and their calls: pool, records, limits, networks, builds, volumes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nova.config.values import HOT, Seconds, Section, ipv4_network


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
