"""What the API says of a subscription, as it is kept, and the other way round."""

import base64
import secrets
from dataclasses import asdict, fields
from typing import Any

from nova.api import subscriptions as api
from nova.domain.filters import compile_filters
from nova.domain.identity import Identity
from nova.errors import invalid
from nova.http import body as bodies
from nova.payload import encode
from nova.security import access
from nova.store.bus_deliveries import DeliveryRecord
from nova.store.subscriptions import Figures, SubscriptionRecord, SubscriptionSettings

MAX_WEBHOOKS = 100
"""Connections to one receiver."""
_BYTES = 32
_PREFIX = "whsec_"
_SHOWN = 4
_TARGETS = {"function": "function_name", "workflow": "workflow_name", "webhook": "webhook_url"}
_SAME = tuple(field.name for field in fields(SubscriptionSettings) if field.name not in ("type", "target"))
"""Settings that are called in the API as they are here."""
_ONLY = {
    "function": ("qualifier", "timeout_s", "batch_size", "batch_window_ms"),
    "webhook": ("webhook_method", "webhook_headers", "webhook_timeout_ms", "webhook_signing_secret"),
}
_RESERVED = frozenset({"content-type", "content-length", "connection", "host", "transfer-encoding", "user-agent", "te"})
_MAPS = ("webhook_headers",)


def new_secret() -> str:
    """As Standard Webhooks libraries take it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def check_right(identity: Identity, settings: SubscriptionSettings) -> None:
    """Raise ``forbidden`` unless they may do what it does in their name."""
    if settings.type == "function":
        access.require(identity, "function:invoke", settings.target)
    elif settings.type == "workflow":
        access.require(identity, "workflow:invoke", None)
    if settings.dead_letter_topic is not None:
        access.require(identity, "event:publish", None)


def settings_of(body: api.SubscriptionCreate) -> SubscriptionSettings:
    """Raises ``validation_failed`` for what does not go together, naming the field."""
    for kind, name in _TARGETS.items():
        if kind == body.type and getattr(body, name) is None:
            raise invalid(name, f"is what a subscription of type {kind} is about")
        if kind != body.type and getattr(body, name) is not None:
            raise invalid(name, f"is for subscriptions of type {kind}")
    for kind, names in _ONLY.items():
        for name in names:
            if kind != body.type and getattr(body, name) != api.SubscriptionCreate.model_fields[name].default:
                raise invalid(name, f"is for subscriptions of type {kind}")
    if body.backoff_max_ms < body.backoff_base_ms:
        raise invalid("backoff_max_ms", "is less than backoff_base_ms")
    if body.batch_window_ms and body.batch_size == 1:
        raise invalid("batch_window_ms", "needs a batch_size above 1")
    for header in body.webhook_headers:
        if header.lower() in _RESERVED or header.lower().startswith(("webhook-", "x-nova-")):
            raise invalid(f"webhook_headers.{header}", "is set by the platform")
    if body.type == "webhook" and body.max_inflight > MAX_WEBHOOKS:
        raise invalid("max_inflight", f"is at most {MAX_WEBHOOKS} for a webhook")
    if body.webhook_signing_secret is not None:
        _check_secret(body.webhook_signing_secret)
    compile_filters(body.filters)
    target = getattr(body, _TARGETS[body.type])
    return SubscriptionSettings(type=body.type, target=target, **{name: getattr(body, name) for name in _SAME})


def _check_secret(text: str) -> None:
    try:
        base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        raise invalid("webhook_signing_secret", "is not base64 after whsec_") from None


def merged(record: SubscriptionRecord, patch: dict[str, Any]) -> api.SubscriptionCreate:
    """A merge patch, checked like a creation."""
    for name in ("name", _TARGETS[record.settings.type]):
        if patch.get(name, "") is None:
            raise invalid(name, "cannot be taken away")
    current: dict[str, Any] = asdict(record.settings)
    kind, target = current.pop("type"), current.pop("target")
    current |= {
        "name": record.name,
        "type": kind,
        _TARGETS[kind]: target,
        "consumer_group": record.consumer_group,
        "enabled": record.enabled,
    }
    changes = {name: value for name, value in patch.items() if name not in _MAPS or value is None}
    for name in _MAPS:
        if isinstance(change := patch.get(name), dict):
            both = {**current[name], **change}
            changes[name] = {key: value for key, value in both.items() if value is not None}
    after = {name: value for name, value in {**current, **changes}.items() if value is not None}
    return bodies.parse(api.SubscriptionCreate, encode(after))


def view(record: SubscriptionRecord, figures: Figures, *, secret: str | None = None) -> api.Subscription:
    """``secret`` is shown whole; without it, what there is of one is masked."""
    settings, current = record.settings, record.secrets.current
    lag = max(0, figures.ahead) + figures.queued
    masked = None if current is None else f"{_PREFIX}…{current[-_SHOWN:]}"
    return api.Subscription(
        **{name: getattr(settings, name) for name in _SAME},
        id=record.id,
        topic=record.topic,
        name=record.name,
        type=settings.type,
        function_name=settings.target if settings.type == "function" else None,
        workflow_name=settings.target if settings.type == "workflow" else None,
        webhook_url=settings.target if settings.type == "webhook" else None,
        consumer_group=record.consumer_group,
        enabled=record.enabled,
        webhook_signing_secret=secret or masked,
        disabled_reason=record.disabled_reason,
        lag=lag,
        queued=figures.queued,
        dlq=figures.dlq,
        expired=record.expired,
        oldest_unacked_age_s=figures.oldest_s if lag else None,
        last_acked_sequence=figures.acked,
        generation=record.generation,
        created_by=record.created_by,
        created_at=record.created_at,
        updated_at=record.updated_at,
    )


def delivery_view(record: DeliveryRecord) -> api.Delivery:
    return api.Delivery(
        id=record.id,
        subscription_id=record.subscription_id,
        topic=record.topic,
        sequence=record.sequence,
        generation=record.generation,
        replay=record.replay,
        status=record.status,
        attempts=record.attempts,
        ordering_key=record.ordering_key,
        next_run_at=record.next_run_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        duration_ms=record.duration_ms,
        request_id=record.request_id,
        error=record.error,
        failed_attempts=[api.Attempt.model_validate(entry) for entry in record.history],
    )
