"""What the platform's own tables say at the end: attempts, ends, and what ended in another way than it should have."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import psycopg

from nova.clock import rfc3339
from tests.chaos.oracle import Account

JOBS = {"job": "succeeded", "long job": "succeeded", "called job": "succeeded", "job that kills": "dlq"}
"""Sources of jobs, and how each of them has to end."""
_ENDS = {"workflow": "workflow", "durable": "durable", "topic": "c-topic/s", "webhook": "c-hooks/s"}
"""Other sources, and as what their ends are counted."""
_HANGS = """
SELECT m.payload ->> 'key', m.payload ->> 'n', d.status FROM event_messages m
JOIN event_subscriptions s ON s.topic_id = m.topic_id AND s.name = 'h'
LEFT JOIN event_deliveries d ON d.subscription_id = s.id AND d.sequence = m.sequence
"""

Connection = psycopg.Connection[tuple[Any, ...]]


def close_books(conn: Connection, accounts: Mapping[str, Account]) -> None:
    """Fill in what only the tables know. Safe to call again: everything is read anew."""
    _jobs(conn, accounts)
    counted = conn.execute("SELECT source, name, count(*) FROM chaos_endings GROUP BY 1, 2").fetchall()
    for source, kind in _ENDS.items():
        accounts[source].ends = Counter({name: count for of, name, count in counted if of == kind})
    roots = "SELECT key, status, error::text FROM dag_runs WHERE key IS NOT NULL"
    _ended(accounts["workflow"], "succeeded", conn.execute(roots).fetchall())
    executions = "SELECT name, status, error FROM durable_executions"
    _ended(accounts["durable"], "completed", conn.execute(executions).fetchall())
    hangs = accounts["hanging webhook"]
    dead = {(key, number) for key, number, status in conn.execute(_HANGS).fetchall() if status == "dlq"}
    hangs.wrong = [f"{key} {number} is no dead letter" for key, number in sorted(hangs.accepted - dead)]
    fired = conn.execute("SELECT scheduled_for FROM schedule_runs WHERE status = 'fired'").fetchall()
    accounts["schedule"].accepted = {("", rfc3339(moment)) for (moment,) in fired}


def _jobs(conn: Connection, accounts: Mapping[str, Account]) -> None:
    rows = conn.execute(
        "SELECT j.payload ->> 'source', j.idempotency_key, j.status, j.attempt, j.error ->> 'type',"
        " (SELECT count(*) FROM chaos_endings e WHERE e.source = 'job' AND e.name = j.id::text)"
        " FROM async_invocations j WHERE j.idempotency_key IS NOT NULL"
    ).fetchall()
    for source, wanted in JOBS.items():
        own = {key: (status, attempt, error, ends) for of, key, status, attempt, error, ends in rows if of == source}
        account = accounts[source]
        account.most = {(key, "job"): attempt for key, (status, attempt, *_) in own.items() if status != "queued"}
        account.ends = Counter({key: ends for key, (*_, ends) in own.items()})
        account.wrong = [
            f"{key} is {own[key][0]}: {own[key][2]}" if key in own else f"{key} is not there"
            for key, _ in sorted(account.accepted)
            if key not in own or own[key][0] != wanted
        ]


def _ended(account: Account, wanted: str, rows: list[tuple[Any, ...]]) -> None:
    states = {name: (status, error) for name, status, error in rows}
    account.wrong = [
        f"{key} is {' '.join(str(part) for part in states[key]) if key in states else 'not there'}"
        for key in sorted({key for key, _ in account.accepted})
        if key not in states or states[key][0] != wanted
    ]
