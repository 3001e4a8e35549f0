"""Problem documents (RFC 9457): the one form of every refusal."""

from collections.abc import Iterable
from typing import Any

import msgspec
from pydantic import ValidationError

from nova.api.table import Model
from nova.errors import CODES, FieldError, NovaError

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 20
"""Field errors per document; a body can have thousands of bad fields, an answer need not."""


class ProblemField(Model):
    """One field that is wrong: a dotted path and what is expected there."""

    field: str
    message: str


class Problem(Model):
    """What every error answers. ``code`` is stable; some codes have members of their own beside these."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: str
    errors: list[ProblemField] = []


def document(error: NovaError, request_id: str) -> bytes:
    """The problem document of a refusal, as JSON bytes."""
    body: dict[str, Any] = {
        **error.extra,
        "type": f"urn:nova:problem:{error.code}",
        "title": CODES[error.code].title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
    }
    if error.errors:
        body["errors"] = [{"field": e.field, "message": e.message} for e in error.errors]
    return msgspec.json.encode(body)


def headers(error: NovaError) -> dict[str, str]:
    """The headers that go with a refusal: ``Retry-After`` on every 429 and 503, ``WWW-Authenticate`` on every 401."""
    found: dict[str, str] = {}
    if error.status in (429, 503) or error.retry_after_s is not None:
        found["Retry-After"] = str(max(1, round(error.retry_after_s or 1)))
    if error.status == 401:
        found["WWW-Authenticate"] = 'ApiKey realm="nova"'
    if error.code == "method_not_allowed":
        found["Allow"] = ", ".join(error.extra.get("allow", ()))
    return found


def from_validation(exc: ValidationError, prefix: str = "") -> NovaError:
    """A model's refusal of a body or query. Names each field; never repeats what was sent there."""
    details = exc.errors(include_url=False, include_context=False, include_input=False)
    errors = [FieldError(prefix + _path(item["loc"]), _message(item["msg"])) for item in details[:_MAX_ERRORS]]
    unknown = next((e for e, item in zip(errors, details, strict=False) if item["type"] == "extra_forbidden"), None)
    if unknown is not None:
        return NovaError("unknown_field", f"{unknown.field}: no such field", errors=errors)
    first = errors[0]
    return NovaError(
        "validation_failed", f"{first.field}: {first.message}" if first.field else first.message, errors=errors
    )


def _path(loc: Iterable[int | str]) -> str:
    return ".".join(str(part) for part in loc)


def _message(text: str) -> str:
    if text == "Extra inputs are not permitted":
        return "no such field"
    return text.removeprefix("Value error, ").removeprefix("Assertion failed, ")
