"""Processes that run workflows are killed again and again: every run ends once, and a node that has ended never runs again."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nova.store.db import Database
from tests.events.bus.topics import topic
from tests.events.workflows.support import chain, function, nebula, node, publish, workflow

pytestmark = pytest.mark.anyio
RUNS = int(os.environ.get("NOVA_CHAOS_RUNS", "30"))
KILLS = int(os.environ.get("NOVA_CHAOS_KILLS", "5"))
WORKERS = 2
PATIENCE_S = 60 + RUNS / 10


class Workers:
    """Processes; one that is killed is replaced at once."""

    def __init__(self, dsn: str, chance: random.Random) -> None:
        self._dsn = dsn
        self._chance = chance
        self.running: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        seed = str(self._chance.randrange(1 << 30))
        self.running.append(subprocess.Popen([sys.executable, "-m", "tests.events.workflows.worker", self._dsn, seed]))

    def kill(self) -> None:
        victim = self.running.pop(self._chance.randrange(len(self.running)))
        victim.kill()
        victim.wait()
        self.begin()


@contextmanager
def workers(dsn: str, chance: random.Random) -> Iterator[Workers]:
    group = Workers(dsn, chance)
    try:
        for _ in range(WORKERS):
            group.begin()
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


def step(key: str) -> Any:
    policy = {"max_attempts": 20, "base_ms": 20, "max_backoff_ms": 50}
    return function(key, "f", input_mapping={"run": "$.run.id", "node": key}, retry_policy=policy)


async def test_killed_processes_lose_and_repeat_nothing(database: Database) -> None:
    each = {
        "node_type": "function",
        "function_name": "f",
        "input_mapping": {"run": "$.run.id", "node": "m", "item": "$.index"},
        "retry_policy": {"max_attempts": 20, "base_ms": 20, "max_backoff_ms": 50},
    }
    branches = [chain(node("w", "wait", seconds=0.1), node("p", "pass", value=no)) for no in range(2)]
    story = chain(
        step("a"),
        node("m", "map", items=list(range(8)), do=each, max_concurrency=3),
        step("b"),
        node("both", "parallel", branches=branches),
        node("s", "sub_workflow", workflow_name="below"),
        node("news", "wait_event", topic="news", filters=[{"exact": {"/run": "$.run.id"}}]),
        step("c"),
        output={
            "both": "$.nodes.both.output",
            "s": "$.nodes.s.output",
            "items": "$.nodes.m.output[*].item",
            "news": "$.nodes.news.output.data.text",
        },
    )
    await workflow(database, "story", story)
    await workflow(database, "below", chain(step("x"), node("t", "wait", seconds=0.05), step("y"), output="done"))
    await _watch(database)
    await topic(database, "news")
    chance = random.Random(7)
    async with nebula(database, work=False) as n:
        runs = [await n.start("story") for _ in range(RUNS)]
        to_publish = chance.sample(runs, len(runs))
        with workers(database.dsn, chance) as group:
            for kill in range(KILLS):
                await asyncio.sleep(chance.uniform(0.5, 1.2))
                for run_id in to_publish[kill::KILLS]:  # some before the run waits for it, some after
                    await publish(n, "news", {"run": run_id, "text": f"for {run_id}"})
                group.kill()
            async with asyncio.timeout(PATIENCE_S):
                while await _count(database, "dag_runs WHERE finished_at IS NULL"):
                    await asyncio.sleep(0.05)
        for run_id in runs:
            row = await n.run(run_id)
            assert (row["status"], row["output"]) == (
                "succeeded",
                {"both": [{"p": 0}, {"p": 1}], "s": "done", "items": list(range(8)), "news": f"for {run_id}"},
            ), json.dumps(row["error"])
    assert await _count(database, "dag_runs") == 2 * RUNS
    assert await _count(database, "endings") == 2 * RUNS
    assert await _count(database, "(SELECT DISTINCT id FROM endings) e") == 2 * RUNS
    assert await _count(database, "undone") == 0
    assert await _count(database, "work WHERE kind = 'run'") == 0
    late = "effects e JOIN dag_run_nodes n USING (run_id, node_key, item) WHERE e.at > n.finished_at + interval '20 ms'"
    assert await _count(database, late) == 0, "a node ran after it had ended"
    assert await _count(database, "dag_run_nodes WHERE status <> 'succeeded'") == 0


async def _watch(database: Database) -> None:
    """Tables that tell each execution, each end of a run, and each node that ended and then did not stay so."""
    await database.run(
        "CREATE TABLE effects (run_id uuid, node_key text, item int, at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
    await database.run("CREATE TABLE endings (id uuid NOT NULL)")
    await database.run("CREATE TABLE undone (run_id uuid, node_key text)")
    await database.run(
        "CREATE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO endings VALUES (NEW.id); RETURN NEW; END $$"
    )
    await database.run(
        "CREATE TRIGGER ended AFTER UPDATE ON dag_runs FOR EACH ROW"
        " WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION ended()"
    )
    await database.run(
        "CREATE FUNCTION undone() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO undone VALUES (NEW.run_id, NEW.node_key); RETURN NEW; END $$"
    )
    await database.run(
        "CREATE TRIGGER undone AFTER UPDATE ON dag_run_nodes FOR EACH ROW"
        " WHEN (OLD.finished_at IS NOT NULL) EXECUTE FUNCTION undone()"
    )


async def _count(database: Database, what: str) -> int:
    row = await database.one(f"SELECT count(*) AS n FROM {what}")
    assert row is not None
    return int(row["n"])
