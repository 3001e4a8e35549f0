"""The function that every Python worker's ancestor has run once."""

from typing import Any


def rehearsal(event: Any, context: Any) -> Any:
    return {"event": event, "request_id": context.request_id}
