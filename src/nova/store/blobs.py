"""Content-addressed bytes in PostgreSQL: immutable, named by their SHA-256, stored once however often they are put."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from nova.errors import not_found
from nova.store.db import Connection, Database, Queries

_sql = Queries("blobs")
CHUNK = 1 << 20
"""Bytes of one row. A blob of n bytes has max(1, ⌈n / CHUNK⌉) of them."""
OCTETS = "application/octet-stream"
TAR = "application/x-tar"


@dataclass(frozen=True, slots=True)
class BlobInfo:
    digest: str
    size: int
    media_type: str


class BlobStore:
    """Every method takes the connection of a running transaction, or one of its own."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def put(self, data: bytes, media_type: str = OCTETS, conn: Connection | None = None) -> str:
        """Store bytes; their digest."""
        if conn is None:
            async with self._db.transaction() as own:
                return await self.put(data, media_type, own)
        return (await self.put_many(conn, [data], media_type))[0]

    async def put_many(self, conn: Connection, items: Iterable[bytes], media_type: str = OCTETS) -> list[str]:
        """Store many at once; their digests, in the order given.

        Rows are written by ascending digest, so that two deploys with files in common wait for each other in one order.
        """
        contents = list(items)
        digests = await asyncio.to_thread(lambda: [digest_of(data) for data in contents])
        by_digest = dict(zip(digests, contents, strict=True))
        names = sorted(by_digest)
        sizes = [len(by_digest[name]) for name in names]
        rows = await conn.fetch(_sql.insert_many, digests=names, sizes=sizes, media_type=media_type)
        chunks = [
            {"digest": row["digest"], "seq": seq, "data": piece}
            for row in rows
            if row["fresh"]
            for seq, piece in enumerate(_pieces(by_digest[row["digest"]]))
        ]
        if chunks:
            await conn.run_many(_sql.insert_chunk, chunks)
        return digests

    async def put_file(self, file: BinaryIO, media_type: str = OCTETS, conn: Connection | None = None) -> str:
        """Store what an open, seekable file holds, without having it in memory at once; its digest."""
        if conn is None:
            async with self._db.transaction() as own:
                return await self.put_file(file, media_type, own)
        digest, size = await asyncio.to_thread(_measure, file)
        rows = await conn.fetch(_sql.insert_many, digests=[digest], sizes=[size], media_type=media_type)
        if rows[0]["fresh"]:
            file.seek(0)
            for seq in range(_count(size)):
                await conn.run(_sql.insert_chunk, digest=digest, seq=seq, data=file.read(CHUNK))
        return digest

    async def info(self, digest: str) -> BlobInfo:
        """Raises ``not_found``."""
        row = await self._db.one(_sql.info, digest=digest)
        if row is None:
            raise not_found("blob", digest)
        return BlobInfo(**row)

    async def get(self, digest: str, conn: Connection | None = None) -> bytes:
        """All of it. Raises ``not_found``."""
        rows = await (conn or self._db).fetch(_sql.chunks, digest=digest)
        if not rows:
            raise not_found("blob", digest)
        return b"".join(row["data"] for row in rows)

    async def stream(self, digest: str) -> AsyncIterator[bytes]:
        """Piece by piece, each of at most :data:`CHUNK` bytes. Raises ``not_found``."""
        info = await self.info(digest)
        for seq in range(_count(info.size)):
            row = await self._db.one(_sql.chunk, digest=digest, seq=seq)
            if row is None:
                raise not_found("blob", digest)
            yield row["data"]

    async def get_many(self, digests: Sequence[str], conn: Connection | None = None) -> dict[str, bytes]:
        """Several at once. Raises ``not_found`` for the first that is missing."""
        wanted = sorted(set(digests))
        rows = await (conn or self._db).fetch(_sql.many, digests=wanted)
        pieces: dict[str, list[bytes]] = {digest: [] for digest in wanted}
        for row in rows:
            pieces[row["digest"]].append(row["data"])
        for digest, parts in pieces.items():
            if not parts:
                raise not_found("blob", digest)
        return {digest: b"".join(parts) for digest, parts in pieces.items()}

    async def sweep(self, *, older_than_s: float, limit: int = 1000) -> int:
        """Remove blobs that nothing refers to and nobody has put for this long; how many. Call until it gives 0."""
        return await self._db.run(_sql.sweep, age_s=older_than_s, limit=limit)


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _measure(file: BinaryIO) -> tuple[str, int]:
    """Digest and size of all that an open file holds."""
    hasher = hashlib.sha256()
    size = 0
    file.seek(0)
    while data := file.read(CHUNK):
        hasher.update(data)
        size += len(data)
    return f"sha256:{hasher.hexdigest()}", size


def _count(size: int) -> int:
    return max(1, -(-size // CHUNK))


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + CHUNK] for start in range(0, max(len(data), 1), CHUNK))
