"""One worker's lines, sans I/O. The agent reads them while the code loads, the host during calls: the same class.

A worker gets ``{"init": …}`` once and then ``{"input": <json>, "context": {…}}`` lines; it answers ``{"ready": …}`` and
then one ``{"output": <json>}`` or ``{"error": …}`` line per call, with any number of ``{"chunk": {"enc": …, "data": …}}``
lines before it. A multiplexing worker begins its lines with a
``"request_id"`` member and sends prints as ``{"log": …}``. One that cannot go on says ``{"ending": true}``. Outputs are
cut out of their line, never decoded. In a call whose context has ``asks`` a worker may ask its host: ``{"ask": …}`` is
answered by one ``{"told": …}``, here on the line and past the agent.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from nova.agent.lines import LineReader
from nova.agent.messages import GuestError

_OUTPUT: Final = b'{"output": '
_ASK: Final = b'{"ask": '
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")
_TAGGED = re.compile(rb'\{"request_id": "([0-9A-Za-z-]{1,64})", "output": ')
_CHUNK = re.compile(rb'\{(?:"request_id": "([0-9A-Za-z-]{1,64})", )?"chunk": \{"enc": "(text|json|b64)", "data": ')
_ANY_OUTPUT = re.compile(rb'\s*\{\s*(?:"request_id"\s*:\s*"([0-9A-Za-z-]{1,64})"\s*,\s*)?"output"\s*:\s*')


@dataclass(frozen=True, slots=True)
class Ready:
    """The code is loaded. ``multiplex`` when the worker takes more than one call at once. ``import_us``: microseconds in which
    the language imported the code; 0 when the worker does not say."""

    concurrency: int
    multiplex: bool
    import_us: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a call: ``output`` as bytes that nobody has checked yet, or ``error``. The id only when multiplexed."""

    request_id: str | None
    output: bytes | None
    error: GuestError | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a call's answer: ``kind`` is text, json or b64, ``data`` its JSON, which nobody has checked yet."""

    request_id: str | None
    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """A question of a call to its host. ``document`` should be JSON; nobody has looked at it yet."""

    document: bytes


@dataclass(frozen=True, slots=True)
class Log:
    """A print of one call of a multiplexing worker. ``dropped`` bytes more were printed and not sent."""

    request_id: str | None
    stream: str
    text: str
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """The worker ends after the answer that follows, or now if it has no call: it must get no further one."""


@dataclass(frozen=True, slots=True)
class TooLong:
    """The worker wrote a line above the limit; its bytes are gone."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """The worker wrote something that is no line of the protocol."""

    reason: str


Event = Ready | Result | Chunk | Ask | Log | Ending | TooLong | Garbage


def init_line(init: Mapping[str, Any]) -> bytes:
    return json.dumps({"init": init}, separators=(",", ":")).encode() + b"\n"


def hook_line(name: str) -> bytes:
    """Run a hook beside the handler; answered with ``ready``, or ``error``."""
    return json.dumps({"hook": name}).encode() + b"\n"


def call_line(payload: bytes, context: bytes) -> bytes:
    """``payload`` and ``context`` are checked JSON on one line each; neither is looked at."""
    return b'{"input": %b, "context": %b}\n' % (payload, context)


def split_call(line: bytes) -> tuple[bytes, bytes]:
    """Payload and context of a call line. The context has no member of its own name, so the last one found is the line's."""
    middle = line.rindex(b', "context": ')
    return line[len(b'{"input": ') : middle], line[middle + len(b', "context": ') : line.rindex(b"}")]


def output_line(document: bytes) -> bytes:
    return b'{"output": %b}\n' % document.translate(_ONE_LINE)


def error_line(error: GuestError) -> bytes:
    return json.dumps({"error": error.as_dict()}).encode() + b"\n"


def cancel_line(request_id: str) -> bytes:
    return b'{"cancel": "%b"}\n' % request_id.encode()


def credit_line(request_id: str, size: int) -> bytes:
    """``size`` more bytes of chunk lines may come for that call of a multiplexing worker."""
    return b'{"credit": "%b", "bytes": %d}\n' % (request_id.encode(), size)


def told_line(number: int, status: int, body: bytes) -> bytes:
    """The answer to question ``number`` of the worker. ``body`` is JSON on one line."""
    return b'{"told": %d, "status": %d, "body": %b}\n' % (number, status, body)


def chunk_line(kind: str, data: bytes) -> bytes:
    """``data`` is JSON on one line."""
    return b'{"chunk": {"enc": "%b", "data": %b}}\n' % (kind.encode(), data)


class WorkerSession:
    """Turns what a worker writes on its line descriptor into events."""

    def __init__(self) -> None:
        self._lines = LineReader()

    def feed(self, data: bytes) -> list[Event]:
        """Lines without anything on them say nothing."""
        return [TooLong() if line is None else parse(line) for line in self._lines.feed(data) if line != b""]


def parse(line: bytes) -> Event:
    if line.startswith(_OUTPUT) and line.endswith(b"}"):
        return Result(None, line[len(_OUTPUT) : -1], None)
    if line.startswith(_ASK) and line.endswith(b"}"):
        return Ask(line[len(_ASK) : -1])
    chunk = _CHUNK.match(line)
    if chunk is not None and line.endswith(b"}}"):
        tag = chunk.group(1)
        return Chunk(None if tag is None else tag.decode(), chunk.group(2).decode(), line[chunk.end() : -2])
    match = _TAGGED.match(line) or _ANY_OUTPUT.match(line)
    if match is not None:
        body = line.rstrip()
        if not body.endswith(b"}"):
            return Garbage("the output line has no end")
        tag = match.group(1)
        return Result(None if tag is None else tag.decode(), body[match.end() : -1], None)
    return _parse_rare(line)


def _parse_rare(line: bytes) -> Event:
    """Everything but an output: small lines, so plain JSON will do."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return Garbage("a worker line is not JSON")
    if not isinstance(message, dict):
        return Garbage("a worker line is not an object")
    tag = message.get("request_id")
    request_id = tag if isinstance(tag, str) else None
    if "error" in message:
        return Result(request_id, None, GuestError.of(message["error"]))
    if isinstance(chunk := message.get("chunk"), dict):
        if (kind := chunk.get("enc")) not in ("text", "json", "b64") or "data" not in chunk:
            return Garbage("a chunk has enc (text, json or b64) and data")
        return Chunk(request_id, str(kind), json.dumps(chunk["data"]).encode())
    if isinstance(log := message.get("log"), dict):
        owner = log.get("request_id")
        stream = "stderr" if log.get("stream") == "stderr" else "stdout"
        dropped = log.get("dropped")
        return Log(
            owner if isinstance(owner, str) else None,
            stream,
            str(log.get("text", "")),
            dropped if isinstance(dropped, int) and dropped > 0 else 0,
        )
    if message.get("ending") is True:
        return Ending()
    if isinstance(ready := message.get("ready"), dict):
        concurrency = ready.get("concurrency")
        if not isinstance(concurrency, int) or concurrency < 1:
            return Garbage("ready without concurrency")
        import_us = ready.get("import_us")
        return Ready(
            concurrency,
            multiplex=ready.get("multiplex") is True,
            import_us=import_us if isinstance(import_us, int) and import_us > 0 else 0,
        )
    return Garbage("a worker line is neither output nor error")
