"""The platform's error type and the table of its codes.

Every refusal that a user can meet is a :class:`NovaError` with a ``code`` from :data:`CODES`. The HTTP layer renders it as
RFC 9457 problem+json; other transports map the same code. Errors of the user's own function are not exceptions here:
they travel as :class:`FunctionError` inside a result.
"""

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Code:
    status: int
    title: str


CODES: Mapping[str, Code] = {
    "validation_failed": Code(400, "The request is not valid"),
    "unknown_field": Code(400, "The request has a field that does not exist"),
    "invalid_json": Code(400, "The body is not valid JSON"),
    "invalid_cursor": Code(400, "The cursor is not valid"),
    "bad_payload": Code(400, "The payload is not acceptable"),
    "scope_required": Code(400, "Name a tenant and namespace"),
    "scope_invalid": Code(400, "The tenant or namespace is not valid"),
    "unauthenticated": Code(401, "Credentials are missing or not valid"),
    "forbidden": Code(403, "The caller lacks the permission"),
    "scope_forbidden": Code(403, "The caller may not act in this tenant or namespace"),
    "ip_denied": Code(403, "The address is not allowed"),
    "tenant_suspended": Code(403, "The tenant is suspended"),
    "halted": Code(403, "The resource is halted"),
    "not_found": Code(404, "No such resource"),
    "route_not_found": Code(404, "No such route"),
    "method_not_allowed": Code(405, "The method is not allowed here"),
    "request_timeout": Code(408, "The request body was not received in time"),
    "already_exists": Code(409, "The resource exists already"),
    "in_use": Code(409, "The resource is in use"),
    "invalid_state": Code(409, "The resource is not in a state that allows this"),
    "version_conflict": Code(409, "The resource was changed meanwhile"),
    "duplicate_request": Code(409, "The request was taken before"),
    "idempotency_in_progress": Code(409, "A request with this idempotency key is still running"),
    "gone": Code(410, "The resource is gone"),
    "etag_mismatch": Code(412, "The resource was changed meanwhile"),
    "payload_too_large": Code(413, "The payload is too large"),
    "uri_too_long": Code(414, "The URL is too long"),
    "unsupported_media_type": Code(415, "The media type is not supported"),
    "unsupported": Code(422, "This cannot be enforced here"),
    "idempotency_conflict": Code(422, "The idempotency key was used for another request"),
    "runtime_unavailable": Code(422, "The runtime has no toolchain here"),
    "build_failed": Code(424, "The build failed"),
    "quota_exceeded": Code(429, "A quota is used up"),
    "rate_limited": Code(429, "Too many requests"),
    "headers_too_large": Code(431, "The request's headers are too large"),
    "internal": Code(500, "Internal error"),
    "function_error": Code(502, "The function failed"),
    "instance_lost": Code(502, "The instance died under the call"),
    "invalid_response": Code(502, "The function's response is not a valid HTTP response"),
    "inflight_limit": Code(503, "Too many calls of the function are under way"),
    "queue_full": Code(503, "Too many calls are waiting"),
    "queue_timeout": Code(503, "The call waited too long for an instance"),
    "capacity": Code(503, "No capacity for another instance"),
    "build_pending": Code(503, "The function is still being built"),
    "draining": Code(503, "The server is shutting down"),
    "dependency_unavailable": Code(503, "A dependency of the platform does not answer"),
    "timeout": Code(504, "The call ran out of time"),
    "storage_full": Code(507, "The platform's disk is full"),
    "cancelled": Code(499, "The client went away"),
    "recursion": Code(508, "The call chain is too deep or has a cycle"),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One bad field: ``field`` is a dotted path into the body, query or headers."""

    field: str
    message: str


class NovaError(Exception):
    """A refusal with a stable code.

    ``extra`` becomes additional members of the problem document; ``retry_after_s`` the ``Retry-After`` header (whole
    seconds, at least 1). ``status`` replaces the code's own HTTP status where a function asks for another.
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        extra: Mapping[str, Any] | None = None,
        retry_after_s: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}")
        self.code = code
        self.detail = detail
        self.errors = tuple(errors)
        self.extra = dict(extra or {})
        self.retry_after_s = retry_after_s
        self.status = status or CODES[code].status


def invalid(field: str, message: str) -> NovaError:
    """The commonest refusal: one field is wrong."""
    return NovaError("validation_failed", f"{field}: {message}", errors=[FieldError(field, message)])


def not_found(kind: str, name: str) -> NovaError:
    return NovaError("not_found", f"{kind} {name!r} does not exist")


def storage_full(where: str) -> NovaError:
    """``where`` is whose disk it is, as the operator knows it."""
    return NovaError("storage_full", f"the disk of {where} is full", retry_after_s=30)


def as_refusal(exc: BaseException) -> NovaError | None:
    """What a caller can be told of an exception that nobody expected; None for a fault of ours."""
    if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return storage_full("the data directory")
    return None


def internal() -> NovaError:
    """A fault of ours: the details are in the log only."""
    return NovaError("internal", "something went wrong here; the log has this request id")


def draining() -> NovaError:
    return NovaError("draining", "the server is shutting down", retry_after_s=1)


@dataclass(frozen=True, slots=True)
class FunctionError:
    """What went wrong inside a function: the class raised, or a ``Nova.*`` type that the platform found out.

    ``message`` at most 8 KiB; ``stack`` at most 64 strings of at most 512 bytes, outermost first.
    """

    type: str
    message: str
    stack: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict[str, Any]:
        return {"type": self.type, "message": self.message, "stack": list(self.stack)}
