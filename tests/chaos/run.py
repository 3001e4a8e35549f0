"""One chaos run: set up, load and faults, quiet, judgement."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from tests.chaos import functions
from tests.chaos.books import close_books
from tests.chaos.faults import Chaos
from tests.chaos.ledger import EFFECTS_PORT
from tests.chaos.oracle import Account, Row, judge
from tests.chaos.sources import (
    GOOD,
    KILLER_ATTEMPTS,
    PATIENT,
    Door,
    Durables,
    Jobs,
    Messages,
    Source,
    Topic,
    Workflows,
    concurrent,
    hangs,
)
from tests.chaos.stage import LEASE_S, MESSAGES, Stage
from tests.e2e.misuse import Platform, platform_at, until
from tests.events.triggers.feeding import config, prepare

DRAIN_S = 180.0
"""Until everything that was accepted has had its effect; retries pause up to a minute."""
ENDING_S = 30.0
"""For the load to end."""
STILL_S = 5.0
"""After that, for what comes twice."""


@dataclass(frozen=True)
class Progress:
    """``share`` of ``phase`` is done; ``fault`` is what happens at the moment."""

    phase: str
    share: float
    fault: str
    accepted: int


@dataclass(frozen=True)
class Verdict:
    rows: Sequence[Row]
    faults: Counter[str]
    notes: Sequence[str]
    drained_s: float

    @property
    def sound(self) -> bool:
        return all(row.sound for row in self.rows)


class Run:
    """``rate``: things asked for each second, over all sources. ``say`` is called often."""

    def __init__(self, stage: Stage, seed: int, seconds: float, rate: float, say: Callable[[Progress], None]) -> None:
        self._stage = stage
        self._seconds = seconds
        self._say = say
        self._fault = ""
        self._chaos = Chaos(stage, random.Random(seed), self._now)
        self._door = Door(stage.planes.url)
        self._hook = Account("webhook", ordered=True)
        self._hangs = Account("hanging webhook", effects_counted=False)
        self._callback = Account("callback")
        self._schedule = Account("schedule")
        self._sources = self._load(rate / 50)

    def _load(self, share: float) -> list[Source]:
        """Fifty things a second, times ``share``."""
        door, chaos = self._door, self._chaos
        hook = self._stage.ledger.hook

        def called(number: int) -> dict[str, Any]:
            return {"callback_url": hook("hangs" if hangs(number) else "called"), "max_attempts": GOOD, **PATIENT}

        def killed(_number: int) -> dict[str, Any]:
            return {"max_attempts": KILLER_ATTEMPTS, **PATIENT}

        def patient(_number: int) -> dict[str, Any]:
            return {"max_attempts": GOOD, **PATIENT}

        sources: list[Source] = [
            Jobs(door, "job", 10 * share, {}, concurrent),
            Jobs(door, "long job", 0.4 * share, {"sleep_s": LEASE_S * 1.5}, patient),
            Jobs(door, "job that kills", 0.3 * share, {"dies": True}, killed),
            Jobs(door, "called job", 2 * share, {}, called, self._callback),
            Topic(door, "topic", "c-topic", 10 * share),
            Topic(door, "webhook", "c-hooks", 2 * share, self._hangs),
            Workflows(door, 1.5 * share),
            Durables(door, 1.5 * share),
        ]
        for source in sources:
            # an attempt whose worker dies first has no effect, and three of them are a dead letter without any
            source.account.effects_counted = source.account.source != "job that kills"
        for name, broker in self._stage.brokers.items():
            quiet = chaos.quiet_mqtt if name == "mqtt" else asyncio.Lock()
            sources.append(Messages(name, broker, 4 * share, quiet))
        return sources

    def _now(self, fault: str) -> None:
        self._fault = fault

    def _tell(self, phase: str, share: float) -> None:
        accepted = sum(len(source.account.accepted) for source in self._sources)
        self._say(Progress(phase, min(1.0, share), self._fault, accepted))

    def set_up(self) -> None:
        """Functions, topics, subscriptions, workflows, triggers and a schedule."""
        tell = functions.TELL % (self._stage.ledger.address, EFFECTS_PORT)
        with platform_at(self._stage.planes.url) as platform:
            for name in ("job", "message", "trigger", "schedule", "node"):
                platform.deploy(f"c-{name}", tell + getattr(functions, name.upper()), timeout_s=20)
            platform.deploy("c-durable", tell + functions.DURABLE, mode="durable", timeout_s=20)
            hook = self._stage.ledger.hook
            for topic in ("c-topic", "c-hooks"):
                made(platform, "/topics", {"name": topic})
            much = {"max_attempts": 100, "backoff_base_ms": 50, "backoff_max_ms": 500, "start": "earliest"}
            paths = {name: f"/topics/{name}/subscriptions" for name in ("c-topic", "c-hooks")}
            made(platform, paths["c-topic"], {"name": "s", "type": "function", "function_name": "c-message", **much})
            made(platform, paths["c-hooks"], {"name": "s", "type": "webhook", "webhook_url": hook("ok"), **much})
            few = {"max_attempts": 2, "webhook_timeout_ms": 500, "ordered": False, "max_inflight": 20}
            silent = {"name": "h", "type": "webhook", "webhook_url": hook("hangs"), **much, **few}
            made(platform, paths["c-hooks"], silent)
            for name, definition in (("c-inner", functions.INNER), ("c-outer", functions.OUTER)):
                made(platform, "/workflows", {"name": name})
                made(platform, f"/workflows/{name}/versions", definition)
            for name, broker in self._stage.brokers.items():
                prepare(broker, MESSAGES)
                type, settings = config(broker, MESSAGES)
                fields = {"type": type, "target": "c-trigger", "config": settings, "on_error": "retry"}
                trigger = made(platform, "/triggers", {"name": name, **fields})["id"]
                until(
                    lambda trigger=trigger: (
                        platform.http.get(f"/triggers/{trigger}/status").json()["state"] == "running"
                    ),  # type: ignore[misc]
                    f"the trigger of {name} runs",
                )
            every = {"cron_expression": "@every 1s", "overlap_policy": "allow", "catch_up": "last", "max_attempts": 100}
            self._schedule_id = made(platform, "/functions/c-schedule/schedules", every)["id"]

    async def run(self) -> Verdict:
        began = time.monotonic()
        stopped = asyncio.Event()
        until_s = began + self._seconds
        load = [asyncio.create_task(source.run(stopped)) for source in self._sources]
        chaos = asyncio.create_task(self._chaos.run(until_s))
        try:
            while not chaos.done() or time.monotonic() < until_s:
                self._tell("chaos", (time.monotonic() - began) / self._seconds)
                await asyncio.wait([chaos, *load], timeout=0.25, return_when=asyncio.FIRST_EXCEPTION)
                for task in (chaos, *load):
                    if task.done():
                        task.result()  # a fault of the run itself ends it
            stopped.set()
            self._now("healing")
            await self._chaos.heal()
            self._now("the last of the load")
            await asyncio.gather(*load)
        finally:
            stopped.set()  # clients of brokers may swallow their cancellation
            for task in (chaos, *load):
                task.cancel()
            await asyncio.wait([chaos, *load], timeout=ENDING_S)
        drained_s = await self._drain()
        await self._door.close()
        rows = await asyncio.to_thread(self._judge)
        return Verdict(rows, self._chaos.happened, self._chaos.ended_by_themselves, drained_s)

    async def _drain(self) -> float:
        """Until nothing is owed, and then a little; how long that took."""
        await asyncio.to_thread(self._pause_schedule)
        began = time.monotonic()
        while (took := time.monotonic() - began) < DRAIN_S:
            rows = await asyncio.to_thread(self._judge)
            owed = sum(len(row.lost) + len(row.wrong) for row in rows)
            self._now(f"{owed} are owed")
            self._tell("drain", took / DRAIN_S)
            if not owed:
                break
            await asyncio.sleep(1)
        await asyncio.sleep(STILL_S)
        return took

    def _pause_schedule(self) -> None:
        with self._stage.connect() as conn, platform_at(self._stage.planes.url) as platform:
            count = "SELECT count(*) FROM schedule_runs WHERE status = 'fired'"
            before = conn.execute(count).fetchone()
            until(lambda: conn.execute(count).fetchone() != before, "the schedule fires again", 90)
            answer = platform.http.post(f"/schedules/{self._schedule_id}/pause")
            assert answer.status_code < 300, answer.text

    def _judge(self) -> list[Row]:
        """Every account as the books and the ledger have it now."""
        with self._stage.connect() as conn:
            close_books(conn, {account.source: account for account in self._accounts()})
        effects = self._stage.ledger.effects()
        return [judge(account, effects) for account in self._accounts()]

    def _accounts(self) -> list[Account]:
        return [*(source.account for source in self._sources), self._callback, self._hangs, self._schedule]


def made(platform: Platform, path: str, body: Any) -> dict[str, Any]:
    answer: httpx.Response = platform.http.post(path, json=body)
    assert answer.status_code in (200, 201), f"{path}: {answer.text}"
    found: dict[str, Any] = answer.json()
    return found
