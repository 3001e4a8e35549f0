"""Webhooks and workflows as subscribers: what is sent, how it is signed, and what an answer means."""

import asyncio
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest
from standardwebhooks import Webhook

from nova import payload
from nova.clock import SYSTEM_CLOCK
from nova.config import EgressSettings
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.store.db import Database
from nova.store.subscriptions import Secrets
from tests.events.bus.dispatching import SECRET, dispatching, subscription
from tests.events.bus.topics import topic
from tests.events.test_deliveries import receiver

pytestmark = pytest.mark.anyio
OLDER = "whsec_" + "WFla" * 11


async def test_a_webhook_gets_the_event_signed_with_both_secrets_while_they_rotate(database: Database) -> None:
    topic_id = await topic(database)
    async with receiver() as hook, dispatching(database) as bus:
        soon = SYSTEM_CLOCK.now() + timedelta(hours=1)
        made = await subscription(
            database,
            topic_id,
            type="webhook",
            target=hook.url,
            webhook_method="PUT",
            webhook_headers={"X-Shop": "1"},
            secrets=Secrets(SECRET),
        )
        await database.run("UPDATE event_subscriptions SET old_secret = %(s)s, old_secret_until = %(t)s, epoch = epoch + 1",
                           s=OLDER, t=soon)  # fmt: skip
        bus.listener.deliver("nova_subscriptions", made)
        await bus.noticed()
        await bus.publish({"n": 1})
        (row,) = await bus.settled(made, 1)
    ((head, headers, body),) = hook.got
    assert head.startswith("PUT /hook ")
    assert (headers["x-shop"], headers["x-nova-topic"], headers["webhook-id"]) == ("1", "orders", row.id)
    assert headers["content-type"] == "application/cloudevents+json"
    assert payload.decode(body)["data"] == {"n": 1}
    for secret in (SECRET, OLDER):
        Webhook(secret).verify(body.decode(), headers)


async def test_answers_retry_dead_letter_or_pause_the_subscription(database: Database) -> None:
    """503 with Retry-After waits at least so long; 410 is the last that is ever sent."""
    topic_id = await topic(database)
    async with receiver((503, {"retry-after": "1"}), (200, {}), (410, {})) as hook, dispatching(database) as bus:
        made = await subscription(database, topic_id, type="webhook", target=hook.url, max_inflight=1)
        await bus.publish(1)
        (first,) = await bus.settled(made, 1)
        assert (first.status, first.attempts) == ("succeeded", 2)
        ended = first.started_at
        assert ended is not None
        assert (ended.timestamp() - _began(first.history)) >= 1
        await bus.publish(2, 3)
        rows = await bus.settled(made, 2)
        await bus.noticed()
        assert len(hook.got) == 3
        assert (rows[1].status, "410" in (rows[1].error or "")) == ("dlq", True)
        record = await database.one("SELECT enabled, disabled_reason FROM event_subscriptions")
    assert record is not None
    assert (record["enabled"], "410" in record["disabled_reason"]) == (False, True)


def _began(history: list[dict[str, Any]]) -> float:
    return datetime.fromisoformat(history[0]["started_at"]).timestamp()


async def test_private_addresses_are_dead_letters_also_behind_a_redirect(database: Database) -> None:
    """EV11."""
    topic_id = await topic(database)
    async with receiver((302, {"location": "http://10.0.0.1/x"})) as hook, dispatching(database) as bus:
        away = await subscription(database, topic_id, "away", type="webhook", target=hook.url)
        await bus.publish(1)
        (row,) = await bus.settled(away, 1)
        assert (row.status, row.attempts) == ("dlq", 1)
        assert "no public address" in (row.error or "")
    async with dispatching(database, egress=EgressSettings()) as bus:
        near = await subscription(database, topic_id, "near", type="webhook", target="http://127.0.0.1:1/")
        (row,) = await bus.settled(near, 1)
        assert (row.status, row.attempts) == ("dlq", 1)


async def test_a_slow_receiver_is_given_up_in_time(database: Database) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    topic_id = await topic(database)
    async with server, dispatching(database) as bus:
        made = await subscription(
            database, topic_id, type="webhook", target=url, webhook_timeout_ms=150, max_attempts=1
        )
        await bus.publish(1)
        (row,) = await bus.settled(made, 1)
    assert (row.status, row.error) == ("dlq", "no answer within 0.15 s")


@dataclass
class Runs:
    """Stands for the workflows: fails once, and keeps what it was asked."""

    started: list[tuple[str, str, str, bytes]] = field(default_factory=list)

    async def start(
        self,
        scope: Scope,
        workflow: str,
        payload: bytes,
        *,
        key: str,
        caller: str,
        traceparent: str | None = None,
        tracestate: str | None = None,
    ) -> str:
        self.started.append((workflow, key, caller, payload))
        if len(self.started) == 1:
            raise NovaError("dependency_unavailable", "away", retry_after_s=0)
        return "run-1"


async def test_a_workflow_is_started_with_the_delivery_as_its_key_whatever_is_tried_again(database: Database) -> None:
    """EV12."""
    runs = Runs()
    made = await subscription(database, await topic(database), type="workflow", target="ship", max_attempts=1)
    async with dispatching(database, workflows=runs) as bus:
        await bus.publish({"n": 1})
        (row,) = await bus.settled(made, 1)
    assert (row.status, row.attempts, row.request_id) == ("succeeded", 1, "run-1")
    assert [(workflow, key, caller) for workflow, key, caller, _ in runs.started] == [("ship", row.id, "key:test")] * 2
    assert payload.decode(runs.started[1][3])["data"] == {"n": 1}
