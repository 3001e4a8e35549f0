"""Durable executions: what their operations are, and how one becomes another.

The operations are those of the public Lambda durable-execution protocol, so that libraries which speak it run here as they
are. An operation is recorded under an id that stands for its place in the code; what has ended never changes again.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from nova import payload
from nova.domain.identity import Scope
from nova.errors import NovaError, invalid

ExecutionStatus = Literal["running", "suspended", "completed", "failed", "cancelled"]
OPEN: Final = ("running", "suspended")
MAX_OPERATIONS: Final = 10_000
"""Of one execution."""
MAX_OUTPUT: Final = 256 << 10
"""Bytes of what one operation keeps."""
MAX_UPDATES: Final = 500
"""In one checkpoint."""
MAX_LIFE_S: Final = 365 * 86_400
MAX_WAIT_S: Final = 365 * 86_400
MAX_NAME: Final = 256
"""Characters of an operation's or an execution's name."""
MAX_CRASHES: Final = 5
"""Lost runs in a row, the last of which its own worker ended: what kills its instance each time must not run for ever."""
MAX_LOST: Final = 20
"""Runs in a row that may get no further whatever the reason: machines that come and go are not the function's fault."""
MAX_EVENTS: Final = 1000
"""That one execution keeps until it asks for them."""
PAGE_OPERATIONS: Final = 1000
EVENT: Final = "WaitEvent"
"""The sub-type of callbacks that an event of their name completes."""

_MANY: Final = 1 << 62
_LAST_MS: Final = 4e12
"""A time far ahead: what is later means now."""
_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}").fullmatch
_SUB_TYPE: Final = re.compile(r"[a-zA-Z0-9_-]{1,32}").fullmatch
_ARN: Final = re.compile(
    r"arn:nova:lambda:.+/durable-execution/[^/]+/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})"
).fullmatch
_TARGET: Final = re.compile(r"(?:.*:function:)?([A-Za-z0-9_-]{1,64})(?::([A-Za-z0-9_$-]{1,64}))?").fullmatch
_AFTER: Final[Mapping[tuple[str, str], str]] = {
    ("STEP", "START"): "STARTED",
    ("STEP", "SUCCEED"): "SUCCEEDED",
    ("STEP", "FAIL"): "FAILED",
    ("STEP", "RETRY"): "PENDING",
    ("CONTEXT", "START"): "STARTED",
    ("CONTEXT", "SUCCEED"): "SUCCEEDED",
    ("CONTEXT", "FAIL"): "FAILED",
    ("WAIT", "START"): "STARTED",
    ("CALLBACK", "START"): "STARTED",
    ("CHAINED_INVOKE", "START"): "STARTED",
}
_ENDED: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "STOPPED"})


@dataclass(frozen=True, slots=True)
class Target:
    """A function that an execution calls, and the version or alias of it."""

    function: str
    qualifier: str | None


@dataclass(frozen=True, slots=True)
class Update:
    """What a checkpoint makes of one operation. ``tries`` are attempts that ended by it."""

    id: str
    type: str
    status: str
    parent_id: str | None = None
    name: str | None = None
    sub_type: str | None = None
    tries: int = 0
    result: str | None = None
    error: str | None = None
    replay: bool = False
    wake_s: float | None = None
    timeout_s: float | None = None
    heartbeat_s: float | None = None
    target: Target | None = None
    payload: str | None = None
    """what a called function gets"""
    started_ms: float | None = None

    @property
    def ended(self) -> bool:
        return self.status in _ENDED

    @property
    def progress(self) -> bool:
        """Something that a later run need not do again."""
        return self.ended or self.type not in ("STEP", "CONTEXT") or self.status == "PENDING"


@dataclass(frozen=True, slots=True)
class Operation:
    """As it is recorded. ``result`` is the text that the library gave; ``error`` an error object of the protocol, as JSON."""

    id: str
    type: str
    status: str
    started_at: datetime
    parent_id: str | None = None
    name: str | None = None
    sub_type: str | None = None
    attempt: int = 0
    result: str | None = None
    error: str | None = None
    replay: bool = False
    wake_at: datetime | None = None
    ended_at: datetime | None = None
    place: int = 0


