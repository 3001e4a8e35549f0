"""``invoke-async`` over HTTP: in the process that has the queue, and in zenith, which hands the call on."""

import json

from nova.api.asyncs import AcceptedJob, InvokeAsync
from nova.api.table import Empty
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.asyncs import MAX_DELAY_S
from nova.domain.call import AsyncOptions, CallRequest
from nova.domain.ports import Acceptor
from nova.errors import invalid
from nova.http.handler import Answer, Req, handles

_DEFAULTED = ("idempotency_ttl_s", "concurrency_limit", "debounce_s")


class AcceptHandlers:
    """``acceptor`` commits the calls."""

    def __init__(self, acceptor: Acceptor, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._acceptor = acceptor
        self._clock = clock

    @handles("function.invoke_async")
    async def invoke(self, req: Req[InvokeAsync, Empty]) -> Answer:
        body, name = req.body, req.params["name"]
        _fits(body)
        value = req.raw_body.get("payload", {})
        call = CallRequest(
            request_id=req.request_id,
            scope=req.scope,
            function=name,
            payload=json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(),
            identity=req.identity,
            received=self._clock.monotonic(),
            qualifier=body.qualifier,
            traceparent=req.http.headers.get("traceparent"),
            tracestate=req.http.headers.get("tracestate"),
        )
        options = AsyncOptions(
            max_attempts=body.max_attempts,
            backoff_base_ms=body.backoff_base_ms,
            backoff_max_ms=body.backoff_max_ms,
            max_age_s=body.max_age_s,
            delay_s=self._delay_s(body),
            idempotency_key=_key(body, req),
            priority=body.priority,
            concurrency_key=body.concurrency_key,
            debounce_key=body.debounce_key,
            debounce_max_s=body.debounce_max_s,
            callback_url=body.callback_url,
            keep_s=body.keep_s,
            **{name: value for name in _DEFAULTED if (value := getattr(body, name)) is not None},
        )
        accepted = await self._acceptor.accept(call, options)
        headers = {"Location": f"/async-invocations/{accepted.invocation_id}"}
        if accepted.replayed:
            headers["X-Idempotency-Status"] = "replay"
        job = {"invocation_id": accepted.invocation_id, "status": accepted.status, "function": name}
        return Answer(AcceptedJob.model_validate(job), 200 if accepted.replayed else 202, headers)

    def _delay_s(self, body: InvokeAsync) -> float:
        if body.not_before is None:
            return body.delay_s or 0.0
        if body.delay_s is not None:
            raise invalid("not_before", "cannot go with delay_s")
        delay_s = max(0.0, (body.not_before - self._clock.now()).total_seconds())
        if delay_s > MAX_DELAY_S:
            raise invalid("not_before", f"at most {MAX_DELAY_S // 86_400} days from now")
        return delay_s


def _fits(body: InvokeAsync) -> None:
    """Raise ``validation_failed`` for fields that say nothing without another, or contradict it."""
    if body.concurrency_limit is not None and body.concurrency_key is None:
        raise invalid("concurrency_limit", "needs concurrency_key")
    for field in ("debounce_s", "debounce_max_s"):
        if getattr(body, field) is not None and body.debounce_key is None:
            raise invalid(field, "needs debounce_key")
    for field in ("idempotency_key", "delay_s", "not_before"):
        if body.debounce_key is not None and getattr(body, field) is not None:
            raise invalid("debounce_key", f"cannot go with {field}")


def _key(body: InvokeAsync, req: Req[InvokeAsync, Empty]) -> str | None:
    """The key of the body, or of the header. Raises ``validation_failed`` for two that differ."""
    header = req.http.headers.get("idempotency-key")
    if header is not None and body.idempotency_key not in (None, header):
        raise invalid("idempotency_key", "is another one than in the Idempotency-Key header")
    return header or body.idempotency_key
