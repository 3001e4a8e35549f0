"""HTTP inside an instance, as bytes: whole requests whatever the pieces, and refusals instead of guesses."""

import random

import pytest

from nova.agent.guest_http import MAX_BODY, BadRequest, Request, RequestReader, answer

POST = b"POST /v1/invoke/a%20b?x=1&y=%C3%BC HTTP/1.1\r\nHost: h\r\nX-A:  b \r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"PUT /k HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


def read(*pieces: bytes) -> list[Request]:
    reader, found = RequestReader(), []
    for piece in pieces:
        reader.feed(piece)
        while (request := reader.next()) is not None:
            found.append(request)
    return found


def test_requests_are_cut_out_of_any_pieces() -> None:
    data = POST + CHUNKED + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
    whole = read(data)
    assert [(r.method, r.path, r.body, r.keep_alive) for r in whole] == [
        ("POST", "/v1/invoke/a b", b"hello", True),
        ("PUT", "/k", b"abcde", True),
        ("GET", "/", b"", False),
    ]
    assert (whole[0].query, whole[0].headers["x-a"]) == ({"x": "1", "y": "ü"}, "b")
    rng = random.Random(4)
    for _ in range(50):
        cuts = sorted(rng.sample(range(1, len(data)), 12))
        assert read(*(data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True))) == whole


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", 400),
        (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nHost: h\n\n\r\n\r\n", 400),
        (b"GET /%ff HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"x" * 300, 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", 400),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY + 1), 413),
        (b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000, 431),
    ],
)
def test_what_is_not_clear_is_refused(data: bytes, status: int) -> None:
    with pytest.raises(BadRequest) as refused:
        read(data)
    assert refused.value.status == status


def test_random_bytes_are_refused_or_waited_for() -> None:
    rng, statuses = random.Random(7), set()
    for _ in range(300):
        data = bytearray(POST + CHUNKED)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            read(bytes(data))
        except BadRequest as refused:
            statuses.add(refused.status)
    assert statuses <= {400, 413, 431}


def test_an_answer_is_one_header_per_line() -> None:
    data = answer(404, {"X": "a\r\nSet: b"}, b"{}", keep_alive=False)
    assert data == b"HTTP/1.1 404 Not Found\r\nX: a  Set: b\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    assert answer(204, {}, b"", keep_alive=True) == b"HTTP/1.1 204 No Content\r\n\r\n"
