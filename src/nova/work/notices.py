"""Notifications outside of transactions: sent after a commit, several in one statement.

A commit that notifies waits for every other commit that does, and a busy queue notifies all the time. What is told this
way is a hint: whoever misses it (this process may die before it has told) finds the work when he looks by himself.
"""

import asyncio
import json

import structlog

from nova.errors import NovaError
from nova.ids import new_id
from nova.service import Background
from nova.store.db import Database, Queries
from nova.store.lines import Prepared
from nova.store.listen import Channel

log = structlog.get_logger(__name__)
_GAP_S = 0.005
"""Between two statements; what comes meanwhile shares the next one."""
_MAX_IDS = 200
"""Ids that fit into one notification (8000 bytes)."""

PROCESS = new_id()
"""Marks what this process has sent, so that it does not listen to itself twice."""
_NOTIFY = Prepared.of("nova_notify", Queries("work").notify)


class Notices:
    """Tells this process at once and all others a moment later. Equal messages of one moment are one."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._pending: dict[tuple[str, str], None] = {}
        self._ids: list[str] = []
        self._sending = False
        self._tasks = Background("notices")

    def work(self, kind: str, due_s: float = 0) -> None:
        """There is work of this kind, due in so many seconds. This process's listeners know when this returns."""
        message: dict[str, str | float] = {"kind": kind}
        if due_s > 0:
            message["due_s"] = due_s
        if self._db.on_commit is not None:
            self._db.on_commit(Channel.WORK, json.dumps(message))
        self._pending[Channel.WORK.value, json.dumps({**message, "by": PROCESS})] = None
        self._begin()

    def tell(self, channel: Channel, payload: str) -> None:
        """Something on a channel of hints. This process's listeners know when this returns, and hear it once more later."""
        if self._db.on_commit is not None:
            self._db.on_commit(channel, payload)
        self._pending[channel.value, payload] = None
        self._begin()

    def ended(self, ids: list[str]) -> None:
        """These jobs have ended: ``Channel.ASYNC``, ids separated by commas."""
        if self._db.on_commit is not None:
            self._db.on_commit(Channel.ASYNC, ",".join(ids))
        self._ids += ids
        self._begin()

    async def start(self) -> None:
        return None

    async def close(self) -> None:
        await self._tasks.close()

    def _begin(self) -> None:
        if not self._sending:
            self._sending = True
            self._tasks.spawn("send", self._send())

    async def _send(self) -> None:
        try:
            while self._pending or self._ids:
                messages = list(self._pending)
                messages += [
                    (Channel.ASYNC.value, ",".join(self._ids[start : start + _MAX_IDS]))
                    for start in range(0, len(self._ids), _MAX_IDS)
                ]
                self._pending.clear()
                self._ids.clear()
                try:
                    await self._db.quick(_NOTIFY, channels=[m[0] for m in messages], payloads=[m[1] for m in messages])
                except NovaError as error:
                    log.warning("cannot notify", error=error.detail)
                await asyncio.sleep(_GAP_S)
        finally:
            self._sending = False
