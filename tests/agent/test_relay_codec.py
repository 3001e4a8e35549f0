"""Packets between relays: cut anywhere, refused when they cannot be."""

import random

import pytest

from nova.agent.relay_codec import (
    CREDIT,
    DATA,
    END,
    MAX_DATA,
    OPEN,
    PREAMBLE,
    SOCKET,
    STOP,
    Packet,
    PacketDecoder,
    PacketError,
    PreambleFinder,
    encode,
    encode_credit,
)

PACKETS = [
    Packet(OPEN, 1, SOCKET),
    Packet(DATA, 0, b"\0" * MAX_DATA),
    Packet(DATA, 1, PREAMBLE),
    Packet(END, 1),
    Packet(STOP, 1),
]


def test_packets_arrive_whole_however_the_stream_is_cut() -> None:
    data = b"".join(encode(one.kind, one.stream, one.data) for one in PACKETS) + encode_credit(7, 65536)
    random.seed(3)
    for _ in range(20):
        decoder, found, at = PacketDecoder(), list[Packet](), 0
        while at < len(data):
            size = random.choice((1, 3, 9, 100, 70000))
            found += decoder.feed(data[at : at + size])
            at += size
        assert found[:-1] == PACKETS
        assert (found[-1].kind, found[-1].stream, found[-1].credit) == (CREDIT, 7, 65536)


@pytest.mark.parametrize(
    "data",
    [
        encode(0, 1, b""),
        encode(6, 1, b"x"),
        encode(DATA, 1, b""),
        encode(DATA, 1, b"x" * (MAX_DATA + 1)),
        encode(OPEN, 1, b""),
        encode(END, 1, b"x"),
        encode(CREDIT, 1, b"xxx"),
        b"\x01\0\0\0\0\xff\xff\xff\xff",
    ],
)
def test_a_packet_that_cannot_be_is_refused_before_its_bytes_are_awaited(data: bytes) -> None:
    with pytest.raises(PacketError):
        PacketDecoder().feed(data[:9])


def test_random_bytes_are_packets_or_refused() -> None:
    """AG17."""
    random.seed(11)
    for _ in range(200):
        decoder = PacketDecoder()
        try:
            for _ in range(10):
                decoder.feed(random.randbytes(random.randint(1, 300)))
        except PacketError:
            continue


@pytest.mark.parametrize("skip", [0, 100])
@pytest.mark.parametrize("step", [1, 5, 16, 1000])
def test_the_preamble_is_found_and_what_follows_it_kept(skip: int, step: int) -> None:
    data = b"old bytes nova-relay-1\r"[:skip] + PREAMBLE + b"rest"
    finder, rest, at = PreambleFinder(skip), None, 0
    while rest is None:
        rest = finder.feed(data[at : at + step])
        at += step
    assert rest + data[at:] == b"rest"


@pytest.mark.parametrize(("skip", "data"), [(0, b"GET / HTTP/1.1\r\n"), (0, b"x" + PREAMBLE), (20, b"y" * 60)])
def test_who_begins_with_anything_else_is_refused(skip: int, data: bytes) -> None:
    with pytest.raises(PacketError):
        PreambleFinder(skip).feed(data)
