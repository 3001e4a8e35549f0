"""The context object of a call line, as bytes: what a version fixes is encoded once, a call's own values are appended."""

from typing import Final

from nova.domain.function import FunctionSnapshot
from nova.execution.channel_stream import CREDIT
from nova.payload import encode

_STREAMING: Final = b', "streaming": true, "stream_credit": %d' % CREDIT


class ContextEncoder:
    """Encodes contexts for the calls of one version."""

    def __init__(self, snapshot: FunctionSnapshot) -> None:
        fixed = {
            "function_name": snapshot.name,
            "function_id": snapshot.function_id,
            "function_version": str(snapshot.version),
            "memory_limit_mb": snapshot.limits.memory_mb,
            "timeout_s": snapshot.timeout_s,
            "runtime": snapshot.runtime,
            "mode": snapshot.mode,
            "tenant": snapshot.scope.tenant,
            "namespace": snapshot.scope.namespace,
        }
        if snapshot.mode == "durable":
            fixed["asks"] = True  # this host answers questions on the worker's own line
        self._fixed = b", " + encode(fixed)[1:-1]

    def encode(
        self,
        request_id: str,
        deadline_ms: int,
        traceparent: str | None = None,
        tracestate: str | None = None,
        attempt: int = 1,
        chain: tuple[str, ...] = (),
        *,
        streaming: bool = False,
        hops: int = 0,
    ) -> bytes:
        """``deadline_ms`` is Unix time. The request id is always the first member: bootstraps find it without parsing.

        ``chain``: the functions that called one another down to this call; then its last is the ``caller_function``.
        ``hops``: deliveries of messages that led to this call.
        ``streaming``: somebody takes the pieces as they come; a multiplexing worker may send ``stream_credit`` bytes ahead.
        """
        own = b'{"request_id": "%b", "deadline_ms": %d' % (request_id.encode(), deadline_ms)
        if traceparent:
            own += b', "traceparent": %b, "tracestate": %b' % (encode(traceparent), encode(tracestate or ""))
        if chain:
            own += b', "caller_function": %b, "call_depth": %d, "call_chain": %b' % (
                encode(chain[-1]),
                len(chain),
                encode(chain),
            )
        if hops:
            own += b', "hops": %d' % hops
        if streaming:
            own += _STREAMING
        return b'%b%b, "attempt": %d}' % (own, self._fixed, attempt)
