"""A daemon that is killed in the middle of a deploy."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from nova.store.db import Database
from tests.control.support import HELLO, Control

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
WITH_BUILD = {"runtime": "python", "code": "def handler(): return 2", "dependency_files": {"requirements.txt": "x"}}
TABLES = ("functions", "function_versions", "function_code", "function_files", "blobs", "builds", "work")
# what a deploy writes, in this order; the killed process waits at each of them once
STEPS = ("function_versions", "function_code", "blobs", "function_files", "builds", "work")


async def contents(database: Database) -> dict[str, list[dict[str, Any]]]:
    """Every row of every table that a deploy writes."""
    return {
        table: await database.fetch(f"SELECT to_jsonb(t) - 'created_at' AS row FROM {table} t ORDER BY 1")
        for table in TABLES
    }


async def kill_at(database: Database, table: str, body: dict[str, Any]) -> None:
    """Let a real process deploy, and kill it when it has got as far as writing to ``table``."""
    async with database.transaction() as conn:
        await conn.run(f"LOCK TABLE {table} IN EXCLUSIVE MODE")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.control.deploying", database.dsn, json.dumps(body), cwd=ROOT
        )
        waiting = (
            "SELECT 1 FROM pg_locks WHERE NOT granted AND relation = %(table)s::regclass"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        async with asyncio.timeout(30):
            while await database.one(waiting, table=table) is None:
                assert process.returncode is None, "it ended without waiting"
                await asyncio.sleep(0.02)
        process.kill()
        await process.wait()


@pytest.mark.parametrize("step", STEPS)
async def test_a_first_deploy_is_there_or_not(database: Database, step: str) -> None:
    """DB10: a function whose daemon is killed in the middle of its creation is not there at all."""
    await kill_at(database, step, WITH_BUILD)
    assert await contents(database) == {table: [] for table in TABLES}


@pytest.mark.parametrize("step", STEPS[1:4])
async def test_a_further_deploy_leaves_what_was(plane: Control, step: str) -> None:
    """DB10: the version that was live before a killed deploy is as it was, and the next deploy goes through."""
    await plane.create()
    before = await contents(plane.database)
    await kill_at(plane.database, step, WITH_BUILD)
    assert await contents(plane.database) == before
    shown = await plane.get("/functions/hello")
    assert (shown["version"], shown["latest_version"]) == (1, 1)
    answer = await plane.client.put("/functions/hello", json={"runtime": "python", "code": HELLO + "\n"})
    assert answer.json()["version"] == 2
