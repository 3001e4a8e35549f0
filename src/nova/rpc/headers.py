"""The headers of a call between planes: one field that costs little, read only where an alias or a rollout looks at them."""

from collections.abc import Iterator, Mapping

from nova.errors import invalid

MAX_BYTES = 64 << 10
_STAY = frozenset(
    {
        b"authorization",
        b"proxy-authorization",
        b"x-api-key",
        b"connection",
        b"content-length",
        b"content-type",
        b"transfer-encoding",
    }
)
"""Credentials, which stay at the door, and what is about the message and not about its sender."""


def pack(headers: Mapping[bytes, bytes]) -> bytes:
    """Lines of ``name:value``; neither has a line break in it."""
    return b"\n".join([b"%s:%s" % pair for pair in headers.items() if pair[0] not in _STAY])


class PackedHeaders(Mapping[bytes, bytes]):
    """Headers as :func:`pack` wrote them. Raises ``validation_failed`` for more than :data:`MAX_BYTES`."""

    __slots__ = ("_found", "_raw")

    def __init__(self, raw: bytes) -> None:
        if len(raw) > MAX_BYTES:
            raise invalid("headers", f"at most {MAX_BYTES} bytes")
        self._raw = raw
        self._found: dict[bytes, bytes] | None = None

    @property
    def _pairs(self) -> dict[bytes, bytes]:
        if self._found is None:
            lines = (line.partition(b":") for line in self._raw.split(b"\n"))
            self._found = {name: value for name, colon, value in lines if colon}
        return self._found

    def __getitem__(self, name: bytes) -> bytes:
        return self._pairs[name]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)
