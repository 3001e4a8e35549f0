"""Webhooks, in: what becomes of a request to ``/hooks/{name}``. Every process that serves people has a desk for them.

A request is answered when it is stored: as a job, a message or a run. Each delivery of a sender is taken once, by the key that
what was stored has; a delivery that comes again is refused.
"""

from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256

import structlog

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock
from nova.config import LimitSettings
from nova.domain.asyncs import MAX_PAYLOAD
from nova.domain.call import AsyncOptions, CallRequest
from nova.domain.filters import Fits, compile_filters
from nova.domain.identity import Scope
from nova.domain.message import NewMessage
from nova.domain.ports import Acceptor, Invoker, Publisher, WorkflowStarter
from nova.domain.trigger import WEBHOOK, HookAnswer, HookRequest, TriggerRecord
from nova.errors import NovaError, not_found
from nova.events.acting import acting_for
from nova.events.triggers import targets
from nova.events.triggers.base import SourceEvent, body
from nova.events.triggers.deliver import NoEvents, TriggerEvents
from nova.events.triggers.webhook_config import Config, Proven, verify
from nova.ids import new_id
from nova.payload import too_large
from nova.service import Background
from nova.store.listen import Channel, Listener
from nova.store.triggers import Report, TriggerStore

log = structlog.get_logger(__name__)
REMEMBERED_S = 7 * 86_400
"""So long a delivery is known to have been taken."""
_KEPT = 10_000
"""Webhooks whose settings are kept in memory."""
_BLIND_S = 1.0
"""How long what is known counts while notifications may be missed."""
_REPORT_S = 1.0
_PRIVATE = frozenset({"authorization", "cookie", "x-api-key", "proxy-authorization"})
"""Headers that no function gets to see."""


@dataclass(slots=True)
class _Known:
    record: TriggerRecord | None
    config: Config | None
    wanted: Fits | None
    read_at: float


