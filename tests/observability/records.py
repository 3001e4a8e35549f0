"""Call records of a given time and duration, written the way the batcher writes them."""

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from nova.domain.function import FunctionSnapshot
from nova.store import callrows
from nova.store.callrows import FinishedCall
from nova.store.db import Connection
from nova.store.invocations import InvocationStore
from tests.execution.finished import finished


def row(snapshot: FunctionSnapshot, at: datetime, ms: float = 1.5, **changes: Any) -> bytes:
    call, result = finished(snapshot, version=snapshot.version, duration_us=round(ms * 1000), **changes)
    done = FinishedCall(int(at.timestamp() * 1e6), call, snapshot, result)
    return callrows.encode(callrows.version_prefix(snapshot), done, None, None)


async def write(store: InvocationStore, rows: Iterable[bytes]) -> None:
    await store.append(list(rows), ())


async def unfenced(_conn: Connection) -> None:
    """A fence that always holds."""


class Free:
    """Stands for the fence of a duty that nobody else wants."""

    async def check(self, conn: Connection) -> None:
        return
