"""Dead letters that are also sent to a topic."""

import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from nova.domain.message import NewMessage, counted, hops_of
from nova.domain.ports import Publisher
from nova.errors import NovaError
from nova.events.bus.delivering import Parcel
from nova.store.subscriptions import SubscriptionRecord

log = structlog.get_logger(__name__)
_FOR_S = 20.0
_MAX_ERROR = 500


class DeadLetters:
    """Sends before the delivery is recorded as dead: after a crash in between it is sent again, and the topic's deduplication
    sees that it was."""

    def __init__(self, publisher: Publisher | None) -> None:
        self._publisher = publisher

    async def send(self, record: SubscriptionRecord, parcel: Parcel, error: str) -> str:
        """Returns the error to be recorded: that of the delivery, with a word on what kept the letter from its topic."""
        topic = record.settings.dead_letter_topic
        if topic is None:
            return error
        if self._publisher is None:
            return f"{error} (and nothing here can publish to the dead-letter topic)"
        try:
            async for attempt in AsyncRetrying(
                retry=retry_if_exception(_passes),
                wait=wait_exponential(multiplier=0.1, max=2) + wait_random(0, 0.1),
                stop=stop_after_delay(_FOR_S),
                reraise=True,
            ):
                with attempt:
                    await self._publisher.publish(
                        record.scope, topic, [_letter(record, parcel, error)], caller=record.created_by
                    )
        except NovaError as refusal:
            log.warning("a dead letter did not reach its topic", subscription=record.id, error=refusal.detail)
            return f"{error} (and the dead-letter topic refused it: {refusal.code})"
        return error


def _letter(record: SubscriptionRecord, parcel: Parcel, error: str) -> NewMessage:
    """The message as it was, with what happened to it as headers."""
    message = parcel.message
    headers = {
        "nova-topic": record.topic,
        "nova-subscription": record.name,
        "nova-delivery": parcel.delivery_id,
        "nova-sequence": str(message.sequence),
        "nova-error": " ".join(error[:_MAX_ERROR].split()),
    }
    given = dict(message.attributes)
    given.pop("time", None)
    named = {name: given.pop(name, None) for name in ("id", "source", "type", "subject")}
    return NewMessage(
        payload=message.payload,
        headers={**message.headers, **headers},
        ordering_key=message.ordering_key,
        dedup_id=parcel.delivery_id,
        id=named["id"],
        source=named["source"],
        type=named["type"],
        subject=named["subject"],
        extensions=counted(given, hops_of(given) + 1),
        traceparent=message.traceparent,
        tracestate=message.tracestate,
    )


def _passes(error: BaseException) -> bool:
    return isinstance(error, NovaError) and error.status == 503
