"""Rollouts in PostgreSQL: how they begin, move and end, the same for a user's order and for the duty that moves them.

Every change takes the connection of a transaction that holds the function's lock, and announces the function where calls
have to go another way.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from nova.domain.alias import WHOLE
from nova.domain.identity import Scope
from nova.domain.names import LIVE
from nova.domain.rollout import MAX_HISTORY, Arm, Rollout, RolloutPolicy, Status
from nova.errors import NovaError, not_found
from nova.ids import new_id
from nova.store import sketch
from nova.store.aliases import AliasStore
from nova.store.db import Connection, Database, Queries, Row
from nova.store.functions import FunctionRecord, FunctionStore, announce
from nova.store.versions import VersionStore

_sql = Queries("rollouts")
_policy: TypeAdapter[RolloutPolicy] = TypeAdapter(RolloutPolicy)
REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class Running:
    """A rollout that runs, and whose."""

    scope: Scope
    function: str
    function_id: str
    rollout: Rollout


@dataclass(frozen=True, slots=True)
class Counted:
    """Calls of one version since a position; ``seq`` is the position of the newest. ``durations`` are calls by cell
    (:mod:`nova.store.sketch`), from cell 0 up to the highest that was met."""

    calls: int
    errors: int
    durations: tuple[int, ...]
    seq: int


class RolloutStore:
    def __init__(self, db: Database, functions: FunctionStore, versions: VersionStore, aliases: AliasStore) -> None:
        self.db = db
        self.functions = functions
        self.versions = versions
        self.aliases = aliases

    async def get(self, function_id: str, conn: Connection | None = None) -> Rollout | None:
        """The function's rollout: the one under way, or the last."""
        row = await (conn or self.db).one(_sql.get, function_id=function_id)
        return None if row is None else _rollout(row)

    async def running(self) -> list[Running]:
        """Of every function of every tenant."""
        return [
            Running(Scope(row["tenant_id"], row["namespace"]), row["name"], row["function_id"], _rollout(row))
            for row in await self.db.fetch(_sql.running)
        ]

    async def counted(self, function_id: str, rollout: Rollout, after: int) -> dict[int, Counted]:
        """By version, what came by the alias and was recorded after the position ``after``."""
        rows = await self.db.fetch(
            _sql.counted,
            function_id=function_id,
            after=after,
            baseline=rollout.baseline,
            target=rollout.target,
            alias=rollout.alias,
            bounds=sketch.BOUNDS,
        )
        return {
            row["version"]: Counted(row["calls"], row["errors"], tuple(row["durations"]), row["seq"]) for row in rows
        }

    async def start(
        self, conn: Connection, function: FunctionRecord, alias: str, target: int, policy: RolloutPolicy, actor: str
    ) -> None:
        """Begin with the first step, instead of any rollout that has ended."""
        await conn.run(
            _sql.put,
            function_id=function.id,
            id=new_id(),
            alias=alias,
            baseline=single_version(function, alias),
            target=target,
            policy=Jsonb(_policy.dump_python(policy, mode="json")),
            weight=policy.steps[0].weight,
            created_by=actor,
        )
        await self._note(conn, function.id, "start", 0, policy.steps[0].weight, "", actor)
        await self._announce(conn, function)

    async def step(
        self,
        conn: Connection,
        function: FunctionRecord,
        rollout: Rollout,
        step: int,
        action: str,
        reason: str,
        actor: str,
    ) -> None:
        """Go to a step, or begin the present one anew; the rollout runs from here on."""
        weight = rollout.policy.steps[step].weight
        await conn.run(_sql.step, function_id=function.id, step=step, weight=weight)
        await self._note(conn, function.id, action, step, weight, reason, actor)
        await self._announce(conn, function)

    async def pause(
        self, conn: Connection, function: FunctionRecord, rollout: Rollout, reason: str, actor: str
    ) -> None:
        """Stay where it is: the weights hold until somebody says what next."""
        await self._set(conn, function, rollout, "paused", rollout.weight, "pause", reason, actor)

    async def promote(
        self, conn: Connection, function: FunctionRecord, rollout: Rollout, reason: str, actor: str
    ) -> None:
        """All calls of the alias go to the new version, and ``live`` takes the settings that it recorded."""
        version = await self.versions.version(function.id, rollout.target, conn)
        if version is None:
            raise not_found("version", str(rollout.target))
        if rollout.alias == LIVE:
            settings = replace(function.settings, recorded=version.config.recorded)
            await self.functions.save(conn, function.id, settings=settings, head=rollout.target, live=rollout.target)
        else:
            alias = replace(function.aliases[rollout.alias], split=((rollout.target, WHOLE),))
            await self.aliases.save(conn, function.id, alias)
        await self._set(conn, function, rollout, "promoted", WHOLE, "promote", reason, actor)

    async def end(
        self, conn: Connection, function: FunctionRecord, rollout: Rollout, status: Status, reason: str, actor: str
    ) -> None:
        """All calls of the alias go where they went before: ``aborted`` by somebody, or ``rolled_back`` by a guard."""
        action = "rollback" if status == "rolled_back" else "abort"
        await self._set(conn, function, rollout, status, 0, action, reason, actor)

    async def delete(self, conn: Connection, function: FunctionRecord) -> bool:
        """Forget it, and with it its share of the calls."""
        gone = await conn.run(_sql.delete, function_id=function.id) > 0
        await self._announce(conn, function)
        return gone

    async def _set(
        self,
        conn: Connection,
        function: FunctionRecord,
        rollout: Rollout,
        status: Status,
        weight: int,
        action: str,
        reason: str,
        actor: str,
    ) -> None:
        await conn.run(_sql.set_status, function_id=function.id, status=status, weight=weight, ended=status != "paused")
        await self._note(conn, function.id, action, rollout.step, weight, reason, actor)
        await self._announce(conn, function)

    async def _note(
        self, conn: Connection, function_id: str, action: str, step: int, weight: int, reason: str, actor: str
    ) -> None:
        entry = {"action": action, "step": step + 1, "percent": weight / 100, "reason": reason, "by": actor}
        await conn.run(_sql.note, function_id=function_id, entry=Jsonb(entry), keep=MAX_HISTORY)

    async def _announce(self, conn: Connection, function: FunctionRecord) -> None:
        await announce(conn, function.scope, function.name, await self.functions.touch(conn, function.id))


