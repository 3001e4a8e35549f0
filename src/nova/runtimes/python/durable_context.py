"""The context of a durable function: ``context.step`` and what goes with it.

What a run did before is answered from the record, so it comes to where it was; what is new is recorded before the next
begins. Where it has to wait, the run ends by :class:`Suspend`, and another one follows.
"""

import datetime
import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from nova.runtimes.python import answers
from nova.runtimes.python.context import Context
from nova.runtimes.python.durable_drivers import All, Steps, awaiting, calling
from nova.runtimes.python.durable_run import NonDeterministic, Run, RunLost, StepError, Stop, Suspend, WaitTimeout
from nova.runtimes.python.guest import CallError

MAX_OUTPUT: Final = 256 << 10
_MAX_ID: Final = 64
_MAX_BACKOFF_S: Final = 3600
_THREADS: Final = 32


class Callback:
    """Something that an outsider completes by its ``id``: ``POST /durable-callbacks/{id}/succeed`` or ``/fail``."""

    __slots__ = ("_context", "_operation_id", "id")

    def __init__(self, context: "DurableContext", operation_id: str) -> None:
        self._context = context
        self._operation_id = operation_id
        self.id: str = context._run.operations[operation_id]["CallbackDetails"]["CallbackId"]

    def result(self) -> Any:
        """What it was completed with. Raises :class:`StepError` when it failed, :class:`WaitTimeout` when it is too late."""
        return self._context._drive(self._context._awaited(self._operation_id, "CallbackDetails"))


