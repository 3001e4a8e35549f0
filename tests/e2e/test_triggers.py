"""Triggers on the whole platform: tables and webhooks call real functions, and nothing is lost when processes are killed."""

import hashlib
import hmac
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from anyio.from_thread import start_blocking_portal

from tests.conftest import _database
from tests.e2e.misuse import Platform, platform_at, until
from tests.e2e.planes import SixPlanes
from tests.e2e.server import NovaServer
from tests.events.triggers.support import Tcp, over_tcp

KEEPER = """
def handler(event, context):
    data = event["data"]
    row = data["row"] if "row" in data else data["body"]
    if row["n"] < 0 and context.state.get("healed") is None:
        raise ValueError("bad")
    context.state.put(f"n{row['n']}", event["novatrigger"])
    return row
"""
SECRET = "s3cret"


@pytest.fixture(scope="module")
def tcp(pg_server: str) -> Iterator[Tcp]:
    """The user's own database, reached over TCP."""
    for dsn in _database(pg_server, "template0"):
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(over_tcp(dsn)) as opened:
            yield opened


@contextmanager
def keeper(platform: Platform, name: str) -> Iterator[str]:
    platform.deploy(name, KEEPER)
    yield name
    platform.delete(name)


def make(platform: Platform, name: str, type: str, target: str, config: Any, **members: Any) -> str:
    body = {"name": name, "type": type, "target": target, "config": config, **members}
    answer = platform.http.post("/triggers", json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def reaches(platform: Platform, trigger: str, state: str) -> None:
    until(lambda: platform.http.get(f"/triggers/{trigger}/status").json()["state"] == state, f"it is {state}")


def kept(platform: Platform, function: str) -> set[int]:
    """The numbers that reached the function."""
    found: set[int] = set()
    cursor: str | None = None
    while True:
        query = {"prefix": "n", "limit": "500"} | ({} if cursor is None else {"cursor": cursor})
        page = platform.http.get(f"/functions/{function}/state", params=query).json()
        found |= {int(entry["key"][1:]) for entry in page["items"]}
        cursor = page["next_cursor"]
        if cursor is None:
            return found


def test_tables_and_webhooks_call_functions_and_what_fails_waits_for_help(nova_server: NovaServer, tcp: Tcp) -> None:
    """EV18: in both shapes of the platform, for a tenant's namespace of its own."""
    with (
        platform_at(nova_server.url) as platform,
        psycopg.connect(tcp.dsn, autocommit=True) as conn,
        keeper(platform, "t-rows"),
    ):
        conn.execute("DROP TABLE IF EXISTS orders")
        conn.execute("CREATE TABLE orders (id serial PRIMARY KEY, n int)")
        config = {"dsn": tcp.dsn, "table": "orders", "cursor_column": "id", "poll_s": 0.2}
        rows = make(platform, "e2e-rows", "postgres", "t-rows", config, max_attempts=1)
        github = {"scheme": "github", "secret": SECRET}
        hook = make(platform, "e2e-hook", "webhook", "t-rows", github)
        sync = make(platform, "e2e-sync", "webhook", "t-rows", {**github, "response": "sync"})
        http = platform.http
        try:
            assert http.post(f"/triggers/{rows}/test").json() == {"ok": True, "error": None}
            reaches(platform, rows, "running")
            conn.execute("INSERT INTO orders (n) SELECT * FROM unnest(ARRAY[1, 2, -3])")

            body = json.dumps({"n": 7}).encode()
            signature = hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
            headers = {"X-Hub-Signature-256": f"sha256={signature}"}
            accepted = http.post("/hooks/e2e-hook", content=body, headers=headers)
            assert accepted.status_code == 202, accepted.text
            repeated = http.post("/t/default/default/hooks/e2e-hook", content=body, headers=headers)
            assert (repeated.status_code, repeated.json()["code"]) == (409, "duplicate_request")
            assert http.post("/hooks/e2e-hook", content=b"{}", headers=headers).status_code == 401
            until(lambda: kept(platform, "t-rows") == {1, 2, 7}, "what is good has come")

            answered = http.post("/hooks/e2e-sync", content=body, headers=headers)
            assert (answered.status_code, answered.json()) == (200, {"n": 7}), answered.text
            repeated = http.post("/hooks/e2e-sync", content=body, headers=headers)
            assert (repeated.status_code, repeated.json()["code"]) == (409, "duplicate_request")

            def dead() -> list[Any]:
                found: list[Any] = http.get("/async-invocations", params={"status": "dlq"}).json()["items"]
                return [job for job in found if job["function"] == "t-rows"]

            until(lambda: len(dead()) == 1, "the bad one is dead")
            (letter,) = dead()
            assert (letter["error"]["type"], letter["source"]) == ("ValueError", "trigger:e2e-rows")
            http.put("/functions/t-rows/state?key=healed", json={"value": True})
            assert http.post(f"/async-invocations/{letter['id']}/retry").status_code in (200, 202)
            until(lambda: -3 in kept(platform, "t-rows"), "the dead one came back")

            def counts(trigger: str) -> tuple[str, int, int, int]:
                status = http.get(f"/triggers/{trigger}/status").json()
                return status["state"], status["received"], status["processed"], status["failed"]

            until(lambda: counts(rows) == ("running", 3, 2, 1), "everything is counted")
            until(lambda: counts(hook) == ("running", 2, 2, 0), "what was posted is counted")
        finally:
            for trigger in (rows, hook, sync):
                http.delete(f"/triggers/{trigger}")


def test_nothing_is_lost_when_nebula_or_a_comet_is_killed(planes: SixPlanes, platform: Platform, tcp: Tcp) -> None:
    """EV18: 600 rows while processes die; each reaches its function at least once."""
    with psycopg.connect(tcp.dsn, autocommit=True) as conn, keeper(platform, "t-killed"):
        conn.execute("DROP TABLE IF EXISTS killed")
        conn.execute("CREATE TABLE killed (id serial PRIMARY KEY, n int)")
        config = {"dsn": tcp.dsn, "table": "killed", "cursor_column": "id", "poll_s": 0.1}
        trigger = make(platform, "killed", "postgres", "t-killed", config, on_error="retry")
        try:
            reaches(platform, trigger, "running")
            for begin, victim in ((1, "nebula"), (201, "comet"), (401, "nebula")):
                conn.execute("INSERT INTO killed (n) SELECT generate_series(%s::int, %s::int)", (begin, begin + 199))
                until(lambda begin=begin: len(kept(platform, "t-killed")) >= begin + 20, "some have come", 60)
                planes.planes[victim].kill()
                planes.planes[victim].start()
            until(lambda: kept(platform, "t-killed") == set(range(1, 601)), "every row has come", 90)
        finally:
            platform.http.delete(f"/triggers/{trigger}")
