"""Idempotency keys of calls that somebody waits for: repeated within a day, such a call runs once and is answered alike.

Only calls with a key touch the database. Kept is what the function did: its output, its error, or that it ran out of time.
What never reached it (and what may have been interrupted half-way) frees the key, so that the caller may try again.
"""

import asyncio
import hashlib
from collections.abc import Callable

import msgspec
import structlog

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.asyncs import MAX_KEY
from nova.domain.call import CallRequest, CallResult, StartSource
from nova.domain.ports import Flight, Invoker, Starter, Streamer
from nova.domain.stream import Sink
from nova.errors import FunctionError, NovaError, invalid
from nova.service import Background
from nova.store.idempotency import IdempotencyStore, Reservation, Stored

log = structlog.get_logger(__name__)
TTL_S = 86_400.0
LEASE_S = 30.0
_KEPT_REFUSALS = frozenset({"timeout"})
"""The function ran and its time was up: running it again is not the same as the first time."""


class _Answer(msgspec.Struct, omit_defaults=True):
    """A result as it is kept."""

    request_id: str
    version: int
    duration_us: int
    cold_start: bool
    instance_id: str
    source: StartSource = "warm"
    attempt: int = 1
    succeeded: bool = False
    output: msgspec.Raw = msgspec.Raw(b"null")
    error: tuple[str, str, tuple[str, ...]] | None = None
    refusal: tuple[str, str] | None = None


class IdempotentInvoker:
    """Implements :class:`~nova.domain.ports.Invoker` and :class:`~nova.domain.ports.Streamer` around another."""

    def __init__(
        self, inner: Invoker, store: IdempotencyStore, clock: Clock = SYSTEM_CLOCK, *, lease_s: float = LEASE_S
    ) -> None:
        self._inner = inner
        self._begin = inner.begin if isinstance(inner, Starter) else None
        self._store = store
        self._clock = clock
        self._lease_s = lease_s
        self._held: dict[str, Reservation] = {}
        self._tasks = Background("idempotency")

    async def start(self) -> None:
        self._tasks.spawn("renew", self._renew())

    async def close(self) -> None:
        await self._tasks.close()

    def begin(self, call: CallRequest, done: Callable[[CallResult | NovaError], None]) -> Flight | None:
        """As the inner invoker, which knows nothing of keys; None for a call with one."""
        if self._begin is None or call.idempotency_key is not None:
            return None
        return self._begin(call, done)

    async def invoke(self, call: CallRequest) -> CallResult:
        """As the inner invoker; with a key also ``validation_failed``, ``idempotency_conflict`` and
        ``idempotency_in_progress``."""
        if call.idempotency_key is None:
            return await self._inner.invoke(call)
        _check(call.idempotency_key)
        found = await self._store.reserve(
            call.scope,
            f"invoke/{call.function}",
            call.idempotency_key,
            _hash(call),
            call.request_id,
            ttl_s=TTL_S,
            lease_s=self._lease_s,
        )
        if isinstance(found, Stored):
            return _replay(found)
        return await self._first(call, found)

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """As the inner invoker; ``validation_failed`` for a call with a key: what went to one caller cannot be repeated."""
        if call.idempotency_key is not None:
            raise invalid("Idempotency-Key", "a streaming call cannot have one: its pieces are not kept")
        assert isinstance(self._inner, Streamer)
        return await self._inner.stream(call, sink)

    async def _first(self, call: CallRequest, held: Reservation) -> CallResult:
        call.attempt = held.attempt
        self._held[held.subject] = held
        try:
            try:
                result = await self._inner.invoke(call)
            except NovaError as refusal:
                if refusal.code in _KEPT_REFUSALS:
                    await self._keep(held, _refusal(call, held, refusal))
                else:
                    await self._free(held)
                raise
            except BaseException:
                # the caller went away: what the function had done by then nobody knows, so the key must not say that it is done
                await asyncio.shield(self._tasks.spawn("free", self._free(held)))
                raise
            await self._keep(held, _answer(result, held))
            return result
        finally:
            self._held.pop(held.subject, None)

    async def _keep(self, held: Reservation, answer: _Answer) -> None:
        """The function has run: that the answer cannot be kept must not take it from the caller."""
        try:
            await self._store.answer(held, payload.encode(answer))
        except NovaError as error:
            log.warning("the answer to an idempotency key could not be kept", error=error.detail)

    async def _free(self, held: Reservation) -> None:
        try:
            await self._store.release(held)
        except NovaError as error:
            log.warning("an idempotency key could not be freed; its lease will run out", error=error.detail)

    async def _renew(self) -> None:
        while True:
            await self._clock.sleep(self._lease_s / 3)
            if self._held:
                try:
                    await self._store.renew(list(self._held.values()), lease_s=self._lease_s)
                except NovaError as error:
                    log.warning("cannot renew idempotency keys", error=error.detail)


def _check(key: str) -> None:
    if not 0 < len(key) <= MAX_KEY or not all("!" <= character <= "~" for character in key):
        raise invalid("Idempotency-Key", f"1 to {MAX_KEY} visible ASCII characters without spaces")


def _hash(call: CallRequest) -> bytes:
    return hashlib.sha256(b"\0".join((call.payload, (call.qualifier or "").encode()))).digest()


def _answer(result: CallResult, held: Reservation) -> _Answer:
    error = result.error
    return _Answer(
        request_id=result.request_id,
        version=result.version,
        duration_us=result.duration_us,
        cold_start=result.cold_start,
        instance_id=result.instance_id,
        source=result.source,
        attempt=held.attempt,
        succeeded=result.output is not None,
        output=msgspec.Raw(result.output or b"null"),
        error=None if error is None else (_text(error.type), _text(error.message), tuple(map(_text, error.stack))),
    )


def _refusal(call: CallRequest, held: Reservation, refusal: NovaError) -> _Answer:
    return _Answer(
        call.request_id, 0, 0, False, "", attempt=held.attempt, refusal=(refusal.code, _text(refusal.detail))
    )


def _replay(stored: Stored) -> CallResult:
    kept = msgspec.json.decode(stored.answer, type=_Answer)
    if kept.refusal is not None:
        code, detail = kept.refusal
        raise NovaError(code, detail, extra={"deduplicated": True, "first_request_id": kept.request_id})
    return CallResult(
        request_id=kept.request_id,
        version=kept.version,
        output=bytes(kept.output) if kept.succeeded else None,
        error=None if kept.error is None else FunctionError(*kept.error),
        duration_us=kept.duration_us,
        cold_start=kept.cold_start,
        instance_id=kept.instance_id,
        source=kept.source,
        deduplicated=True,
    )


def _text(text: str) -> str:
    """Without half surrogates, which JSON in UTF-8 cannot hold."""
    return text.encode("utf-8", "replace").decode()
