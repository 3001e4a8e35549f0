"""How gRPC is set up on both ends: addresses, limits, keepalive, metadata."""

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc

from nova import listen
from nova.errors import NovaError, invalid
from nova.rpc import nova_pb2 as pb

if TYPE_CHECKING:
    Context: TypeAlias = grpc.aio.ServicerContext[bytes, bytes]
else:
    Context = grpc.aio.ServicerContext

EXECUTION = pb.DESCRIPTOR.services_by_name["Execution"].full_name
MAX_MESSAGE_MB = 16
ENVELOPE = 64 << 10
"""What a message may have beside the payload in it, in bytes."""
CONNECT_S = 1.0
"""A call waits this long for a connection that is being made, at most."""
GRACE_S = 0.1
"""The server's own word on a deadline is waited for this much longer: it knows whether the call had begun."""

AUTHORIZATION = "authorization"
IDENTITY = "x-nova-identity"
TENANT = "x-nova-tenant"
NAMESPACE = "x-nova-namespace"
REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"

_PING_MS = 5000
_PING_TIMEOUT_MS = 5000
_MAX_STREAMS = 1024
_METADATA_BYTES = 16 << 10
_WINDOW_BYTES = 256 << 10
"""What is read ahead of one stream. gRPC would let it grow with the connection's speed, to megabytes that a client who does not
read his answer keeps in memory here."""


def _common(max_message_mb: int) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_send_message_length", max_message_mb << 20),
        ("grpc.max_receive_message_length", max_message_mb << 20),
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
        ("grpc.keepalive_time_ms", _PING_MS),
        ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.ping_timeout_ms", _PING_TIMEOUT_MS),  # of every ping, not only those of keepalive; else a minute
    ]


def channel_options(max_message_mb: int = MAX_MESSAGE_MB) -> list[tuple[str, Any]]:
    """A connection of its own, tried again within a second, that notices within ten when the other end is gone."""
    return [
        *_common(max_message_mb),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
    ]


def server_options(max_message_mb: int = MAX_MESSAGE_MB) -> list[tuple[str, Any]]:
    return [
        *_common(max_message_mb),
        ("grpc.so_reuseport", 1),
        ("grpc.max_concurrent_streams", _MAX_STREAMS),
        ("grpc.http2.min_ping_interval_without_data_ms", 1000),
        ("grpc.http2.max_ping_strikes", 0),
    ]


def target(address: str) -> str:
    """``host:port``, ``[v6]:port``, ``:port`` (on loopback) or ``unix:/path`` as gRPC takes it. Raises ``validation_failed``."""
    if address.startswith("unix:"):
        if address == "unix:":
            raise invalid("grpc.addr", "name the socket's path: unix:/path")
        return address
    try:
        parsed = listen.parse(address, open_access=not address.rpartition(":")[0])
    except NovaError as exc:
        raise invalid("grpc.addr", exc.detail.partition(": ")[2]) from None
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return f"{host}:{parsed.port}"


async def next_message(stream: Any) -> bytes | None:
    """The next message of a stream, on either end; None when there are no more."""
    data = await stream.read()
    return None if data is grpc.aio.EOF else data


def being_cancelled() -> bool:
    """Has the running task been asked to end?

    grpc.aio loses such a request while it is opening a stream, and raises the error of the stream that it ended in its place; so
    whoever goes on after an error of gRPC has to ask.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def metadata_of(context: Context) -> Mapping[str, str]:
    """The request's metadata, text values only; of a repeated one, the last."""
    pairs: Any = context.invocation_metadata() or ()
    return {key: value for key, value in pairs if isinstance(value, str)}
