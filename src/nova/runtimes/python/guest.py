"""``context.invoke`` and ``context.state``: the guest API of the instance, as Python.

Inside a running event loop each method gives an awaitable, elsewhere its result.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlencode, urlsplit

T = TypeVar("T")
_READ: Final = 1 << 16


class CallError(Exception):
    """What was asked for was refused, or the called function failed.

    ``code`` is the problem's, such as ``not_found``, ``version_conflict``, ``recursion``; ``function_error`` when the called
    function raised, and then ``type`` and ``stack`` are its error's.
    """

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        error = problem.get("error") or {}
        super().__init__(str(error.get("message") or problem.get("detail") or f"status {status}"))
        self.status = status
        self.code = str(problem.get("code", "internal"))
        self.type: str | None = error.get("type")
        self.stack: list[str] = error.get("stack", [])
        self.problem = dict(problem)


class Entry(NamedTuple):
    """A value of the state, and the version that a later write may name."""

    value: Any
    version: int


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes


def ask(
    method: str,
    path: str,
    request_id: str,
    convert: Callable[[Answer], T],
    *,
    query: Mapping[str, object] | None = None,
    headers: Mapping[str, object] | None = None,
    body: bytes | None = None,
) -> Any:
    """The converted answer, or an awaitable of it inside a running event loop."""
    host, port, data = _request(method, path, request_id, query or {}, headers or {}, body)
    if asyncio._get_running_loop() is not None:
        return _ask_async(host, port, data, convert)
    with socket.create_connection((host, port)) as sock:
        sock.sendall(data)
        pieces = []
        while piece := sock.recv(_READ):
            pieces.append(piece)
    return convert(_answer(b"".join(pieces)))


async def _ask_async(host: str, port: int, data: bytes, convert: Callable[[Answer], T]) -> T:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(data)
        return convert(_answer(await reader.read()))
    finally:
        writer.close()


def _request(
    method: str,
    path: str,
    request_id: str,
    query: Mapping[str, object],
    headers: Mapping[str, object],
    body: bytes | None,
) -> tuple[str, int, bytes]:
    url = urlsplit(os.environ.get("NOVA_API_URL", ""))
    if url.hostname is None or url.port is None:
        raise CallError(422, {"code": "unsupported", "detail": "this instance has no guest API"})
    given = {name: value for name, value in query.items() if value is not None}
    target = quote(path) + (f"?{urlencode(given)}" if given else "")
    lines = [
        f"{method} {target} HTTP/1.1",
        f"Host: {url.netloc}",
        f"Authorization: Bearer {os.environ.get('NOVA_API_TOKEN', '')}",
        f"X-Nova-Request-Id: {request_id}",
        "Connection: close",
        *(f"{name}: {_header(value)}" for name, value in headers.items() if value is not None),
    ]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return url.hostname, url.port, "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


def _header(value: object) -> str:
    text = str(value)
    if "\r" in text or "\n" in text:
        raise ValueError("a header cannot hold a line break")
    return text


def _answer(data: bytes) -> Answer:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n")
    try:
        status = int(first.split(" ", 2)[1])
    except (IndexError, ValueError):
        raise CallError(502, {"code": "instance_lost", "detail": "the guest API did not answer"}) from None
    pairs = (line.partition(": ") for line in rest)
    return Answer(status, {name.lower(): value for name, _, value in pairs}, body)


def _good(answer: Answer) -> Answer:
    if answer.status >= 300:
        try:
            problem = json.loads(answer.body)
        except ValueError:
            problem = {}
        raise CallError(answer.status, problem)
    return answer


def _value(answer: Answer) -> Any:
    return json.loads(_good(answer).body)


def dumps(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


def invoke(
    request_id: str, name: str, payload: object, qualifier: str | int | None, event: bool, idempotency_key: str | None
) -> Any:
    """See ``Context.invoke``."""
    return ask(
        "POST",
        f"/v1/invoke/{name}",
        request_id,
        _value,
        query={"qualifier": qualifier, "type": "event" if event else None},
        headers={"Idempotency-Key": idempotency_key},
        body=dumps(payload),
    )


def publish(
    request_id: str,
    topic: str,
    payload: object,
    ordering_key: str | None,
    dedup_id: str | None,
    delay_s: float | None,
    headers: Mapping[str, str] | None,
) -> Any:
    """See ``Context.publish``."""
    return ask(
        "POST",
        f"/v1/topics/{topic}",
        request_id,
        lambda answer: _value(answer)["id"],
        query={
            "ordering_key": ordering_key,
            "dedup_id": dedup_id,
            "delay_s": delay_s,
            "headers": None if headers is None else json.dumps(dict(headers)),
        },
        body=dumps(payload),
    )


class State:
    """What the function keeps between its calls, whichever version or instance runs. Values are JSON, at most 256 KiB."""

    __slots__ = ("_request_id",)

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def get(self, key: str, default: Any = None) -> Any:
        """The value; ``default`` when there is none."""
        return self._ask("GET", key, lambda answer: default if answer.status == 404 else _value(answer))

    def read(self, key: str) -> Any:
        """Value and version as an :class:`Entry`; None when there is no such key."""
        return self._ask("GET", key, _entry)

    def put(self, key: str, value: object, *, ttl_s: int | None = None, expected_version: int | None = None) -> Any:
        """Keep a value, for ``ttl_s`` seconds if given; its new version.

        ``expected_version``: only over that version, 0 only if there is none; else :class:`CallError` ``version_conflict``.
        """
        headers = {"X-Nova-TTL": ttl_s, "If-Match": expected_version}
        return self._ask("PUT", key, lambda answer: _value(answer)["version"], headers=headers, body=dumps(value))

    def delete(self, key: str, *, expected_version: int | None = None) -> Any:
        """False when there was no such key."""
        return self._ask("DELETE", key, _deleted, headers={"If-Match": expected_version})

    def increment(self, key: str, by: int = 1, *, ttl_s: int | None = None) -> Any:
        """Add to a whole number in one step (0 when there is none); the sum."""
        return self._ask("POST", key, _value, query={"by": by}, headers={"X-Nova-TTL": ttl_s}, body=b"")

    def list(self, prefix: str = "", *, limit: int = 100, after: str | None = None) -> Any:
        """Keys in order, each ``{key, size, version, expires_at, updated_at}``; at most 1000, those behind ``after``."""
        query = {"prefix": prefix, "limit": limit, "after": after}
        return ask("GET", "/v1/state", self._request_id, lambda answer: _value(answer)["items"], query=query)

    def _ask(self, method: str, key: str, convert: Callable[[Answer], T], **more: Any) -> Any:
        if not key:
            raise ValueError("a key has at least one character")
        return ask(method, f"/v1/state/{key}", self._request_id, convert, **more)


def _entry(answer: Answer) -> Entry | None:
    return None if answer.status == 404 else Entry(_value(answer), int(answer.headers["x-nova-version"]))


def _deleted(answer: Answer) -> bool:
    if answer.status == 404:
        return False
    _good(answer)
    return True
