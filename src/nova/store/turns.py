"""Places and paces of asynchronous calls: which claimed jobs may run, and who follows one that leaves.

Only jobs that are held to something come here; all others never touch these tables.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nova.domain.turns import Asking, Decision, Gate, Standing, State, Waiting, decide, promote
from nova.store.db import Connection, Database, Queries, Row

sql = Queries("turns")
_PROMOTED = 64
"""Jobs that get a place at once; the next one that leaves lets in more."""
_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job at its gate, with the proof of its claim."""

    id: str
    fence: int
    tenant: str
    namespace: str
    function_id: str
    gate: Gate


async def admit(db: Database, owner: str, jobs: Sequence[Claimed]) -> frozenset[str]:
    """The ids of those that may run now. The others are given back to the queue, until their time or until a place is free."""
    by_function: defaultdict[str, list[Claimed]] = defaultdict(list)
    for job in jobs:
        by_function[job.function_id].append(job)
    async with db.transaction() as conn:
        gates = await _lock(conn, list(by_function))
        states = await _states(conn, [job.id for job in jobs])
        standings = await _standings(conn, gates, jobs)
        decisions = {
            function_id: decide(
                [Asking(job.id, job.gate, states.get(job.id)) for job in by_function[function_id]],
                standings[function_id],
            )
            for function_id in gates
        }
        await _write(conn, owner, jobs, decisions)
        if paced := [f for f in gates if any(job.gate.rate is not None for job in by_function[f])]:
            await conn.run(sql.pace, functions=paced, nexts=[standings[f].next_s for f in paced])
    gone = (job.id for function_id, found in by_function.items() if function_id not in gates for job in found)
    return frozenset([*(job_id for decision in decisions.values() for job_id in decision.run), *gone])


async def leave(conn: Connection, ids: Sequence[str]) -> bool:
    """These jobs run no more, or not now: who waited for their places gets them. Did anybody?"""
    functions = [row["function_id"] for row in await conn.fetch(sql.functions_of, ids=list(ids))]
    if not functions:
        return False
    gates = await _lock(conn, functions)
    await conn.run(sql.leave, ids=list(ids))
    return await _let_in(conn, gates)


async def tidy(db: Database) -> bool:
    """Once a minute, by anybody: places of jobs that are gone are free. Did anybody get one?"""
    await db.run(sql.orphans, limit=_LIMIT)
    rows = await db.fetch(sql.functions_that_wait, limit=_LIMIT)
    moved = False
    for row in rows:
        async with db.transaction() as conn:
            moved |= await _let_in(conn, await _lock(conn, [row["function_id"]]))
    return moved


async def _lock(conn: Connection, functions: Sequence[str]) -> dict[str, Row]:
    """Rows of those functions that exist."""
    await conn.run(sql.know, functions=list(functions))
    return {row["function_id"]: row for row in await conn.fetch(sql.lock, functions=list(functions))}


async def _states(conn: Connection, ids: Sequence[str]) -> dict[str, State]:
    return {row["id"]: row["state"] for row in await conn.fetch(sql.told, ids=list(ids))}


async def _standings(conn: Connection, gates: Mapping[str, Row], jobs: Sequence[Claimed]) -> dict[str, Standing]:
    found = {function_id: Standing(next_s=gate["next_s"]) for function_id, gate in gates.items()}
    for row in await conn.fetch(sql.held, **_scopes(gates)):
        found[row["function_id"]].held[row["key"]] = row["held"]
    keyed = [job for job in jobs if job.gate.key and job.function_id in gates]
    if keyed:
        rows = await conn.fetch(
            sql.awaited,
            tenants=[job.tenant for job in keyed],
            namespaces=[job.namespace for job in keyed],
            functions=[job.function_id for job in keyed],
            keys=[job.gate.key for job in keyed],
        )
        for row in rows:
            found[row["function_id"]].waiting.add(row["key"])
    return found


def _scopes(gates: Mapping[str, Row]) -> dict[str, list[str]]:
    rows = list(gates.values())
    return {
        "tenants": [row["tenant_id"] for row in rows],
        "namespaces": [row["namespace"] for row in rows],
        "functions": [row["function_id"] for row in rows],
    }


async def _write(conn: Connection, owner: str, jobs: Sequence[Claimed], decisions: Mapping[str, Decision]) -> None:
    states: dict[str, State] = {}
    delays: dict[str, float | None] = {}
    for decision in decisions.values():
        states |= dict.fromkeys(decision.hold, "holding")
        states |= dict.fromkeys(decision.wait, "waiting")
        states |= dict.fromkeys(decision.pace, "paced")
        delays |= dict.fromkeys(decision.wait)
        delays |= decision.pace
    if placed := [job for job in jobs if job.id in states]:
        await conn.run(
            sql.place,
            ids=[job.id for job in placed],
            tenants=[job.tenant for job in placed],
            namespaces=[job.namespace for job in placed],
            functions=[job.function_id for job in placed],
            keys=[job.gate.key for job in placed],
            key_limits=[job.gate.key_limit for job in placed],
            states=[states[job.id] for job in placed],
            priorities=[job.gate.priority for job in placed],
            dues=[job.gate.due for job in placed],
        )
    if parked := [job for job in jobs if job.id in delays]:
        await conn.run(
            sql.park,
            owner=owner,
            ids=[job.id for job in parked],
            fences=[job.fence for job in parked],
            delays=[delays[job.id] for job in parked],
        )


async def _let_in(conn: Connection, gates: Mapping[str, Row]) -> bool:
    chosen: list[str] = []
    held: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row in await conn.fetch(sql.held, **_scopes(gates)):
        held[row["function_id"]][row["key"]] = row["held"]
    for function_id, gate in gates.items():
        rows = await conn.fetch(
            sql.waiting,
            tenant=gate["tenant_id"],
            namespace=gate["namespace"],
            function=function_id,
            limit=_PROMOTED,
        )
        if rows:
            waiting = [Waiting(row["id"], row["key"], row["key_limit"]) for row in rows]
            chosen += promote(waiting, held[function_id], gate["max_inflight"])
    if chosen:
        await conn.run(sql.promote, ids=chosen)
    return bool(chosen)
