"""Deliverers are killed: nothing is lost, recorded twice or out of order, and poison ends in the dead-letter queue."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import pytest

from nova import payload
from nova.domain.identity import Scope
from nova.events.bus.publish import TopicPublisher
from nova.store.db import Database
from nova.work.notices import Notices
from tests.events.bus.dispatching import subscription
from tests.events.bus.topics import message, topic

pytestmark = pytest.mark.anyio
KEYS = int(os.environ.get("NOVA_CHAOS_KEYS", "100"))
MESSAGES = int(os.environ.get("NOVA_CHAOS_MESSAGES", "15"))
KILLS = int(os.environ.get("NOVA_CHAOS_BUS_KILLS", "2"))
PATIENCE_S = 60 + KEYS * MESSAGES / 100


class Deliverers:
    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._chance = random.Random(5)
        self.running: list[subprocess.Popen[bytes]] = []

    def begin(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.events.bus.deliverer", self._dsn, str(self._chance.randrange(1 << 30))]
        self.running.append(subprocess.Popen(command))
        return self.running[-1]

    def kill(self) -> None:
        victim = self.running.pop(0)
        victim.kill()
        victim.wait()


@contextmanager
def deliverers(dsn: str) -> Iterator[Deliverers]:
    group = Deliverers(dsn)
    try:
        yield group
    finally:
        for process in group.running:
            process.send_signal(signal.SIGTERM)
        for process in group.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


async def until(database: Database, sql: str, **params: object) -> None:
    """Until the query has a row."""
    async with asyncio.timeout(PATIENCE_S):
        while await database.one(sql, **params) is None:
            await asyncio.sleep(0.05)


async def test_keys_stay_in_order_and_nothing_is_lost_when_deliverers_are_killed(database: Database) -> None:
    """EV9: each message recorded once; a repetition repeats the last of its key and nothing before it."""
    made = await subscription(
        database, await topic(database), max_inflight=200, max_attempts=50, backoff_base_ms=1, backoff_max_ms=20
    )
    await database.run("CREATE TABLE effects (at bigserial, key text NOT NULL, number int NOT NULL)")
    publisher = TopicPublisher(database, Notices(database))
    total = KEYS * MESSAGES
    with deliverers(database.dsn) as group:
        group.begin()
        group.begin()
        for number in range(MESSAGES):
            batch = [message(payload.encode([f"k{k}", number]), ordering_key=f"k{k}") for k in range(KEYS)]
            for start in range(0, KEYS, 500):
                await publisher.publish(Scope(), "orders", batch[start : start + 500], caller="key:test")
        for kill in range(KILLS):
            share = total * (kill + 1) // (KILLS + 2)
            await until(database, "SELECT FROM effects WHERE at >= %(share)s LIMIT 1", share=share)
            group.kill()
            group.begin()
        await until(
            database,
            "SELECT FROM event_deliveries WHERE status = 'succeeded' HAVING count(*) >= %(total)s",
            total=total,
        )
    rows = await database.fetch(
        "SELECT status, count(*) AS n, count(DISTINCT sequence) AS messages FROM event_deliveries GROUP BY 1"
    )
    assert rows == [{"status": "succeeded", "n": total, "messages": total}]
    effects = await database.fetch("SELECT key, number FROM effects ORDER BY key, at")
    for key, of_key in groupby(effects, key=lambda row: row["key"]):
        numbers = [row["number"] for row in of_key]
        assert sorted(set(numbers)) == list(range(MESSAGES)), key
        assert numbers == sorted(numbers), key
    await publisher.close()
    ended = await database.one("SELECT cursor FROM event_subscriptions WHERE id = %(id)s", id=made)
    assert ended == {"cursor": total}


async def test_a_message_that_kills_its_process_every_time_dies_and_the_others_are_delivered(
    database: Database,
) -> None:
    """EV3."""
    await subscription(database, await topic(database), max_attempts=1, max_inflight=1)
    await database.run("CREATE TABLE effects (at bigserial, key text NOT NULL, number int NOT NULL)")
    publisher = TopicPublisher(database, Notices(database))
    said = [payload.encode(one) for one in (["a", 0], "poison", ["a", 1])]
    await publisher.publish(Scope(), "orders", [message(one) for one in said], caller="key:test")
    with deliverers(database.dsn) as group:
        for _ in range(2):
            assert group.begin().wait(20) == -signal.SIGKILL
            group.running.clear()
        group.begin()
        await until(database, "SELECT FROM event_deliveries WHERE status <> 'queued' HAVING count(*) = 3")
    rows = await database.fetch("SELECT sequence, status, error FROM event_deliveries ORDER BY sequence")
    assert [(row["sequence"], row["status"]) for row in rows] == [(1, "succeeded"), (2, "dlq"), (3, "succeeded")]
    assert "process was lost" in rows[1]["error"]
    await publisher.close()
