"""One run of a durable execution, in its worker: what is recorded, and the way to record more."""

import json
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from nova.runtimes.python.durable_http import Http
from nova.runtimes.python.durable_line import HostLine


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
    """One run of an execution. With a ``line`` it asks the host itself, else by HTTP."""

    def __init__(self, event: Mapping[str, Any], request_id: str, line: HostLine | None) -> None:
        self.arn: str = event["DurableExecutionArn"]
        self.request_id = request_id
        self._token: str = event["CheckpointToken"]
        self._lock = threading.Lock()
        self._line = line
        self._http = Http(self.arn, request_id)
        self._head = json.dumps({"op": "checkpoint", "arn": self.arn, "brief": True}).encode()
        self._ended = False
        state = event["InitialExecutionState"]
        self.operations: dict[str, dict[str, Any]] = {}
        self._take(state["Operations"])
        first = state["Operations"][0]
        self.input = json.loads(first["ExecutionDetails"]["InputPayload"])
        self._marker: str = state.get("NextMarker") or ""

    def load_rest(self) -> None:
        """What did not come with the call. Raises :class:`RunLost`."""
        while self._marker:
            page = self._answered(*self._state())
            self._take(page["Operations"])
            self._marker = page.get("NextMarker") or ""

    def record(self, *updates: Mapping[str, Any]) -> None:
        """Committed when it returns."""
        with self._lock:
            if self._ended:
                raise RunLost("the run has ended")
            body = json.dumps({"CheckpointToken": self._token, "Updates": updates}).encode()
            answer = self._answered(*self._checkpoint(body))
            self._token = answer["CheckpointToken"]
            self._take(answer["NewExecutionState"]["Operations"])

    def close(self) -> None:
        """The handler has ended; threads that it left behind record nothing any more."""
        with self._lock:
            self._ended = True
            if self._line is not None and self._line.ours:
                self._line.settle()
            self._http.close()

    def _take(self, operations: Iterable[dict[str, Any]]) -> None:
        for operation in operations:
            self.operations[operation["Id"]] = operation

    def _checkpoint(self, body: bytes) -> tuple[int, Any]:
        if self._line is not None and self._line.ours:
            return self._line.ask(self.request_id, self._head, body)
        try:
            return self._http.checkpoint(body)
        except OSError as error:
            raise RunLost(f"the platform does not answer: {error}") from None

    def _state(self) -> tuple[int, Any]:
        if self._line is not None and self._line.ours:
            head = {"op": "operations", "arn": self.arn, "token": self._token, "marker": self._marker}
            return self._line.ask(self.request_id, json.dumps(head).encode(), b"null")
        try:
            return self._http.state(self._token, self._marker)
        except OSError as error:
            raise RunLost(f"the platform does not answer: {error}") from None

    @staticmethod
    def _answered(status: int, body: Any) -> Any:
        try:
            told = json.loads(body) if isinstance(body, bytes) else body
        except ValueError:
            told = {}
        if status == 200:
            return told
        raise _refusal(status, told)


def _refusal(status: int, told: Any) -> BaseException:
    given = told if isinstance(told, dict) else {}
    message = str(given.get("message") or given.get("detail") or f"status {status}")
    if message.startswith("Invalid Checkpoint Token"):
        return Suspend(message)
    if message.startswith("Nova.NonDeterministic"):
        return NonDeterministic(message)
    if status in (400, 413, 422):
        return ValueError(message)
    return RunLost(message)