class _Arm:
    """Adds up what was counted of one version."""

    def __init__(self) -> None:
        self._calls = 0
        self._errors = 0
        self._cells: Counter[int] = Counter()

    def add(self, counted: Counted | None) -> None:
        if counted is not None:
            self._calls += counted.calls
            self._errors += counted.errors
            self._cells.update({cell: calls for cell, calls in enumerate(counted.durations) if calls})

    def shown(self) -> Arm:
        return Arm(self._calls, self._errors, sketch.percentile(sorted(self._cells.items()), 0.95))


class _Step:
    """The calls of one step so far, up to the position ``after``."""

    def __init__(self, rollout: Rollout) -> None:
        self.key = (rollout.id, rollout.step, rollout.step_seq)
        self.after = rollout.step_seq
        self.target = _Arm()
        self.baseline = _Arm()


class StepCounts:
    """How both versions do in the present step, of the :data:`REMEMBERED` rollouts that were asked for last.

    What was counted is remembered, so that each look reads only the records that are new.
    """

    def __init__(self, store: RolloutStore) -> None:
        self._store = store
        self._steps: OrderedDict[str, _Step] = OrderedDict()

    async def arms(self, function_id: str, rollout: Rollout) -> tuple[Arm, Arm]:
        """Of the new version, and of the one of before."""
        step = self._step(function_id, rollout)
        after = step.after
        new = await self._store.counted(function_id, rollout, after)
        if new and step.after == after:  # else somebody else has added the same meanwhile
            step.target.add(new.get(rollout.target))
            step.baseline.add(new.get(rollout.baseline))
            step.after = max(counted.seq for counted in new.values())
        return step.target.shown(), step.baseline.shown()

    def forget(self) -> None:
        self._steps.clear()

    def _step(self, function_id: str, rollout: Rollout) -> _Step:
        step = self._steps.get(function_id)
        if step is None or step.key != (rollout.id, rollout.step, rollout.step_seq):
            step = self._steps[function_id] = _Step(rollout)
        self._steps.move_to_end(function_id)
        if len(self._steps) > REMEMBERED:
            self._steps.popitem(last=False)
        return step


def single_version(function: FunctionRecord, alias: str) -> int:
    """The one version that an alias leads to. Raises ``invalid_state`` when there is none, or several, ``not_found``."""
    if alias == LIVE:
        if function.live_version is None:
            raise NovaError("invalid_state", "no version is live yet: the first one is still being built")
        return function.live_version
    if alias not in function.aliases:
        raise not_found("alias", alias)
    split = function.aliases[alias].split
    if len(split) != 1:
        raise NovaError("invalid_state", f"alias {alias!r} splits its calls already: point it at one version first")
    return split[0][0]


def _rollout(row: Row) -> Rollout:
    history: list[Mapping[str, Any]] = row["history"]
    return Rollout(
        id=row["id"],
        alias=row["alias"],
        baseline=row["baseline"],
        target=row["target"],
        policy=_policy.validate_python(row["policy"]),
        status=row["status"],
        step=row["step"],
        weight=row["weight"],
        step_seq=row["step_seq"],
        held_s=row["held_s"],
        history=tuple(dict(entry) for entry in history),
        created_by=row["created_by"],
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        moved=row.get("moved", False),
    )
