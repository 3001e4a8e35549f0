"""Idempotency keys in PostgreSQL: one reservation for each key, the answer kept beside it until the key expires."""

from collections.abc import Sequence
from dataclasses import dataclass

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.store.db import Database, Queries

_sql = Queries("idempotency")


@dataclass(frozen=True, slots=True)
class Reservation:
    """A key that this request holds. ``subject`` is the request's id; ``attempt`` above 1: an earlier holder died."""

    scope: Scope
    realm: str
    key: str
    subject: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Stored:
    """What the first request with the key was told."""

    answer: bytes


class IdempotencyStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def reserve(
        self, scope: Scope, realm: str, key: str, request_hash: bytes, subject: str, *, ttl_s: float, lease_s: float
    ) -> Reservation | Stored:
        """Take the key for ``lease_s`` seconds, or find the answer that was kept.

        ``request_hash`` stands for what was asked. Raises ``idempotency_conflict`` when the key was used for something
        else, ``idempotency_in_progress`` while its holder is at it.
        """
        name = {"tenant": scope.tenant, "namespace": scope.namespace, "realm": realm, "key": key}
        async with self._db.connection() as conn:
            taken = await conn.one(
                _sql.reserve, **name, hash=request_hash, subject=subject, ttl_s=ttl_s, lease_s=lease_s
            )
            if taken is not None:
                return Reservation(scope, realm, key, subject, taken["attempt"])
            held = await conn.one(_sql.held, **name, hash=request_hash)
        if held is not None and not held["same"]:
            raise NovaError("idempotency_conflict", "this idempotency key was used for another request")
        if held is None or held["state"] == "running":
            raise NovaError(
                "idempotency_in_progress",
                "the first request with this idempotency key is still running",
                retry_after_s=1,
            )
        return Stored(held["answer"].encode())

    async def renew(self, held: Sequence[Reservation], *, lease_s: float) -> None:
        await self._db.run(
            _sql.renew,
            tenants=[one.scope.tenant for one in held],
            namespaces=[one.scope.namespace for one in held],
            realms=[one.realm for one in held],
            keys=[one.key for one in held],
            subjects=[one.subject for one in held],
            lease_s=lease_s,
        )

    async def answer(self, held: Reservation, answer: bytes) -> bool:
        """Keep the answer (JSON). False: the reservation had run out and is somebody else's by now."""
        return await self._db.run(_sql.answer, **_name(held), answer=answer.decode()) > 0

    async def release(self, held: Reservation) -> None:
        """Nothing was done under the key: it is free again."""
        await self._db.run(_sql.release, **_name(held))

    async def sweep(self, limit: int) -> int:
        """Delete expired keys; how many."""
        return await self._db.run(_sql.sweep, limit=limit)


def _name(held: Reservation) -> dict[str, str]:
    return {
        "tenant": held.scope.tenant,
        "namespace": held.scope.namespace,
        "realm": held.realm,
        "key": held.key,
        "subject": held.subject,
    }
