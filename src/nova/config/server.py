"""Settings of the processes themselves: their database, sockets, logs, series, traces and place among others."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from nova.config.values import HOT, SECRET, Seconds, Section, network


class PostgresSettings(Section):
    dsn: str = Field(
        "", description="connection string; empty: the embedded server in the data directory", json_schema_extra=SECRET
    )
    max_conns: int = Field(20, ge=2, le=1000, description="connections of this process, at most")
    min_conns: int = Field(2, ge=1, le=1000, description="connections kept open")
    statement_timeout: Seconds = Field(30.0, description="a query that takes longer is ended")


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


class HttpSettings(Section):
    cors_origins: list[str] = Field(default=[], description="origins whose pages may read answers")
    trusted_proxies: list[Annotated[str, AfterValidator(network)]] = Field(
        default=[], description="addresses or networks whose Forwarded headers count"
    )
    max_connections: int = Field(10_000, ge=1, description="open at once; one more is answered 503")
    header_timeout: Seconds = Field(10.0, description="for a request's headers, and between two reads of its body")
    tls_cert: str = Field("", description="PEM file with the certificate chain; with tls_key the server speaks HTTPS")
    tls_key: str = Field("", description="PEM file with the private key")


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
