"""The ``platform_secrets`` table: secrets that the platform made for itself."""

from nova.store.db import Database, Queries

_sql = Queries("platform")


async def secret(db: Database, name: str, proposed: bytes) -> bytes:
    """The secret of this name; ``proposed`` becomes it when there is none. All who ask, at any time, get the same one."""
    row = await db.one(_sql.get_secret, name=name)
    if row is None:
        async with db.transaction() as conn:
            await conn.run(_sql.keep_secret, name=name, value=proposed)
        row = await db.one(_sql.get_secret, name=name)
    assert row is not None
    return bytes(row["value"])
