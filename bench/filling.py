"""Tables as a platform has them after days of work: copies of what it wrote itself, moved into the past.

Rows are copied in SQL from one that the platform has just written, so they hold whatever this version writes. Only what must
differ is made anew: ids, numbers of order and times.
"""

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from psycopg import sql

from bench.driving import DriveError

_BATCH = 50_000
_AGE_S = 2 * 86_400
"""How old the youngest of the past is: no rule of retention takes it by itself, and one of a day takes it all."""
_SPACING_S = 0.2
_NOW = "now() - make_interval(secs => %(age)s + n * %(spacing)s)"
_ID = "uuidv7(make_interval(secs => -(%(age)s + n * %(spacing)s)))"
_JOB = dict.fromkeys(("created_at", "queued_at", "next_run_at", "started_at", "finished_at"), _NOW)


def finished_jobs(conn: psycopg.Connection[Any], count: int, say: Callable[[str], None]) -> None:
    """So many succeeded jobs with the records of their calls. Raises DriveError if no job has succeeded yet."""
    _copy(conn, "async_invocations", "status = 'succeeded'", count, {"id": _ID, **_JOB}, say)
    # Records keep their place in the order: they count as rolled up, as old ones are. All are of this day, the only one
    # that surely has a partition.
    today = "date_trunc('day', now() AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    made = {"id": "gen_random_uuid()", "created_at": f"{today} + (now() - ({today})) * (n / %(count)s::float8)"}
    _copy(conn, "invocation_logs", "trigger = 'async' AND success", count, made, say)


def deliveries(conn: psycopg.Connection[Any], count: int, say: Callable[[str], None]) -> None:
    """So many deliveries that succeeded, of messages that are gone. Raises DriveError if none has succeeded yet."""
    made = {"sequence": "-n", "started_at": _NOW, "ended_at": _NOW}
    _copy(conn, "event_deliveries", "status = 'succeeded'", count, made, say)


def past(conn: psycopg.Connection[Any]) -> int:
    """How many of these jobs and deliveries there still are."""
    found = conn.execute(
        "SELECT (SELECT count(*) FROM async_invocations WHERE finished_at < now() - make_interval(secs => %(age)s))"
        " + (SELECT count(*) FROM event_deliveries WHERE ended_at < now() - make_interval(secs => %(age)s))",
        {"age": _AGE_S},
    ).fetchone()
    return int(found[0]) if found else 0


def _copy(
    conn: psycopg.Connection[Any],
    table: str,
    which: str,
    count: int,
    made: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Copies of one row of ``table`` where ``which``, with the columns of ``made`` computed; ``n`` counts from 1."""
    columns = [row[0] for row in conn.execute(_COLUMNS, [table])]
    values = sql.SQL(", ").join(sql.SQL(made[name]) if name in made else sql.Identifier("m", name) for name in columns)
    statement = sql.SQL(
        "INSERT INTO {table} ({columns}) SELECT {values} FROM (SELECT * FROM {table} WHERE {which} LIMIT 1) m,"
        " generate_series(%(first)s::bigint, %(last)s) n"
    ).format(
        table=sql.Identifier(table),
        columns=sql.SQL(", ").join(map(sql.Identifier, columns)),
        values=values,
        which=sql.SQL(which),
    )
    for first in range(1, count + 1, _BATCH):
        say(f"filling {table} {first - 1}/{count}")
        last = min(first + _BATCH - 1, count)
        facts = {"first": first, "last": last, "count": count, "age": _AGE_S, "spacing": _SPACING_S}
        if not conn.execute(statement, facts).rowcount:
            raise DriveError(f"{table} has no row where {which}")


_COLUMNS = """
SELECT attname FROM pg_attribute
 WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
"""
