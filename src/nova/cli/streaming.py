"""What a streamed call prints: pieces on stdout as they come, everything about the call on stderr."""

import base64
import json
import sys
from collections.abc import Iterator
from typing import Any

from rich.text import Text

from nova.cli.session import CliError, Session
from nova.client import ApiError, Event, Json
from nova.errors import CODES

FUNCTION_ERROR = 6


def show(session: Session, events: Iterator[Event]) -> None:
    """Text as text, JSON values as lines, bytes as they are unless they would go to a terminal. Ends non-zero with an error.

    With a format for machines each event is one line of JSON.
    """
    out, begun, version = session.out, False, 0
    for event in events:
        data: Any = event.data
        if not out.for_people:
            out.line(json.dumps({"event": event.event, **data}, ensure_ascii=False))
        if event.event == "error":
            raise _error(data)
        if not out.for_people:
            continue
        if event.event == "start":
            version, start = data["version"], "cold" if data["cold_start"] else "warm"
            out.note(f"version {version}, {start}, request {data['request_id']}")
        elif event.event == "chunk":
            begun = True
            _piece(session, data)
        elif event.event == "log":
            out.error.print(Text(data["text"], style="dim"), end="")
        elif event.event == "done":
            if not begun and data["output"] is not None:
                out.line(json.dumps(data["output"], indent=2, ensure_ascii=False))
            out.note(f"{data['duration_ms']:.2f} ms")


def _piece(session: Session, chunk: Json) -> None:
    out = session.out
    if "text" in chunk:
        out.write(chunk["text"])
    elif "json" in chunk:
        out.line(json.dumps(chunk["json"], ensure_ascii=False))
    elif sys.stdout.isatty():
        out.note(f"{len(base64.b64decode(chunk['b64']))} bytes that are no text")
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(base64.b64decode(chunk["b64"]))
        sys.stdout.buffer.flush()


def _error(error: Json) -> Exception:
    code = error.get("code")
    if code is None:
        return failed(error)
    status = CODES[code].status if code in CODES else 500
    return ApiError(code, status, error["message"])


def failed(error: Json) -> CliError:
    """What a function's own error is for the user."""
    lines = [f"the function failed: {error['type']}: {error['message']}", *error.get("stack", ())]
    return CliError("\n".join(lines), FUNCTION_ERROR)
