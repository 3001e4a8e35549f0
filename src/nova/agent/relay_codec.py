"""Packets between two relays, sans I/O.

A relay carries one control socket and the descriptors that were sent over it through a plain byte stream. Each direction
begins with :data:`PREAMBLE`; after it come packets: kind (1 byte), stream (4 bytes), length (4 bytes), big-endian, and that
many bytes. Stream 0 is the control socket itself.

========  ======================================  =========================================================
kind      bytes                                   says
========  ======================================  =========================================================
DATA      1 to 64 KiB                             bytes of that stream; they use up its credit
OPEN      1: ``s`` socket, ``p`` pipe             a descriptor, sent with the next bytes of stream 0
END       none                                    the sender's descriptor gives no further bytes
STOP      none                                    the sender's descriptor takes no further bytes
CREDIT    4: a number                             that many bytes more may come; a stream begins with 256 KiB
========  ======================================  =========================================================
"""

import struct
from dataclasses import dataclass
from typing import Final

DATA: Final = 1
OPEN: Final = 2
END: Final = 3
STOP: Final = 4
CREDIT: Final = 5

CONTROL: Final = 0
"""The stream of the control socket."""
SOCKET: Final = b"s"
PIPE: Final = b"p"
PREAMBLE: Final = b"nova-relay-1\r\n\x00\xff"
WINDOW: Final = 256 << 10
"""Bytes of one stream that may be on their way."""
MAX_DATA: Final = 64 << 10
MAX_STREAM: Final = (1 << 32) - 1

_HEADER: Final = struct.Struct(">BII")
_CREDIT: Final = struct.Struct(">I")
_LENGTHS: Final = {DATA: (1, MAX_DATA), OPEN: (1, 1), END: (0, 0), STOP: (0, 0), CREDIT: (4, 4)}


class PacketError(Exception):
    """The peer broke the protocol; the connection is of no further use."""


@dataclass(frozen=True, slots=True)
class Packet:
    kind: int
    stream: int
    data: bytes = b""

    @property
    def credit(self) -> int:
        """The number in a CREDIT packet."""
        number: int = _CREDIT.unpack(self.data)[0]
        return number


def encode(kind: int, stream: int, data: bytes = b"") -> bytes:
    """The bytes of one packet. ``data`` must have a length that fits ``kind``."""
    return _HEADER.pack(kind, stream, len(data)) + data


def encode_credit(stream: int, number: int) -> bytes:
    return encode(CREDIT, stream, _CREDIT.pack(number))


class PacketDecoder:
    """Cuts a byte stream into packets. Memory is bounded by one packet plus one read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """Every packet that ``data`` completes. Raises :class:`PacketError` for one that cannot be."""
        buffer = self._buffer
        buffer += data
        packets = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            kind, stream, length = _HEADER.unpack_from(buffer, start)
            least, most = _LENGTHS.get(kind, (1, 0))
            if not least <= length <= most:
                raise PacketError(f"a packet of kind {kind} with {length} bytes is not acceptable")
            end = start + _HEADER.size + length
            if len(buffer) < end:
                break
            packets.append(Packet(kind, stream, bytes(buffer[start + _HEADER.size : end])))
            start = end
        del buffer[:start]
        return packets


class PreambleFinder:
    """Looks for :data:`PREAMBLE` at the beginning of a connection."""

    def __init__(self, skip: int) -> None:
        """``skip``: bytes that may come before it (what an earlier connection left in a serial port)."""
        self._skip = skip
        self._buffer = bytearray()

    def feed(self, data: bytes) -> bytes | None:
        """What follows the preamble, once it has come. Raises :class:`PacketError` when it does not come."""
        buffer = self._buffer
        buffer += data
        at = buffer.find(PREAMBLE)
        if at < 0:
            useless = max(0, len(buffer) - len(PREAMBLE) + 1)
            if self._skip == 0 and not PREAMBLE.startswith(buffer):
                useless = len(buffer)
            self._use(useless)
            del buffer[:useless]
            return None
        self._use(at)
        return bytes(buffer[at + len(PREAMBLE) :])

    def _use(self, size: int) -> None:
        if size > self._skip:
            raise PacketError("the peer does not speak the relay's protocol")
        self._skip -= size
