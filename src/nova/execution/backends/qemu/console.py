"""What one QEMU process says: its own complaints and the guest's serial console, the last of it kept."""

import asyncio
from typing import Final

KEEP_BYTES: Final = 64 << 10
_PIECE: Final = 8192
_LAST: Final = 400


class Console:
    """Reads until the process has ended and closed its output."""

    def __init__(self, stream: asyncio.StreamReader) -> None:
        self._stream = stream
        self._kept = bytearray()

    async def run(self) -> None:
        while piece := await self._stream.read(_PIECE):
            self._kept += piece
            del self._kept[:-KEEP_BYTES]

    def tail(self) -> bytes:
        return bytes(self._kept)

    def last_words(self) -> str:
        """The end of it on one line."""
        return " | ".join(self.tail().decode(errors="replace").split("\n"))[-_LAST:].strip(" |\r")
