"""Frames: layout, limits, and what a hostile peer can send."""

import json
import random

import pytest

from nova.agent import frames
from nova.agent.frames import MAX_MESSAGE, FrameDecoder, FrameError, decode, encode


def test_a_frame_is_one_json_object_in_the_fixed_order() -> None:
    data = encode(frames.INIT, 17, {"a": 1}, b'{"b": 2}')
    assert data[4:] == b'{"type":1,"id":17,"size":8,"head":{"a":1},"payload":{"b": 2}}'
    assert int.from_bytes(data[:4], "big") == len(data) - 4
    assert json.loads(data[4:])["payload"] == {"b": 2}


def test_a_frame_without_payload_has_no_such_member() -> None:
    assert encode(frames.PING, 19, {})[4:] == b'{"type":4,"id":19,"size":0,"head":{}}'


def test_payloads_pass_through_undecoded() -> None:
    payload = b'{"text": ",\\"payload\\":}", "n": 12345678901234567890123}'
    frame = decode(encode(frames.RESP, 3, {"x": "é"}, payload)[4:])
    assert (frame.type, frame.id, frame.head, frame.payload) == (frames.RESP, 3, {"x": "é"}, payload)


def test_any_split_of_the_stream_gives_the_same_frames() -> None:
    stream = b"".join(encode(frames.PING, n, {"n": n}, b"[1]" * (n % 2)) for n in range(1, 20))
    random.seed(1)
    for _ in range(50):
        decoder, found, rest = FrameDecoder(), [], stream
        while rest:
            cut = random.randint(1, 40)
            found += decoder.feed(rest[:cut])
            rest = rest[cut:]
        assert [frame.id for frame in found] == list(range(1, 20))
        assert not decoder.partial


def test_nothing_oversize_is_sent() -> None:
    with pytest.raises(FrameError, match="too large"):
        encode(frames.RESP, 1, {}, b"1" * MAX_MESSAGE)
    with pytest.raises(FrameError, match="too large"):
        encode(frames.RESP, 1, {"a": "x" * (300 << 10)})


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b'{"id":1,"type":4,"size":0,"head":{}}',
        b'{"type":4, "id":1,"size":0,"head":{}}',
        b'{"type":04,"id":1,"size":0,"head":{}}',
        b'{"type":-4,"id":1,"size":0,"head":{}}',
        b'{"type":4,"id":1,"size":0,"head":[]}',
        b'{"type":4,"id":1,"size":0,"head":{}',
        b'{"type":4,"id":1,"size":5,"head":{}}',
        b'{"type":4,"id":1,"size":9999999,"head":{},"payload":1}',
        b'{"type":4,"id":1,"size":0,"head":{},"payload":1}',
        b'{"type":4,"id":1,"size":2,"head":{},"payload":1}',
        b'{"type":4,"id":1,"size":0,"head":' + b"[" * 100_000 + b"}",
        b'{"type":4,"id":1,"size":0,"head":{"a":"' + b"x" * (257 << 10) + b'"}}',
    ],
)
def test_a_wrong_layout_is_refused(body: bytes) -> None:
    with pytest.raises(FrameError):
        decode(body)


@pytest.mark.parametrize("length", [0, 1, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_impossible_lengths_are_refused_before_anything_is_read(length: int) -> None:
    with pytest.raises(FrameError, match="not acceptable"):
        FrameDecoder().feed(length.to_bytes(4, "big"))


def test_random_bytes_end_in_a_frame_error_or_in_waiting() -> None:
    """AG17: random and mutated bytes never raise anything else."""
    random.seed(7)
    good = encode(frames.INIT, 5, {"a": [1, 2], "b": "x"}, b'{"c": 3}')
    for _ in range(3000):
        if random.random() < 0.5:
            data = random.randbytes(random.randint(1, 200))
        else:
            mutated = bytearray(good)
            for _ in range(random.randint(1, 4)):
                mutated[random.randrange(len(mutated))] = random.randrange(256)
            data = bytes(mutated[: random.randint(1, len(mutated))])
        try:
            FrameDecoder().feed(data)
        except FrameError:
            continue