@dataclass(frozen=True, slots=True)
class Execution:
    """One call that outlives its instances. ``chain``: the functions that called one another down to it."""

    id: str
    scope: Scope
    function_id: str
    function: str
    version: int
    name: str | None
    status: ExecutionStatus
    input: str
    output: str | None
    error: str | None
    caller: str
    source: str
    chain: tuple[str, ...]
    traceparent: str | None
    tracestate: str | None
    epoch: int
    rev: int
    steps: int
    lost: int
    wake_at: datetime | None
    created_at: datetime
    deadline_at: datetime
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Token:
    """Proof of a run: the call that it is, its epoch, and what of the operations it has seen.

    The text is of the alphabet that the protocol has for it.
    """

    request_id: str
    epoch: int
    seen: int

    def text(self) -> str:
        return base64.b64encode(f"{self.request_id}.{self.epoch}.{self.seen}".encode()).decode()

    @classmethod
    def of(cls, text: str) -> "Token":
        """Raises ``version_conflict``."""
        try:
            request_id, epoch, seen = base64.b64decode(text, validate=True).decode().split(".")
            token = cls(request_id, int(epoch), int(seen))
        except (ValueError, binascii.Error):
            raise stale() from None
        if not (0 <= token.epoch < _MANY and 0 <= token.seen < _MANY):
            raise stale()
        return token


def stale() -> NovaError:
    """Another run owns the execution by now, or it has ended. The text begins as the protocol's libraries expect it."""
    return NovaError("version_conflict", "Invalid Checkpoint Token: another run owns this execution, or it has ended")


def non_deterministic(detail: str) -> NovaError:
    return NovaError("invalid_state", f"Nova.NonDeterministic: {detail}")


def arn(tenant: str, function: str, version: int, name: str | None, execution_id: str) -> str:
    """The name of an execution as the protocol has them."""
    shown = re.sub(r"[^A-Za-z0-9_-]", "-", name) if name else execution_id
    return f"arn:nova:lambda:local:{tenant}:function:{function}:{version}/durable-execution/{shown}/{execution_id}"


def execution_of(name: str) -> str:
    """The id in an ARN. Raises ``validation_failed``."""
    found = _ARN(name)
    if found is None:
        raise invalid("DurableExecutionArn", "not the name of a durable execution")
    return found[1]


def callback_id(execution_id: str, operation_id: str) -> str:
    """What outsiders complete a callback by; as hard to guess as the execution's id."""
    return base64.b64encode(f"{execution_id}:{operation_id}".encode()).decode()


def callback_of(text: str) -> tuple[str, str]:
    """The ids of execution and operation. Raises ``not_found``."""
    try:
        execution_id, _, operation_id = base64.b64decode(text, validate=True).decode().partition(":")
    except (ValueError, binascii.Error):
        execution_id = operation_id = ""
    if len(execution_id) != 36 or _ID(operation_id) is None:
        raise NovaError("not_found", "there is no such callback")
    return execution_id, operation_id


def updates(given: Any) -> tuple[Update, ...]:
    """The updates of a checkpoint, those of one operation made into one. Raises ``validation_failed``, ``payload_too_large``
    or ``unsupported``."""
    if not isinstance(given, list):
        raise invalid("Updates", "a list")
    if len(given) > MAX_UPDATES:
        raise invalid("Updates", f"at most {MAX_UPDATES} in one checkpoint")
    merged: dict[str, Update] = {}
    for item in given:
        update = _update(item)
        before = merged.get(update.id)
        merged[update.id] = update if before is None else _both(before, update)
    return tuple(merged.values())


def _both(before: Update, after: Update) -> Update:
    """A step that began and ended between two checkpoints."""
    if (before.type, before.name, before.parent_id, before.sub_type) != (
        after.type,
        after.name,
        after.parent_id,
        after.sub_type,
    ):
        raise non_deterministic(f"operation {after.id} is two different ones in one checkpoint")
    return before if before.ended else after


