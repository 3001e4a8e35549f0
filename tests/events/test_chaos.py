"""Workers are killed again and again: what was accepted is done, each job ends once, and no good job dies."""

import asyncio
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from nova.domain.identity import Scope
from nova.store import asyncs
from nova.store.asyncs_admin import AsyncStore
from nova.store.db import Database
from tests.events.support import function, job

pytestmark = pytest.mark.anyio
JOBS = int(os.environ.get("NOVA_CHAOS_JOBS", "2000"))
KILLS = int(os.environ.get("NOVA_CHAOS_KILLS", "20"))
WORKERS = 3
PATIENCE_S = 60 + JOBS / 50
_BATCH = 100


@dataclass
class Workers:
    """Processes; one that is killed is replaced at once."""

    dsn: str
    chance: random.Random
    running: list[subprocess.Popen[bytes]]

    def begin(self) -> None:
        command = [sys.executable, "-m", "tests.events.worker", self.dsn, str(self.chance.randrange(1 << 30))]
        self.running.append(subprocess.Popen(command))

    def kill(self) -> None:
        victim = self.running.pop(self.chance.randrange(len(self.running)))
        victim.kill()
        victim.wait()
        self.begin()


@contextmanager
def workers(dsn: str, chance: random.Random) -> Iterator[Workers]:
    group = Workers(dsn, chance, [])
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


async def test_killed_workers_lose_and_repeat_nothing(database: Database) -> None:
    """Accepted jobs, workers killed with SIGKILL: 0 lost, 0 ended twice, 0 dead after success."""
    await function(database)
    await database.run("CREATE TABLE effects (job text NOT NULL, attempt int NOT NULL)")
    # every end of a job, counted where it is written: a second one would show
    await database.run("CREATE TABLE endings (id uuid NOT NULL, status text NOT NULL)")
    await database.run(
        "CREATE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO endings VALUES (NEW.id, NEW.status); RETURN NEW; END $$"
    )
    await database.run(
        "CREATE TRIGGER ended AFTER UPDATE ON async_invocations FOR EACH ROW"
        " WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION ended()"
    )
    chance = random.Random(3)
    accepted: list[str] = []
    with workers(database.dsn, chance) as group:
        for kill in range(KILLS):
            share = JOBS * (kill + 1) // KILLS
            while len(accepted) < share:
                async with database.transaction() as conn:
                    jobs = [job(b"1", max_attempts=50, backoff_base_ms=1, backoff_max_ms=50) for _ in range(_BATCH)]
                    outcomes = await asyncs.add(conn, jobs[: share - len(accepted)])
                    await conn.notify("nova_work", asyncs.DUE)
                accepted += [outcome.invocation_id for outcome in outcomes if isinstance(outcome, asyncs.Accepted)]
            await asyncio.sleep(chance.uniform(0.1, 0.6))
            group.kill()
        async with asyncio.timeout(PATIENCE_S):
            while await database.fetch("SELECT id FROM work LIMIT 1"):
                await asyncio.sleep(0.1)
    assert len(set(accepted)) == JOBS
    ended = await database.fetch("SELECT status, count(*) AS n, count(DISTINCT id) AS jobs FROM endings GROUP BY 1")
    assert ended == [{"status": "succeeded", "n": JOBS, "jobs": JOBS}]
    kept = await database.fetch("SELECT status, count(*) AS n FROM async_invocations GROUP BY 1")
    assert kept == [{"status": "succeeded", "n": JOBS}]
    executed = await database.one("SELECT count(DISTINCT job) AS jobs, count(*) AS times FROM effects")
    assert executed is not None
    assert executed["jobs"] == JOBS
    assert executed["times"] > JOBS  # some failed, and some were done by workers who did not live to say so
    summary = await AsyncStore(database).summary(Scope())
    assert (summary.queued, summary.succeeded, summary.dlq) == (0, JOBS, 0)
