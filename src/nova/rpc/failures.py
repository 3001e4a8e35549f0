"""Refusals on the wire: a code, whether the call had begun, and the gRPC status that goes with it."""

from collections.abc import Mapping
from typing import Literal

import grpc
import structlog

from nova import payload
from nova.errors import CODES, FieldError, NovaError, as_refusal, internal
from nova.rpc import nova_pb2 as pb

log = structlog.get_logger(__name__)
Delivered = Literal["no", "yes", "unknown"]
TRAILER = "nova-problem-bin"
_MAX_TEXT = 1024
_MAX_TRAILER = 4096
"""Trailers share the limit of a connection's headers, which is 8 KiB."""

_TO_WIRE: Mapping[Delivered, pb.Delivery] = {
    "no": pb.DELIVERY_NO,
    "yes": pb.DELIVERY_YES,
    "unknown": pb.DELIVERY_UNKNOWN,
}
_FROM_WIRE: Mapping[int, Delivered] = {value: name for name, value in _TO_WIRE.items()}

_BEGAN = frozenset({"instance_lost", "function_error", "invalid_response"})
_MAY_HAVE_BEGUN = frozenset({"internal", "dependency_unavailable", "storage_full"})
_BY_STATUS: Mapping[int, grpc.StatusCode] = {
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    410: grpc.StatusCode.NOT_FOUND,
    412: grpc.StatusCode.FAILED_PRECONDITION,
    422: grpc.StatusCode.FAILED_PRECONDITION,
    424: grpc.StatusCode.FAILED_PRECONDITION,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    502: grpc.StatusCode.UNAVAILABLE,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
    508: grpc.StatusCode.FAILED_PRECONDITION,
}
_BY_CODE: Mapping[str, grpc.StatusCode] = dict.fromkeys(
    ("queue_full", "queue_timeout", "inflight_limit", "capacity"), grpc.StatusCode.RESOURCE_EXHAUSTED
)


class RemoteFailure(NovaError):
    """A refusal that came from another process, or that this one makes of a broken connection.

    ``delivered``: did the call begin there? Only after ``no`` may it be sent again (or when it has an idempotency key).
    """

    delivered: Delivered = "unknown"


def remote_failure(
    code: str, detail: str, delivered: Delivered, *, retry_after_s: float | None = None
) -> RemoteFailure:
    """A failure of the connection itself."""
    failure = RemoteFailure(code, detail, retry_after_s=retry_after_s)
    failure.delivered = delivered
    return failure


def unreachable(address: str) -> RemoteFailure:
    """There is no connection: nothing was sent."""
    return remote_failure("dependency_unavailable", f"comet at {address} does not answer", "no", retry_after_s=1)


def lost(address: str) -> RemoteFailure:
    """The connection broke under a call that was sent."""
    return remote_failure("instance_lost", f"the connection to comet at {address} broke under the call", "unknown")


def out_of_time(delivered: Delivered) -> RemoteFailure:
    return remote_failure("timeout", "the caller's time was up", delivered)


def delivered(error: NovaError) -> Delivered:
    """Had the call begun when it was refused like this?"""
    if isinstance(error, RemoteFailure):
        return error.delivered
    if error.code in _BEGAN or "version" in error.extra:
        return "yes"
    return "unknown" if error.code in _MAY_HAVE_BEGUN or error.code == "cancelled" else "no"


def status_of(code: str) -> grpc.StatusCode:
    """The gRPC status of a code of :data:`nova.errors.CODES`."""
    found = _BY_CODE.get(code) or _BY_STATUS.get(CODES[code].status)
    return found or grpc.StatusCode.INVALID_ARGUMENT


def refusal(exc: BaseException, what: str, **ids: str) -> NovaError:
    """What the caller is told of an exception; a fault of ours is logged with ``ids``."""
    if isinstance(exc, NovaError):
        return exc
    log.error(f"{what} failed", exc_info=exc, **ids)
    return as_refusal(exc) or internal()


def fill(message: pb.Failure, error: NovaError) -> pb.Failure:
    """Write a refusal into a message."""
    message.code = error.code
    message.message = text(error.detail)
    message.delivered = _TO_WIRE[delivered(error)]
    message.http_status = error.status
    if error.retry_after_s is not None:
        message.retry_after_ms = max(1, round(error.retry_after_s * 1000))
    if error.extra or error.errors:
        errors = [{"field": item.field, "message": item.message} for item in error.errors]
        message.details = payload.encode({"extra": error.extra, "errors": errors})
    return message


def read(message: pb.Failure) -> RemoteFailure:
    """The refusal in a message. A code that this process does not know counts as ``internal``."""
    details = payload.decode(message.details) if message.details else {}
    failure = RemoteFailure(
        message.code if message.code in CODES else "internal",
        message.message,
        errors=[FieldError(item["field"], item["message"]) for item in details.get("errors", ())],
        extra=details.get("extra"),
        retry_after_s=message.retry_after_ms / 1000 if message.retry_after_ms else None,
        status=message.http_status if message.code in CODES else None,
    )
    failure.delivered = _FROM_WIRE.get(message.delivered, "unknown")
    return failure


def trailer(error: NovaError) -> tuple[tuple[str, bytes], ...]:
    """The refusal as a trailer, without its details when they are too long for one."""
    message = fill(pb.Failure(), error)
    message.message = message.message[:_MAX_TEXT]
    data = message.SerializeToString()
    if len(data) > _MAX_TRAILER:
        message.details = b""
        data = message.SerializeToString()
    return ((TRAILER, data),)


async def abort(context: "grpc.aio.ServicerContext[bytes, bytes]", error: NovaError) -> None:
    """End an RPC with a refusal. Raises always."""
    await context.abort(status_of(error.code), text(error.detail)[:_MAX_TEXT], trailer(error))


def of_rpc(error: grpc.aio.AioRpcError, address: str) -> RemoteFailure:
    """What an RPC that failed means for its caller, who had a connection to send it on."""
    for key, value in error.trailing_metadata() or ():
        if key == TRAILER and isinstance(value, bytes):
            return read(pb.Failure.FromString(value))
    code, said = error.code(), error.details() or ""
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL):  # INTERNAL: a write met a stream that had ended
        return lost(address)
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return out_of_time("unknown")
    if code is grpc.StatusCode.CANCELLED:
        return remote_failure("cancelled", "the call was cancelled", "unknown")
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return remote_failure("dependency_unavailable", f"comet at {address} does not accept the service token", "no")
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return remote_failure("unsupported", f"comet at {address} does not do this", "no")
    log.error("an RPC failed", address=address, status=str(code), details=said)
    return remote_failure("internal", "something went wrong between two planes; the log has the details", "unknown")


def text(value: str) -> str:
    """Text that a message can hold: halves of surrogate pairs become question marks."""
    return value if value.isascii() else value.encode("utf-8", "replace").decode()