def _update(item: Any) -> Update:
    if not isinstance(item, dict):
        raise invalid("Updates", "each is an object")
    operation_id, kind, action = item.get("Id"), item.get("Type"), item.get("Action")
    if not isinstance(operation_id, str) or _ID(operation_id) is None:
        raise invalid("Id", "1 to 64 letters, digits, _ and -")
    status = _AFTER.get((str(kind), str(action)))
    if status is None:
        raise NovaError(
            "unsupported", f"Action {str(action)[:32]!r} of a {str(kind)[:32]!r} operation is not supported"
        )
    error = item.get("Error")
    sub_type = _text(item, "SubType")
    if sub_type is not None and _SUB_TYPE(sub_type) is None:
        raise invalid("SubType", "1 to 32 letters, digits, _ and -")
    callback = _options(item, "CallbackOptions")
    return Update(
        id=operation_id,
        type=str(kind),
        status=status,
        parent_id=_text(item, "ParentId"),
        name=_text(item, "Name"),
        sub_type=sub_type,
        tries=1 if kind == "STEP" and action != "START" else 0,
        result=_payload(item) if kind in ("STEP", "CONTEXT") else None,
        payload=_payload(item) if kind == "CHAINED_INVOKE" else None,
        error=None if error is None else _error(error),
        replay=bool(_options(item, "ContextOptions").get("ReplayChildren", False)),
        wake_s=_wake(str(kind), str(action), item),
        timeout_s=_seconds(callback, "TimeoutSeconds", 0) or None,
        heartbeat_s=_seconds(callback, "HeartbeatTimeoutSeconds", 0) or None,
        target=_target(item) if kind == "CHAINED_INVOKE" else None,
        started_ms=_seconds(item, "StartTimestamp", 0) or None,
    )


def _wake(kind: str, action: str, item: Mapping[str, Any]) -> float | None:
    """Seconds until time changes the status."""
    if kind == "WAIT":
        return _seconds(_options(item, "WaitOptions"), "WaitSeconds", 1)
    if action == "RETRY":
        return _seconds(_options(item, "StepOptions"), "NextAttemptDelaySeconds", 1)
    if kind == "CALLBACK":
        options = _options(item, "CallbackOptions")
        given = [_seconds(options, name, 0) for name in ("TimeoutSeconds", "HeartbeatTimeoutSeconds")]
        return min((seconds for seconds in given if seconds), default=None)
    return None


def _target(item: Mapping[str, Any]) -> Target:
    options = _options(item, "ChainedInvokeOptions")
    found = _TARGET(str(options.get("FunctionName", "")))
    if found is None:
        raise invalid("FunctionName", "a function's name, with :qualifier where one is meant")
    if options.get("TenantId") is not None:
        raise NovaError("unsupported", "TenantId: functions are called in the tenant of their caller")
    return Target(found[1], found[2])


def _options(item: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = item.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(name, "an object")
    return value


def _seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        raise invalid(name, "a number that is not negative")
    if name == "StartTimestamp":
        return min(float(value), _LAST_MS)
    if value > MAX_WAIT_S:
        raise invalid(name, f"at most {MAX_WAIT_S}, which is 365 days")
    return float(value)


def _text(item: Mapping[str, Any], name: str) -> str | None:
    value = item.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME or not value.isprintable():
        raise invalid(name, f"1 to {MAX_NAME} printable characters")
    return value


def _payload(item: Mapping[str, Any]) -> str | None:
    value = item.get("Payload")
    if value is None:
        return None
    if not isinstance(value, str):
        raise invalid("Payload", "a text")
    return _kept(value)


def _kept(text: str) -> str:
    if len(text.encode()) > MAX_OUTPUT:
        raise NovaError("payload_too_large", f"an operation keeps at most {MAX_OUTPUT} bytes")
    if "\0" in text:
        raise invalid("Payload", "a text without NUL characters")
    return text


def _error(error: Any) -> str:
    if not isinstance(error, dict):
        raise invalid("Error", "an object")
    return _kept(error_text(error))


def error_text(error: Mapping[str, Any]) -> str:
    """An error object of the protocol, as it is kept."""
    stack = error.get("StackTrace")
    shown = {
        "ErrorType": str(error.get("ErrorType") or "Error")[:256],
        "ErrorMessage": str(error.get("ErrorMessage") or "")[:8192],
    }
    if error.get("ErrorData") is not None:
        shown["ErrorData"] = str(error["ErrorData"])
    lines = (
        [str(line)[:512] for line in stack[:64]] if isinstance(stack, Sequence) and not isinstance(stack, str) else []
    )
    return payload.encode({**shown, "StackTrace": lines}).decode().replace("\\u0000", "")