class DurableContext(Context):
    """The context of a durable function: all of :class:`Context`, and operations that happen once.

    Of an asynchronous handler every operation is awaitable. Results are JSON, at most 256 KiB.
    """

    __slots__ = ("_count", "_is_async", "_parent", "_randoms", "_run")

    StepError = StepError
    WaitTimeout = WaitTimeout

    def __init__(self, text: str, run: Run, is_async: bool, parent: str | None = None) -> None:
        super().__init__(text)
        self._run = run
        self._is_async = is_async
        self._parent = parent
        self._count = 0
        self._randoms = 0

    @property
    def execution(self) -> str:
        """The id of the execution that this run belongs to."""
        return self._run.arn.rpartition("/")[2]

    def step(self, name: str, fn: Callable[..., Any], *args: Any, retries: int = 3, backoff_s: float = 1) -> Any:
        """``fn(*args)``, once it has succeeded never again. A failure is tried again ``retries`` times, first after
        ``backoff_s`` seconds and then after twice as long each time; nothing is held meanwhile. Raises :class:`StepError`."""
        return self._drive(self._step(name, fn, args, retries, backoff_s))

    def sleep(self, name: str, seconds: float) -> Any:
        """Wait, up to 365 days, without holding an instance."""
        return self._drive(self._sleep(name, seconds))

    def wait_event(self, name: str, timeout_s: float | None = None) -> Any:
        """The payload of the next event of this name that is sent to the execution. Raises :class:`WaitTimeout`."""
        return self._drive(self._wait_event(name, timeout_s))

    def callback(self, name: str, timeout_s: float | None = None, heartbeat_s: float | None = None) -> Any:
        """A :class:`Callback` that an outsider completes."""
        return self._drive(self._callback(name, timeout_s, heartbeat_s))

    def invoke(  # type: ignore[override]
        self, function: str, payload: object = None, *, name: str | None = None, qualifier: str | int | None = None
    ) -> Any:
        """Call another function and give its result; nothing is held while it runs. Raises :attr:`CallError`."""
        return self._drive(self._invoke(function, payload, name or function, qualifier))

    def child(self, name: str, fn: Callable[..., Any], *args: Any) -> Any:
        """``fn(context, *args)`` with a context of its own, whose operations are recorded below it."""
        return self._drive(self._context("RunInChildContext", name, fn, args))

    def map(self, name: str, items: Iterable[Any], fn: Callable[..., Any], *, max_concurrency: int = _THREADS) -> Any:
        """``[fn(context, item), …]``, so many side by side. Raises the first failure when all have ended."""
        given = [(f"{name}[{number}]", fn, (item,)) for number, item in enumerate(items)]
        return self._drive(self._many("Map", "MapIteration", name, given, max_concurrency))

    def parallel(self, name: str, *branches: Callable[..., Any], max_concurrency: int = _THREADS) -> Any:
        """``[branch(context), …]`` side by side. Raises the first failure when all have ended."""
        given = [(f"{name}[{number}]", branch, ()) for number, branch in enumerate(branches)]
        return self._drive(self._many("Parallel", "ParallelBranch", name, given, max_concurrency))

    def now(self) -> Any:
        """The time of the first run that came here, UTC."""
        return self._drive(self._now())

    def random(self) -> float:
        """From 0 up to 1, the same in each run; no two executions have the same."""
        self._randoms += 1
        return random.Random(f"{self._run.arn}/{self._parent}/{self._randoms}").random()

    # Operations

    def _at(self, kind: str, sub_type: str, name: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """The operation at the next place as an update names it, and what is recorded there."""
        self._count += 1
        operation_id = f"{self._parent}-{self._count}" if self._parent else str(self._count)
        if len(operation_id) > _MAX_ID:
            operation_id = hashlib.blake2b(operation_id.encode(), digest_size=32).hexdigest()
        place = {"Id": operation_id, "Type": kind, "SubType": sub_type, "Name": name}
        if self._parent is not None:
            place["ParentId"] = self._parent
        known = self._run.operations.get(operation_id)
        if known is not None:
            recorded = (known["Type"], known.get("SubType"), known.get("Name"))
            if recorded != (kind, sub_type, name):
                raise NonDeterministic(
                    f"Nova.NonDeterministic: operation {operation_id} is {sub_type} {name!r}, and "
                    f"{recorded[1]} {recorded[2]!r} is recorded there"
                )
        return place, known

    def _step(self, name: str, fn: Callable[..., Any], args: tuple[Any, ...], retries: int, backoff_s: float) -> Steps:
        place, known = self._at("STEP", "Step", name)
        details = (known or {}).get("StepDetails", {})
        status = known["Status"] if known else None
        if status == "SUCCEEDED":
            return _value(details)
        if status == "FAILED":
            raise StepError(details.get("Error", {}))
        if status == "PENDING":
            raise Suspend
        place["StartTimestamp"] = time.time() * 1000
        try:
            text = _text(f"the result of step {name!r}", (yield fn, args))
        except Exception as error:
            attempt = int(details.get("Attempt", 0)) + 1
            told = error_of(error)
            if attempt <= retries:
                pause = min(backoff_s * 2.0 ** min(attempt - 1, 40), _MAX_BACKOFF_S)
                options = {"NextAttemptDelaySeconds": pause}
                self._run.record({**place, "Action": "RETRY", "Error": told, "StepOptions": options})
                raise Suspend from None
            self._run.record({**place, "Action": "FAIL", "Error": told})
            raise StepError(told) from error
        self._run.record({**place, "Action": "SUCCEED", "Payload": text})
        return json.loads(text)

    def _now(self) -> Steps:
        yield from ()
        place, known = self._at("STEP", "Now", "now")
        if known is None:
            text = json.dumps(time.time())
            self._run.record({**place, "Action": "SUCCEED", "Payload": text})
        else:
            text = known["StepDetails"]["Result"]
        return datetime.datetime.fromtimestamp(json.loads(text), datetime.UTC)

    def _sleep(self, name: str, seconds: float) -> Steps:
        yield from ()
        place, known = self._at("WAIT", "Wait", name)
        if known is None:
            self._run.record({**place, "Action": "START", "WaitOptions": {"WaitSeconds": seconds}})
            raise Suspend
        if known["Status"] != "SUCCEEDED":
            raise Suspend

    def _wait_event(self, name: str, timeout_s: float | None) -> Steps:
        operation_id = self._begin_callback("WaitEvent", name, {"TimeoutSeconds": timeout_s or 0})
        return (yield from self._awaited(operation_id, "CallbackDetails"))

    def _callback(self, name: str, timeout_s: float | None, heartbeat_s: float | None) -> Steps:
        yield from ()
        options = {"TimeoutSeconds": timeout_s or 0, "HeartbeatTimeoutSeconds": heartbeat_s or 0}
        return Callback(self, self._begin_callback("Callback", name, options))

    def _begin_callback(self, sub_type: str, name: str, options: Mapping[str, float]) -> str:
        place, known = self._at("CALLBACK", sub_type, name)
        if known is None:
            self._run.record({**place, "Action": "START", "CallbackOptions": options})
        return str(place["Id"])

    def _awaited(self, operation_id: str, details: str) -> Steps:
        """The result of what others end."""
        yield from ()
        operation = self._run.operations[operation_id]
        told = operation.get(details, {})
        match operation["Status"]:
            case "SUCCEEDED":
                return _value(told)
            case "TIMED_OUT":
                raise WaitTimeout(told.get("Error", {}))
            case "FAILED" | "STOPPED" | "CANCELLED":
                raise StepError(told.get("Error", {}))
        raise Suspend

    def _invoke(self, function: str, payload: object, name: str, qualifier: str | int | None) -> Steps:
        place, known = self._at("CHAINED_INVOKE", "ChainedInvoke", name)
        if known is None:
            target = function if qualifier is None else f"{function}:{qualifier}"
            text = _text(f"the payload for {function!r}", payload)
            options = {"FunctionName": target}
            self._run.record({**place, "Action": "START", "Payload": text, "ChainedInvokeOptions": options})
        try:
            return (yield from self._awaited(str(place["Id"]), "ChainedInvokeDetails"))
        except StepError as error:
            told = {"type": error.type, "message": str(error), "stack": error.stack}
            raise CallError(502, {"code": "function_error", "error": told}) from None

    def _context(self, sub_type: str, name: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Steps:
        place, known = self._at("CONTEXT", sub_type, name)
        done = self._done(known)
        if done is not None:
            return done[0]
        below = DurableContext(self._text, self._run, self._is_async, str(place["Id"]))
        try:
            value = yield fn, (below, *args)
            text = encoded(f"the result of {name!r}", value)
        except Exception as error:
            if isinstance(error, RunLost):
                raise
            told = error_of(error)
            if known is None:
                self._run.record({**place, "Action": "FAIL", "Error": told})
            raise StepError(told) from error
        return self._keep(place, known, text)

    def _many(
        self,
        sub_type: str,
        each: str,
        name: str,
        given: list[tuple[str, Callable[..., Any], tuple[Any, ...]]],
        limit: int,
    ) -> Steps:
        if limit < 1:
            raise ValueError("max_concurrency: at least 1")
        place, known = self._at("CONTEXT", sub_type, name)
        done = self._done(known)
        if done is not None:
            return done[0]
        below = DurableContext(self._text, self._run, self._is_async, str(place["Id"]))
        parts = [below._branch(number, each, *one) for number, one in enumerate(given, 1)]
        outcomes = yield All(parts, limit)
        stops = [error for _, error in outcomes if isinstance(error, Stop | RunLost)]
        if stops:
            raise next((stop for stop in stops if not isinstance(stop, Suspend)), stops[0])
        failed = next((error for _, error in outcomes if error is not None), None)
        if failed is not None:
            told = error_of(failed)
            self._run.record({**place, "Action": "FAIL", "Error": told})
            raise StepError(told) from failed
        return self._keep(place, known, encoded(f"the result of {name!r}", [value for value, _ in outcomes]))

    def _branch(self, number: int, sub_type: str, name: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Steps:
        """A branch has its place by its number, whichever comes first."""
        own = DurableContext(self._text, self._run, self._is_async, self._parent)
        own._count = number - 1
        return own._context(sub_type, name, fn, args)

    @staticmethod
    def _done(known: dict[str, Any] | None) -> tuple[Any] | None:
        """The recorded result; None: the context has to run, to make it or to make it again."""
        if known is None or known["Status"] == "STARTED":
            return None
        details = known["ContextDetails"]
        if known["Status"] != "SUCCEEDED":
            raise StepError(details.get("Error", {}))
        return None if details.get("ReplayChildren") else (_value(details),)

    def _keep(self, place: dict[str, Any], known: dict[str, Any] | None, text: str) -> Any:
        if known is None or known["Status"] == "STARTED":
            large = len(text.encode()) > MAX_OUTPUT
            kept = {"ContextOptions": {"ReplayChildren": True}} if large else {"Payload": text}
            self._run.record({**place, "Action": "SUCCEED", **kept})
        return json.loads(text)

    def _drive(self, steps: Steps) -> Any:
        return awaiting(steps) if self._is_async else calling(steps)


def encoded(what: str, value: Any) -> str:
    return answers.document(value, what).decode()


def _text(what: str, value: Any) -> str:
    """JSON. Raises TypeError, or ValueError when it is too large to be kept."""
    text = encoded(what, value)
    if len(text.encode()) > MAX_OUTPUT:
        raise ValueError(f"{what} is larger than {MAX_OUTPUT} bytes")
    return text


def _value(details: Mapping[str, Any]) -> Any:
    text = details.get("Result")
    return None if text is None else json.loads(text)


def error_of(error: BaseException, code_dir: str = "") -> dict[str, Any]:
    """An error object of the protocol."""
    kind = error.type if isinstance(error, StepError) else type(error).__name__
    told = json.loads(answers.of_exception(error, code_dir or os.environ.get("NOVA_CODE_DIR", "/code")))["error"]
    return {"ErrorType": kind, "ErrorMessage": told["message"], "StackTrace": told["stack"]}
