"""What one Firecracker process says: its own log and the machine's serial console, the last of it kept.

Whatever is printed before the machine starts is Firecracker's; from then on the guest can print anything.
"""

import asyncio
from collections import deque
from pathlib import Path
from typing import Final

KEEP_BYTES: Final = 64 << 10
_PIECE: Final = 8192
_LISTENING: Final = b"Listening on API socket"


class Console:
    """Reads until the process has ended and closed its output."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._pieces: deque[bytes] = deque()
        self._size = 0
        self._heard = asyncio.Condition()
        self.closed = False

    async def run(self) -> None:
        try:
            while piece := await self._stream.read(_PIECE):
                self._keep(piece)
                await self._tell()
        finally:
            self.closed = True
            await self._tell()

    async def _tell(self) -> None:
        async with self._heard:
            self._heard.notify_all()

    def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        while self._size - len(self._pieces[0]) >= KEEP_BYTES:
            self._size -= len(self._pieces.popleft())

    async def listening(self) -> bool:
        """True once the API can be asked; false when the process ended before."""
        return await self.says(_LISTENING)

    async def says(self, text: bytes) -> bool:
        """True once it has said so; false when it never will."""
        async with self._heard:
            await self._heard.wait_for(lambda: self.closed or text in self.tail())
        return text in self.tail()

    def tail(self) -> bytes:
        """The last 64 KiB, or a little more."""
        return b"".join(self._pieces)

    def last_words(self) -> str:
        """The last line, for an error text; hints about backtraces are none."""
        said = self.tail().decode(errors="replace").strip().splitlines()
        lines = [line for line in said if not line.startswith("note: ")]
        return lines[-1][-300:] if lines else "it said nothing"

    def save(self, path: Path) -> None:
        """Keep it for the operator."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.write_bytes(self.tail())
        path.chmod(0o600)
