"""The guest API: other functions and the function's own state, for code in an instance that needs no network for it.

Who asks is known from the connection: an instance belongs to one version of one function, and nothing it says can make it
another. It acts in its own tenant and namespace, as ``function:<name>``, and with no permission but to call functions there.
"""

from collections.abc import Callable
from typing import Any, Final

import structlog

from nova import payload
from nova.agent import frames
from nova.agent.messages import take
from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import LimitSettings
from nova.domain.call import AsyncOptions, CallRequest, caller_of, check_chain
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Grant, Identity, Scope
from nova.domain.names import is_name, is_qualifier
from nova.domain.ports import Acceptor, Invoker
from nova.domain.shadow import SHADOW_VARIABLE
from nova.domain.state import (
    MAX_PAGE,
    MAX_VALUE,
    Owner,
    StateItem,
    StateValue,
    check_by,
    check_key,
    check_prefix,
    check_ttl,
    check_version,
)
from nova.errors import NovaError, invalid, not_found
from nova.execution.backends.base import Channel
from nova.execution.channel import DirectChannel
from nova.execution.durable import DurableCalls
from nova.execution.guest_desk import Question, Reply
from nova.execution.guest_publish import GuestTopics
from nova.ids import new_id
from nova.store.state import StateStore

log = structlog.get_logger(__name__)

_MIB: Final = 1 << 20
_JSON: Final = {"Content-Type": "application/json"}
_PAGE: Final = 100


