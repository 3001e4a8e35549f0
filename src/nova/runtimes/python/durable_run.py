"""One run of a durable execution, in its worker: what is recorded, and the way to record more."""

import json
import os
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, urlsplit

_PREFIX: Final = "/2025-12-01/durable-executions/"
_READ: Final = 1 << 16


class Stop(BaseException):
    """The run ends here. Not an Exception: handlers are not meant to catch it."""


class Suspend(Stop):
    """There is something to wait for; nothing is held meanwhile."""


class NonDeterministic(Stop):
    """The code does not do what is recorded of it."""


class StepError(Exception):
    """An operation failed for good. ``type`` is the class of what was raised, and ``stack`` where."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(str(error.get("ErrorMessage", "")))
        self.type = str(error.get("ErrorType", "Error"))
        self.stack: list[str] = list(error.get("StackTrace") or ())


class WaitTimeout(StepError, TimeoutError):
    """What was waited for did not come in time."""


class RunLost(Exception):
    """The platform could not record; the execution goes on in another run."""


class Run:
    """One run of an execution: what is recorded, and the way to record more."""

    def __init__(self, event: Mapping[str, Any], request_id: str) -> None:
        self.arn: str = event["DurableExecutionArn"]
        self.request_id = request_id
        self._token: str = event["CheckpointToken"]
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._head = self._place = b""
        state = event["InitialExecutionState"]
        self.operations: dict[str, dict[str, Any]] = {}
        self._take(state["Operations"])
        first = state["Operations"][0]
        self.input = json.loads(first["ExecutionDetails"]["InputPayload"])
        marker = state.get("NextMarker")
        while marker:
            page = self._ask("GET", f"state?CheckpointToken={quote(self._token, safe='')}&Marker={marker}", b"")
            self._take(page["Operations"])
            marker = page.get("NextMarker")

    def record(self, *updates: Mapping[str, Any]) -> None:
        """Committed when it returns."""
        with self._lock:
            body = json.dumps({"CheckpointToken": self._token, "Updates": updates}).encode()
            answer = self._ask("POST", "checkpoint", body)
            self._token = answer["CheckpointToken"]
            self._take(answer["NewExecutionState"]["Operations"])

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    def _take(self, operations: Iterable[dict[str, Any]]) -> None:
        for operation in operations:
            self.operations[operation["Id"]] = operation

    def _ask(self, method: str, what: str, body: bytes) -> Any:
        head = b"%b %b/%b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n"
        try:
            link = self._link or self._connect()
            link.sendall(head % (method.encode(), self._place, what.encode(), self._head, len(body)) + body)
            status, data = _answer(link)
        except OSError as error:
            raise RunLost(f"the platform does not answer: {error}") from None
        if status == 200:
            return json.loads(data)
        raise _refusal(status, data)

    def _connect(self) -> socket.socket:
        url = urlsplit(os.environ.get("NOVA_API_URL", ""))
        if url.hostname is None or url.port is None:
            raise RunLost("this instance has no guest API, so nothing can be recorded")
        self._link = link = socket.create_connection((url.hostname, url.port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        lines = (f"Host: {url.netloc}", f"X-Nova-Request-Id: {self.request_id}", "Content-Type: application/json", "")
        self._head = "\r\n".join(lines).encode()
        self._place = f"{_PREFIX}{quote(self.arn, safe='')}".encode()
        return link


def _answer(link: socket.socket) -> tuple[int, bytes]:
    """Status and body. A library for this costs more than the way to the platform and back."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        _more(link, data)
    status = int(data[9:12])
    at = data.lower().find(b"\r\ncontent-length:", 0, end)
    if at < 0:
        raise OSError("an answer without a length")
    length = int(data[at + 17 : data.find(b"\r\n", at + 17)])
    while len(data) < end + 4 + length:
        _more(link, data)
    return status, bytes(data[end + 4 : end + 4 + length])


def _more(link: socket.socket, data: bytearray) -> None:
    piece = link.recv(_READ)
    if not piece:
        raise OSError("the connection ended")
    data += piece


def _refusal(status: int, data: bytes) -> BaseException:
    try:
        told = json.loads(data)
        message = str(told.get("message") or told.get("detail") or status)
    except ValueError:
        message = f"status {status}"
    if message.startswith("Invalid Checkpoint Token"):
        return Suspend(message)
    if message.startswith("Nova.NonDeterministic"):
        return NonDeterministic(message)
    if status in (400, 413, 422):
        return ValueError(message)
    return RunLost(message)
