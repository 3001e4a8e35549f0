"""New code for a running instance, from the host's side: the archive goes up in pieces, then one frame switches."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from nova.agent import frames
from nova.agent.frames import Frame, FrameError
from nova.agent.messages import DoneHead, GuestError, ReloadHead
from nova.agent.reload import MAX_PIECE
from nova.errors import FunctionError
from nova.execution.channel_control import ControlConnection, ControlLost

_READ: Final = 1 << 20
UNPACK_RATE: Final = 10 << 20
"""Bytes per second that unpacking reaches at least; loading gets its usual time on top."""


class ReloadFailed(Exception):
    """The new code does not serve; the old code goes on. Prints are those of the load that failed."""

    def __init__(self, error: FunctionError, stdout: str = "", stderr: str = "") -> None:
        super().__init__(f"{error.type}: {error.message}")
        self.error = error
        self.stdout = stdout
        self.stderr = stderr

    @classmethod
    def of(cls, error: GuestError | None) -> "ReloadFailed":
        """From what the agent answered."""
        error = error or GuestError("Nova.InitError", "the agent gave no reason")
        return cls(FunctionError(error.type, error.message, error.stack))


async def upload(control: ControlConnection, tar: AsyncIterator[bytes] | Path, begin: ReloadHead) -> None:
    """Stages begin and data. Whatever fails, the agent has forgotten what it got. Raises ReloadFailed, ControlLost."""
    await _stage(control, begin)
    data = ReloadHead("data")
    try:
        async for piece in _pieces(_read(tar) if isinstance(tar, Path) else tar):
            await _stage(control, data, b'"%b"' % base64.b64encode(piece))
    except BaseException:
        abort(control)
        raise


async def commit(control: ControlConnection, limit_s: float) -> Frame:
    """The agent's answer to commit, which always comes: after ``limit_s`` the agent is told to give up."""
    answer = control.request(frames.RELOAD, ReloadHead("commit").as_head())
    await asyncio.wait({answer}, timeout=limit_s)
    if not answer.done():
        abort(control)
    return await answer


def abort(control: ControlConnection) -> None:
    """Without waiting for the answer, which says nothing."""
    control.request(frames.RELOAD, ReloadHead("abort").as_head()).add_done_callback(_look_at)


def _look_at(answer: asyncio.Future[Frame]) -> None:
    """A lost connection is told to whoever uses it, not here."""
    if not answer.cancelled():
        answer.exception()


async def _stage(control: ControlConnection, head: ReloadHead, payload: bytes = b"") -> None:
    answer = await control.request(frames.RELOAD, head.as_head(), payload)
    try:
        done = DoneHead.of(answer.head)
    except FrameError as error:
        raise ControlLost(f"the agent's answer is not valid: {error}") from None
    if not done.ok:
        raise ReloadFailed.of(done.error)


async def _read(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while data := await asyncio.to_thread(file.read, _READ):
            yield data


async def _pieces(data: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Cut to what one frame may carry."""
    async for some in data:
        for start in range(0, len(some), MAX_PIECE):
            yield some[start : start + MAX_PIECE]
