"""Blobs: content-addressed, stored once, swept only when nobody needs them."""

import asyncio
import hashlib
import io
import os

import pytest

from nova.errors import NovaError
from nova.store.blobs import CHUNK, BlobStore
from nova.store.db import Database

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 17])
async def test_bytes_come_back_by_digest(database: Database, size: int) -> None:
    """BU6: digests are whole SHA-256."""
    blobs = BlobStore(database)
    data = os.urandom(size)
    digest = await blobs.put(data, "text/plain")
    assert digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert await blobs.get(digest) == data
    pieces = [piece async for piece in blobs.stream(digest)]
    assert b"".join(pieces) == data
    assert all(len(piece) <= CHUNK for piece in pieces)
    info = await blobs.info(digest)
    assert (info.size, info.media_type) == (size, "text/plain")
    assert await blobs.put_file(io.BytesIO(data)) == digest


async def test_equal_bytes_are_stored_once(database: Database) -> None:
    blobs = BlobStore(database)
    data = os.urandom(2 * CHUNK)
    digests = await asyncio.gather(*(blobs.put(data) for _ in range(8)), blobs.put_file(io.BytesIO(data)))
    assert len(set(digests)) == 1
    assert await database.one("SELECT count(*) AS n FROM blob_chunks") == {"n": 2}
    assert await blobs.get(digests[0]) == data


async def test_many_at_once_keep_their_order(database: Database) -> None:
    blobs = BlobStore(database)
    items = [b"b", b"", b"a", b"b", os.urandom(CHUNK + 1)]
    async with database.transaction() as conn:
        digests = await blobs.put_many(conn, items)
    assert [await blobs.get(digest) for digest in digests] == items
    assert await blobs.get_many(digests) == dict(zip(digests, items, strict=True))


async def test_deploys_with_common_files_do_not_block_each_other_for_good(database: Database) -> None:
    blobs = BlobStore(database)
    files = [f"{i}".encode() for i in range(50)]

    async def deploy(order: list[bytes]) -> None:
        async with database.transaction() as conn:
            await blobs.put_many(conn, order)

    await asyncio.gather(*(deploy(files if i % 2 else files[::-1]) for i in range(8)))
    assert await database.one("SELECT count(*) AS n FROM blobs") == {"n": 50}


async def test_an_unfinished_put_leaves_nothing(database: Database) -> None:
    blobs = BlobStore(database)

    async def interrupted() -> None:
        async with database.transaction() as conn:
            await blobs.put(b"x", conn=conn)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await interrupted()
    assert await database.one("SELECT count(*) AS n FROM blobs") == {"n": 0}


async def test_missing_blobs_are_named(database: Database) -> None:
    blobs = BlobStore(database)
    for get in (
        blobs.get("sha256:0"),
        blobs.info("sha256:0"),
        blobs.get_many(["sha256:0"]),
        anext(blobs.stream("sha256:0")),
    ):
        with pytest.raises(NovaError, match="not_found"):
            await get


async def test_a_sweep_takes_only_what_is_old_and_unused(database: Database) -> None:
    """DB6: blobs that nothing refers to disappear after a while, others stay."""
    blobs = BlobStore(database)
    old, cached, young, renewed = [await blobs.put(data) for data in (b"old", b"cached", b"young", b"renewed")]
    await database.run("UPDATE blobs SET created_at = now() - interval '2 days' WHERE sha256 <> %(d)s", d=young)
    await database.run(
        "INSERT INTO build_cache (tenant_id, cache_key, artifact) VALUES ('default', 'k', %(digest)s)", digest=cached
    )
    await blobs.put(b"renewed")
    assert await blobs.sweep(older_than_s=86_400) == 1
    assert await blobs.sweep(older_than_s=86_400) == 0
    left = {row["sha256"] for row in await database.fetch("SELECT sha256 FROM blobs")}
    assert left == {cached, young, renewed}
    assert await database.one("SELECT count(*) AS n FROM blob_chunks WHERE sha256 = %(d)s", d=old) == {"n": 0}
