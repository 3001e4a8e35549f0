"""Plans that are made while tables are empty, and kept: a platform's first hour is not slower with each thing it does."""

import psycopg
import pytest

from nova.store import asyncs, durable, durable_runs, jobs
from nova.store.durable_commits import STEP
from nova.store.lines import LINE_OPTIONS, Prepared
from nova.work import queue

KEYS = {
    STEP: {"durable_operations": "durable_operations_pkey", "durable_executions": "durable_executions_pkey"},
    asyncs.ADD: {"functions": "functions_tenant_id_namespace_name_key", "tenants": "tenants_pkey"},
    jobs.END: {"work": "work_pkey", "async_invocations": "async_invocations_pkey"},
    durable.GET: {"durable_executions": "durable_executions_pkey"},
    durable_runs.BEGIN: {"durable_executions": "durable_executions_pkey"},
    durable_runs.END: {"work": "work_pkey", "durable_executions": "durable_executions_pkey"},
    queue.CLAIM: {"work": "work_claim work_pkey"},
}


@pytest.mark.parametrize("statement", KEYS, ids=lambda statement: statement.name.decode())
def test_rows_are_found_by_their_keys(pg_dsn: str, statement: Prepared) -> None:
    """A statement that is prepared before there is a row finds each by its whole key ever after."""
    with psycopg.connect(pg_dsn, autocommit=True, options=LINE_OPTIONS) as conn:
        conn.execute(statement.prepare)
        nulls = ", ".join(["NULL"] * len(statement.parameters))
        query = f"EXPLAIN (FORMAT JSON) EXECUTE {statement.name.decode()} ({nulls})".encode()
        row = conn.execute(query).fetchone()
    assert row is not None
    used: dict[str, set[str]] = {}
    nodes = [row[0][0]["Plan"]]
    while nodes:
        node = nodes.pop()
        nodes += node.get("Plans", [])
        if "Index Name" in node:
            used.setdefault(node["Relation Name"], set()).add(node["Index Name"])
    assert {table: used[table] for table in KEYS[statement]} == {
        table: set(indexes.split()) for table, indexes in KEYS[statement].items()
    }