class Desk:
    """Implements :class:`~nova.domain.trigger.HookDesk`."""

    def __init__(
        self,
        triggers: TriggerStore,
        listener: Listener,
        invoker: Invoker,
        acceptor: Acceptor,
        limits: LimitSettings,
        *,
        publisher: Publisher | None = None,
        starter: WorkflowStarter | None = None,
        clock: Clock = SYSTEM_CLOCK,
        events: TriggerEvents | None = None,
    ) -> None:
        self._store = triggers
        self._listener = listener
        self._invoker = invoker
        self._acceptor = acceptor
        self._limits = limits
        self._ports = targets.Ports(invoker, publisher, starter)
        self._clock = clock
        self._events = events or NoEvents()
        self._known: OrderedDict[tuple[str, str, str], _Known] = OrderedDict()
        self._changes = 0
        self._reports: dict[str, Report] = {}
        self._tasks = Background("hooks")
        listener.on(Channel.TRIGGERS, self._changed)
        listener.on_reconnect(self._known.clear)

    async def start(self) -> None:
        self._tasks.spawn("report", self._report())

    async def close(self) -> None:
        await self._tasks.close()
        with suppress(NovaError):
            await self._report_once()

    async def limit(self, scope: Scope, name: str) -> int:
        """See the port. The event with its envelope must also fit, which is asked when it is made."""
        _, config, _ = await self._find(scope, name)
        return MAX_PAYLOAD if config.response == "202" else self._limits.sync_payload_mb << 20

    async def receive(self, scope: Scope, name: str, request: HookRequest) -> HookAnswer:
        record, config, wanted = await self._find(scope, name)
        try:
            proven = verify(config, request.headers, request.body, self._clock.unix())
        except NovaError:
            self._events.trigger_event(WEBHOOK, "refused")
            raise
        if config.scheme == "slack" and (challenge := _challenge(request.body)) is not None:
            return _answer(200, {"challenge": challenge})
        event = _event(record, request, proven)
        report = self._reports.setdefault(record.id, Report(record.id))
        report.received += 1
        report.last_event_at = self._clock.now()
        if not targets.fits(wanted, event):
            report.processed += 1
            self._events.trigger_event(WEBHOOK, "filtered")
            return _answer(202, {"status": "filtered"})
        try:
            answer = await self._hand_on(record, config, event, proven, request)
        except NovaError as refusal:
            duplicate = refusal.code in ("duplicate_request", "idempotency_conflict")
            self._events.trigger_event(WEBHOOK, "duplicate" if duplicate else "refused")
            report.failed += not duplicate
            report.processed += duplicate
            if refusal.code == "idempotency_conflict":  # the event of a second delivery has another time in it
                raise _repeated() from None
            raise
        report.processed += 1
        self._events.trigger_event(WEBHOOK, "succeeded" if config.response == "sync" else "accepted")
        return answer

    async def _hand_on(
        self, record: TriggerRecord, config: Config, event: SourceEvent, proven: Proven, request: HookRequest
    ) -> HookAnswer:
        key = None if proven.delivery is None else f"hook/{record.id}/{sha256(proven.delivery.encode()).hexdigest()}"
        kind = record.settings.target_type
        if kind == "topic":
            return await self._publish(record, event, key)
        if kind == "workflow":
            return await self._start(record, event, key, request)
        call = self._call(record, event, request)
        if config.response == "sync":
            return await self._invoke(call, key)
        if len(call.payload) > MAX_PAYLOAD:
            raise too_large(MAX_PAYLOAD)
        options = AsyncOptions(
            max_attempts=record.settings.max_attempts, idempotency_key=key, idempotency_ttl_s=REMEMBERED_S
        )
        accepted = await self._acceptor.accept(call, options)
        if accepted.replayed:
            raise _repeated()
        return _answer(202, {"status": accepted.status, "invocation_id": accepted.invocation_id})

    async def _invoke(self, call: CallRequest, key: str | None) -> HookAnswer:
        call.idempotency_key = key
        result = await self._invoker.invoke(call)
        if result.deduplicated:
            raise _repeated()
        if result.error is not None or result.output is None:
            raise NovaError("function_error", "the function failed")
        return HookAnswer(200, result.output)

    async def _publish(self, record: TriggerRecord, event: SourceEvent, key: str | None) -> HookAnswer:
        publisher = self._ports.publisher
        if publisher is None:
            raise NovaError("unsupported", "topics cannot be reached from this process")
        message = NewMessage(
            payload=event.data,
            dedup_id=key,
            id=event.id,
            source=event.source,
            type=event.type,
            time=event.time,
            extensions={"novatrigger": record.settings.name},
        )
        (published,) = await publisher.publish(
            record.scope, record.settings.target, [message], caller=record.created_by
        )
        if published.duplicate:
            raise _repeated()
        return _answer(202, {"status": "published", "message_id": published.id})

    async def _start(
        self, record: TriggerRecord, event: SourceEvent, key: str | None, request: HookRequest
    ) -> HookAnswer:
        starter = self._ports.starter
        if starter is None:
            raise NovaError("unsupported", "workflows cannot be reached from this process")
        run_id = await starter.start(
            record.scope,
            record.settings.target,
            targets.envelope(record, event, self._clock),
            key=key or event.id,
            caller=record.created_by,
            traceparent=request.traceparent,
            tracestate=request.tracestate,
        )
        return _answer(202, {"status": "started", "run_id": run_id})

    def _call(self, record: TriggerRecord, event: SourceEvent, request: HookRequest) -> CallRequest:
        return CallRequest(
            request_id=request.request_id,
            scope=record.scope,
            function=record.settings.target,
            payload=targets.envelope(record, event, self._clock),
            identity=acting_for(record.created_by, record.scope),
            received=request.received,
            qualifier=record.settings.qualifier,
            trigger="trigger",
            traceparent=request.traceparent,
            tracestate=request.tracestate,
            source_address=request.address,
            caller=f"trigger:{record.settings.name}",
        )

    async def _find(self, scope: Scope, name: str) -> tuple[TriggerRecord, Config, Fits | None]:
        """Raises ``not_found`` for what is no webhook, ``invalid_state`` for one that is paused."""
        key = (scope.tenant, scope.namespace, name)
        known = self._known.get(key)
        if known is None or not (self._listener.connected or self._clock.monotonic() - known.read_at < _BLIND_S):
            known = await self._read(key, scope)
        record, config = known.record, known.config
        if record is None or config is None:
            raise not_found("webhook", name)
        if not record.settings.enabled:
            raise NovaError("invalid_state", "the webhook is paused", status=503, retry_after_s=60)
        return record, config, known.wanted

    async def _read(self, key: tuple[str, str, str], scope: Scope) -> _Known:
        before, now = self._changes, self._clock.monotonic()
        record = await self._store.by_name(scope, key[2])
        if record is None or record.type != WEBHOOK:
            known = _Known(None, None, None, now)
        else:
            config = Config.model_validate(dict(record.settings.config))
            known = _Known(record, config, compile_filters(record.settings.filters), now)
        if self._changes == before:  # else it may have changed while it was read
            self._known[key] = known
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known

    def _changed(self, said: str) -> None:
        self._changes += 1
        change = payload.decode(said)
        self._known.pop((change["tenant"], change["namespace"], change["name"]), None)

    async def _report(self) -> None:
        while True:
            await self._clock.sleep(_REPORT_S)
            try:
                await self._report_once()
            except NovaError as error:
                log.debug("the counts of webhooks could not be written", error=error.detail)

    async def _report_once(self) -> None:
        if not self._reports:
            return
        reports, self._reports = self._reports, {}
        try:
            await self._store.report(list(reports.values()))
        except BaseException:
            for trigger_id, report in reports.items():
                newer = self._reports.setdefault(trigger_id, Report(trigger_id))
                newer.received += report.received
                newer.processed += report.processed
                newer.failed += report.failed
                newer.last_event_at = newer.last_event_at or report.last_event_at
            raise


def _event(record: TriggerRecord, request: HookRequest, proven: Proven) -> SourceEvent:
    data = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": {name: value for name, value in request.headers.items() if name not in _PRIVATE},
        "body": body(request.body),
    }
    return SourceEvent(
        id=proven.delivery or new_id(),
        type="nova.trigger.webhook",
        source=f"/triggers/{record.settings.name}",
        data=payload.encode(data),
    )


def _challenge(raw: bytes) -> str | None:
    """What Slack asks to be repeated when a URL is given to it."""
    try:
        document = payload.decode(raw)
    except ValueError:
        return None
    if not isinstance(document, dict) or document.get("type") != "url_verification":
        return None
    challenge = document.get("challenge")
    return challenge if isinstance(challenge, str) else None


def _answer(status: int, document: object) -> HookAnswer:
    return HookAnswer(status, payload.encode(document))


def _repeated() -> NovaError:
    return NovaError("duplicate_request", "this delivery was taken before")
