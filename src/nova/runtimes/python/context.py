"""The second argument of a handler."""

import json
import os
import sys
import time
from collections.abc import Awaitable, Mapping
from typing import Any, ClassVar

from nova.runtimes.python import guest

REGION = "local"


class Context:
    """One call's context: the members of its line as attributes, and the names that handlers written for Lambda expect.

    The line is parsed when the first attribute is read, so a handler that does not look pays nothing.
    """

    __slots__ = ("_members", "_text")

    sender: ClassVar[Any] = None
    """Sends a piece: called with the call's id and the piece. How it does that depends on the worker."""

    CallError = guest.CallError
    identity = None
    client_context = None

    def __init__(self, text: str) -> None:
        self._text = text
        self._members: dict[str, Any] | None = None

    def _parsed(self) -> dict[str, Any]:
        if self._members is None:
            self._members = json.loads(self._text)
        return self._members

    def __getattr__(self, name: str) -> Any:
        """request_id, function_name, function_id, function_version, memory_limit_mb, timeout_s, deadline_ms, runtime, …"""
        try:
            return self._parsed()[name]
        except KeyError:
            raise AttributeError(f"the context has no {name!r}") from None

    def __repr__(self) -> str:
        return f"Context({self._parsed()!r})"

    @property
    def traceparent(self) -> str | None:
        value: str | None = self._parsed().get("traceparent")
        return value

    @property
    def tracestate(self) -> str | None:
        value: str | None = self._parsed().get("tracestate")
        return value

    trace = traceparent

    @property
    def aws_request_id(self) -> str:
        return str(self.request_id)

    @property
    def memory_limit_in_mb(self) -> str:
        return str(self.memory_limit_mb)

    @property
    def invoked_function_arn(self) -> str:
        return f"arn:nova:lambda:{REGION}:{self.tenant}:function:{self.function_name}:{self.function_version}"

    @property
    def log_group_name(self) -> str:
        return f"/nova/{self.tenant}/{self.namespace}/{self.function_name}"

    @property
    def log_stream_name(self) -> str:
        return os.environ["AWS_LAMBDA_LOG_STREAM_NAME"]

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until the call is ended; never negative."""
        return max(0, int(self.deadline_ms - time.time() * 1000))

    def write(self, piece: object) -> Awaitable[None]:
        """Send a piece of the answer: text, bytes, or a value. It may be awaited, and must be where many calls run at once.

        A caller who reads slowly makes it wait. In a call that does not stream the pieces become the result. Raises TypeError
        for what is not JSON, RuntimeError outside a call.
        """
        if self.sender is None:
            raise RuntimeError("there is no call")
        sent: Awaitable[None] = self.sender(self.request_id, piece)
        return sent

    @property
    def call_chain(self) -> list[str]:
        """The functions that called one another down to this call, outermost first."""
        chain: list[str] = self._parsed().get("call_chain", [])
        return chain

    @property
    def call_depth(self) -> int:
        return len(self.call_chain)

    @property
    def caller_function(self) -> str | None:
        """The function that made this call, if one did."""
        return self.call_chain[-1] if self.call_chain else None

    @property
    def state(self) -> guest.State:
        """What the function keeps between its calls."""
        return guest.State(self.request_id)

    def invoke(
        self,
        name: str,
        payload: object = None,
        *,
        qualifier: str | int | None = None,
        event: bool = False,
        idempotency_key: str | None = None,
    ) -> Any:
        """Call another function of this tenant and namespace and give its result; awaitable inside a running event loop.

        It has what is left of this call's time, and ends with it. ``event``: put it into the queue instead, and give
        ``{"invocation_id", …}``. Raises :attr:`CallError`.
        """
        return guest.invoke(self.request_id, name, payload, qualifier, event, idempotency_key)

    def publish(
        self,
        topic: str,
        payload: object = None,
        *,
        ordering_key: str | None = None,
        dedup_id: str | None = None,
        delay_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """Publish a message to a topic of this tenant and namespace and give its id; awaitable inside a running event loop.

        It is in the topic when this call succeeds, and not otherwise. Raises :attr:`CallError`.
        """
        return guest.publish(self.request_id, topic, payload, ordering_key, dedup_id, delay_s, headers)

    def log(self, message: object) -> None:
        """One line in the log of this call."""
        sys.stderr.write(f"{message}\n")
