"""What a topic wants of its messages: payloads that fit its JSON Schema."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from nova.domain.schemas import violations
from nova.errors import FieldError, NovaError

SchemaMode = Literal["off", "reject"]
MAX_SCHEMA = 64 << 10
"""Bytes of a topic's schema."""


def misfit(schema: dict[str, Any], payloads: Sequence[str]) -> NovaError | None:
    """``validation_failed`` naming the first message that does not fit, and where; None: all of them do."""
    for place, text in enumerate(payloads):
        found = violations(schema, json.loads(text))
        if found:
            name = "payload" if len(payloads) == 1 else f"messages.{place}.payload"
            errors = [FieldError(f"{name}.{path}" if path else name, why) for path, why in found]
            return NovaError("validation_failed", f"{errors[0].field}: {errors[0].message}", errors=errors)
    return None
