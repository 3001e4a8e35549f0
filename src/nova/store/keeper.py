"""The embedded database's keeper: it starts the server, notices its death, and starts it again."""

import asyncio
import os

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_exponential

from nova.service import Background, to_its_end
from nova.store.embedded import EmbeddedPostgres

log = structlog.get_logger(__name__)
_LONGEST_PAUSE_S = 5.0


class Keeper:
    """A server that was killed is back as soon as its last process has let go of its memory, and has lost nothing that was
    committed. One that cannot start (its disk is full) is tried again until it can."""

    def __init__(self, server: EmbeddedPostgres) -> None:
        self._server = server
        self._background = Background("keeper")

    async def start(self) -> None:
        """Returns once the server accepts connections. Raises RuntimeError or OSError when it does not come up."""
        await to_its_end(self._server.start)
        self._background.spawn("keep", self._keep())

    async def close(self) -> None:
        """Leave it in peace, and stop it."""
        await self._background.close()
        await asyncio.to_thread(self._server.stop)

    async def _keep(self) -> None:
        while True:
            await self._death()
            log.error("the database died; starting it again")
            async for attempt in AsyncRetrying(
                retry=retry_if_exception_type((RuntimeError, OSError)),
                wait=wait_exponential(multiplier=0.1, max=_LONGEST_PAUSE_S),
                before_sleep=_say,
            ):
                with attempt:
                    await to_its_end(self._server.start)
            log.info("the database is back", pid=self._server.pid)

    async def _death(self) -> None:
        """Wait until the server's first process has ended; the kernel tells, also of one that is no child of ours."""
        pid = self._server.pid
        if pid is None:
            return
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            loop.add_reader(process, ended.set)
            if self._server.pid == pid:  # else the number already names another process
                await ended.wait()
        finally:
            loop.remove_reader(process)
            os.close(process)


def _say(state: RetryCallState) -> None:
    outcome = state.outcome
    log.warning("the database does not start", attempt=state.attempt_number, error=str(outcome and outcome.exception()))