class GuestApi:
    """Answers what instances ask. ``invoker`` and ``acceptor`` are set before the first call runs."""

    def __init__(self, states: StateStore, limits: LimitSettings, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._states = states
        self._limits = limits
        self._clock = clock
        self.invoker: Invoker | None = None
        self.acceptor: Acceptor | None = None
        self.durable: DurableCalls | None = None
        self.topics: GuestTopics | None = None

    def attach(self, snapshot: FunctionSnapshot, channel: Channel) -> None:
        """From now on the instance behind ``channel``, which has loaded ``snapshot``, may ask."""
        if isinstance(channel, DirectChannel):
            guest = Guest(self, snapshot)
            channel.guests.serve = guest.serve
            if snapshot.mode == "durable":
                channel.guests.quick = guest.quick

    @property
    def states(self) -> StateStore:
        return self._states

    async def invoke(self, call: CallRequest) -> Reply:
        if self.invoker is None:
            raise NovaError("unsupported", "functions cannot call functions here")
        result = await self.invoker.invoke(call)
        headers = {**_JSON, "X-Nova-Request-Id": result.request_id, "X-Nova-Executed-Version": str(result.version)}
        if result.error is not None:
            detail = f"function {call.function!r} failed: {result.error.type}: {result.error.message}"
            error = result.error.as_dict()
            raise NovaError(
                "function_error", detail[:8192], extra={"error": error, "child_request_id": result.request_id}
            )
        return Reply(200, result.output or b"null", headers)

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Reply:
        if self.acceptor is None:
            raise NovaError("unsupported", "calls cannot be put into a queue here")
        call.caller = caller_of(call.chain)
        accepted = await self.acceptor.accept(call, options)
        body = {"invocation_id": accepted.invocation_id, "status": accepted.status, "function": call.function}
        return Reply(202, payload.encode(body), _JSON)

    def call_of(self, snapshot: FunctionSnapshot, question: Question) -> CallRequest:
        """The call that a function asks for. Its time is what is left of the asking call's."""
        head = question.head
        name, qualifier, key = take(head, "name", str), head.get("qualifier"), head.get("idempotency_key")
        if not is_name(name):
            raise not_found("function", name[:128])
        if qualifier is not None and not (isinstance(qualifier, str) and is_qualifier(qualifier)):
            raise invalid("qualifier", "a version number, an alias, live or $LATEST")
        context: dict[str, Any] = payload.decode(question.context)
        now = self._clock.monotonic()
        left_ms = int((question.deadline - now) * 1000)
        if left_ms <= 0:
            raise NovaError("timeout", "the asking call's time is up")
        call = CallRequest(
            request_id=new_id(),
            scope=snapshot.scope,
            function=name,
            payload=payload.check(question.payload, limit=self._limits.sync_payload_mb * _MIB),
            identity=identity_of(snapshot.scope, snapshot.name),
            received=now,
            qualifier=qualifier,
            timeout_ms=left_ms,
            trigger="function",
            traceparent=context.get("traceparent"),
            tracestate=context.get("tracestate") or None,
            idempotency_key=key if isinstance(key, str) else None,
            caller=f"function:{snapshot.name}",
            chain=(*context.get("call_chain", ()), snapshot.name),
            hops=context.get("hops", 0),
        )
        check_chain(call)
        return call


class Guest:
    """One instance: what it asks is asked for its function."""

    def __init__(self, api: GuestApi, snapshot: FunctionSnapshot) -> None:
        self._api = api
        self._snapshot = snapshot
        self._owner = Owner(snapshot.scope, snapshot.function_id)

    async def serve(self, question: Question) -> Reply:
        """Raises NovaError; FrameError for a head that the agent should not have written."""
        head = question.head
        if question.kind in (frames.STATE_PUT, frames.STATE_DELETE) and SHADOW_VARIABLE in self._snapshot.env:
            raise NovaError("forbidden", "the state is read-only for copies of calls (shadow traffic)")
        match question.kind:
            case frames.CALL:
                return await self._called(question)
            case frames.STATE_GET:
                found = await self._api.states.get(self._owner, check_key(take(head, "key", str)))
                return Reply(200, found.value, {**_JSON, **_tags(found)})
            case frames.STATE_PUT:
                return await self._put(question)
            case frames.STATE_DELETE:
                expected = _optional(head, "expected_version")
                check_version(expected)
                await self._api.states.delete(self._owner, check_key(take(head, "key", str)), expected=expected)
                return Reply(204)
            case _:
                return await self._list(question)

    def quick(self, question: Question, done: Callable[[Reply | None], None]) -> bool:
        """A lone step of a durable function, without a task. False: it is something else."""
        head, durable = question.head, self._api.durable
        if durable is None or head.get("op") != "checkpoint" or head.get("brief") is not True:
            return False
        return durable.step(self._snapshot, str(head.get("arn")), question.payload, done)

    async def _called(self, question: Question) -> Reply:
        op = take(question.head, "op", str)
        if op == "context":
            return Reply(200, question.context, _JSON)
        if op in ("checkpoint", "operations"):
            return await self._durable(op, question)
        if op == "publish":
            if self._api.topics is None:
                raise NovaError("unsupported", "nothing can be published here")
            return await self._api.topics.publish(self._snapshot, question)
        call = self._api.call_of(self._snapshot, question)
        if op == "invoke":
            return await self._api.invoke(call)
        return await self._api.accept(call, AsyncOptions(idempotency_key=call.idempotency_key))

    async def _durable(self, op: str, question: Question) -> Reply:
        durable = self._api.durable
        if durable is None or self._snapshot.mode != "durable":
            raise NovaError("unsupported", "this is not a durable function")
        if op == "checkpoint":
            return await durable.checkpoint(self._snapshot, take(question.head, "arn", str), question.payload)
        return await durable.operations(self._snapshot, question.head)

    async def _put(self, question: Question) -> Reply:
        head, states = question.head, self._api.states
        key, ttl_s = check_key(take(head, "key", str)), _optional(head, "ttl_s")
        check_ttl(ttl_s)
        if (by := _optional(head, "by")) is not None:
            check_by(by)
            if "expected_version" in head:
                raise invalid("If-Match", "an increment needs none")
            counted = await states.increment(self._owner, key, by, ttl_s=ttl_s)
            return Reply(200, counted.value, {**_JSON, **_tags(counted)})
        expected = _optional(head, "expected_version")
        check_version(expected)
        value = payload.check(question.payload, limit=MAX_VALUE, empty=b"null")
        put = await states.put(self._owner, key, value, ttl_s=ttl_s, expected=expected)
        body = {"key": put.key, "version": put.version, "expires_at": put.expires_at}
        return Reply(201 if put.is_new else 200, payload.encode(body), {**_JSON, **_tags(put)})

    async def _list(self, question: Question) -> Reply:
        head = question.head
        limit = _optional(head, "limit")
        limit = _PAGE if limit is None else limit
        if not 1 <= limit <= MAX_PAGE:
            raise invalid("limit", f"from 1 to {MAX_PAGE}")
        prefix = check_prefix(take(head, "prefix", str))
        after = check_prefix(take(head, "after", str)) if "after" in head else None
        found = await self._api.states.page(self._owner, prefix, after=after, limit=limit + 1)
        items = [_item(item) for item in found[:limit]]
        following = found[limit - 1].key if len(found) > limit else None
        return Reply(200, payload.encode({"items": items, "next": following}), _JSON)


def identity_of(scope: Scope, function: str) -> Identity:
    """Who calls when a function does."""
    return Identity(
        f"function:{function}",
        frozenset({scope.tenant}),
        frozenset({scope.namespace}),
        (Grant(frozenset({"function:invoke"})),),
        default_scope=scope,
    )


def _optional(head: Any, name: str) -> int | None:
    return take(head, name, int) if name in head else None


def _tags(found: StateValue) -> dict[str, str]:
    tags = {"ETag": f'"{found.version}"', "X-Nova-Version": str(found.version)}
    if found.expires_at is not None:
        tags["X-Nova-Expires-At"] = found.expires_at.isoformat()
    return tags


def _item(item: StateItem) -> dict[str, Any]:
    return {
        "key": item.key,
        "size": item.size,
        "version": item.version,
        "expires_at": item.expires_at,
        "updated_at": item.updated_at,
    }
