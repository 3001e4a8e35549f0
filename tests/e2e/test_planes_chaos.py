"""Accepted jobs, and the processes that run them killed again and again: every one is done, once, and none is given up."""

import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from nova.store.embedded import EmbeddedPostgres
from tests.e2e.misuse import Platform, until
from tests.e2e.planes import SixPlanes
from tests.e2e.test_planes_killed import function, second

JOBS, KILLS = (int(number) for number in os.environ.get("NOVA_CHAOS", "1000/10").split("/"))
VICTIMS = ("nebula", "nebula-2", "comet", "comet-1")
START_S = 180
PATIENCE_S = 60 + JOBS / 20
ECHO = "def handler(number):\n    return number\n"
POLICY = {"max_attempts": 20, "backoff_base_ms": 10, "backoff_max_ms": 200}


@pytest.fixture
def ends(planes: SixPlanes) -> Iterator["psycopg.Connection[tuple[Any, ...]]"]:
    """Every end of a job is counted where it is written, in the table ``endings``: a second one would show."""
    with psycopg.connect(EmbeddedPostgres(planes.data_dir).dsn, autocommit=True) as conn:
        conn.execute("CREATE TABLE endings (id uuid NOT NULL, status text NOT NULL)")
        conn.execute(
            "CREATE FUNCTION ended() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " INSERT INTO endings VALUES (NEW.id, NEW.status); RETURN NEW; END $$"
        )
        conn.execute(
            "CREATE TRIGGER ended AFTER UPDATE ON async_invocations FOR EACH ROW"
            " WHEN (NEW.finished_at IS NOT NULL) EXECUTE FUNCTION ended()"
        )
        yield conn
        conn.execute("DROP TRIGGER ended ON async_invocations")
        conn.execute("DROP FUNCTION ended()")
        conn.execute("DROP TABLE endings")


def test_accepted_jobs_survive_whoever_runs_them(
    planes: SixPlanes, platform: Platform, ends: "psycopg.Connection[tuple[Any, ...]]"
) -> None:
    chance = random.Random(11)
    accepted: list[str] = []
    with function(platform, "job", ECHO, async_policy=POLICY), second(planes, "nebula"):
        for kill in range(KILLS):
            while len(accepted) < JOBS * (kill + 1) // KILLS:
                answer = platform.http.post("/functions/job/invoke-async", json={"payload": len(accepted)})
                assert answer.status_code == 202, f"zenith takes jobs whoever else is away: {answer.text}"
                accepted.append(answer.json()["invocation_id"])
            victim = planes.planes[chance.choice(VICTIMS)]
            until(lambda victim=victim: victim.ready, f"{victim.name} is up again", START_S)
            victim.kill()
            victim.start()
        deadline = time.monotonic() + PATIENCE_S
        while (waiting := _unfinished(platform)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not waiting, f"{waiting} jobs are left"
        assert len(set(accepted)) == JOBS
        rows = ends.execute("SELECT id::text, status FROM endings").fetchall()
        assert Counter(status for _, status in rows) == {"succeeded": len(rows)}, "no good job is given up"
        assert max(Counter(number for number, _ in rows).values()) == 1, "none ends twice"
        assert {number for number, _ in rows} >= set(accepted), "none is lost"
        for number in chance.sample(range(JOBS), 20):
            job = platform.http.get(f"/async-invocations/{accepted[number]}").json()
            assert (job["status"], job["output"]) == ("succeeded", number)
            assert job["attempt"] >= 1
        assert platform.http.get("/async-invocations/dlq").json()["items"] == []


def _unfinished(platform: Platform) -> int:
    answer = platform.http.get("/async-invocations/summary")
    if answer.status_code != 200:
        return -1  # asked a comet that was just killed
    said = answer.json()
    return int(said["queued"] + said["running"])
