"""Shadow policies in PostgreSQL, with what their copies have shown so far."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from psycopg.types.json import Jsonb
from pydantic import TypeAdapter

from nova.domain.shadow import MAX_SAMPLES, Shadow
from nova.store.db import Connection, Database, Queries

_sql = Queries("rollouts")


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """A policy that is not ``enabled`` keeps its report and copies nothing."""

    shadow: Shadow
    enabled: bool = True


_policy: TypeAdapter[ShadowPolicy] = TypeAdapter(ShadowPolicy)


@dataclass(slots=True)
class Tally:
    """What copies have shown. ``primary_ms`` and ``shadow_ms`` are sums over the compared ones, of the handlers' time."""

    matched: int = 0
    differed: int = 0
    errors: int = 0
    skipped: int = 0
    uncompared: int = 0
    primary_ms: float = 0.0
    shadow_ms: float = 0.0
    samples: list[Mapping[str, Any]] = field(default_factory=list)
    """newest first"""


@dataclass(frozen=True, slots=True)
class ShadowRecord:
    policy: ShadowPolicy
    tally: Tally
    created_by: str
    created_at: datetime


class ShadowStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def get(self, function_id: str) -> ShadowRecord | None:
        row = await self._db.one(_sql.get_shadow, function_id=function_id)
        if row is None:
            return None
        tally = Tally(**{name: row[name] for name in Tally.__dataclass_fields__})
        return ShadowRecord(policy_of(row["policy"]), tally, row["created_by"], row["created_at"])

    async def put(self, conn: Connection, function_id: str, policy: ShadowPolicy, actor: str) -> None:
        """Replace the policy; its report begins anew."""
        await conn.run(
            _sql.put_shadow,
            function_id=function_id,
            id=policy.shadow.id,
            policy=Jsonb(_policy.dump_python(policy, mode="json")),
            created_by=actor,
        )

    async def delete(self, conn: Connection, function_id: str) -> bool:
        return await conn.run(_sql.delete_shadow, function_id=function_id) > 0

    async def count(self, tallies: Sequence[tuple[str, str, Tally]]) -> None:
        """Add to reports; each with its function and the policy's id. What belongs to a policy that is gone is dropped."""
        async with self._db.transaction() as conn:
            for function_id, shadow_id, tally in sorted(tallies, key=lambda counted: counted[:2]):
                values = asdict(tally) | {"samples": Jsonb(tally.samples[:MAX_SAMPLES])}
                await conn.run(_sql.count_shadow, function_id=function_id, id=shadow_id, keep=MAX_SAMPLES, **values)


def policy_of(data: Any) -> ShadowPolicy:
    return _policy.validate_python(data)


def active(data: Any) -> Shadow | None:
    """The shadow of a function from its policy's row; None when nothing is copied."""
    if data is None:
        return None
    policy = policy_of(data)
    return policy.shadow if policy.enabled else None
