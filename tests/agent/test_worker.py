"""What a worker may write on its line descriptor."""

import json
import random

import pytest

from nova.agent.messages import GuestError
from nova.agent.worker import (
    Ask,
    Chunk,
    Ending,
    Garbage,
    Log,
    Ready,
    Result,
    TooLong,
    WorkerSession,
    call_line,
    error_line,
    output_line,
    parse,
    split_call,
    told_line,
)


@pytest.mark.parametrize(
    ("line", "output"),
    [
        (b'{"output": {"a": 1}}', b'{"a": 1}'),
        (b'{"output":1}', b"1"),
        (b' { "output" : "x" } ', b'"x" '),
        (b'{"output": {"output": 2}}', b'{"output": 2}'),
    ],
)
def test_an_output_is_cut_out_and_not_decoded(line: bytes, output: bytes) -> None:
    assert parse(line) == Result(None, output, None)


def test_a_tagged_output_names_its_call() -> None:
    assert parse(b'{"request_id": "0199-ab", "output": [1]}') == Result("0199-ab", b"[1]", None)


def test_a_question_is_cut_out_and_not_decoded() -> None:
    assert parse(b'{"ask": {"number": 1, "output": [2]}}') == Ask(b'{"number": 1, "output": [2]}')
    assert parse(b'{"ask": 1') == Garbage("a worker line is not JSON")
    assert json.loads(told_line(1, 200, b"[2]")) == {"told": 1, "status": 200, "body": [2]}


def test_errors_are_objects_or_bare_strings() -> None:
    line = b'{"error": {"type": "ValueError", "message": "bad", "stack": ["a:1 in f"]}}'
    assert parse(line) == Result(None, None, GuestError("ValueError", "bad", ("a:1 in f",)))
    assert parse(b'{"error": "oops"}') == Result(None, None, GuestError("Error", "oops"))


def test_errors_are_cut_to_their_limits() -> None:
    """AG11: lone surrogates come out escaped, sizes are bounded."""
    error = {"type": "T" * 999, "message": "é" * 9000 + "\ud800", "stack": ["s" * 999] * 200}
    event = parse(json.dumps({"error": error}).encode())
    assert isinstance(event, Result)
    assert event.error is not None
    assert len(event.error.type) == 256
    assert len(event.error.message.encode()) <= 8192
    assert len(event.error.stack) == 64
    assert len(event.error.stack[0]) == 512
    short = parse(b'{"error": {"type": "E", "message": "a\\ud800b \\"q\\" \\u0000"}}')
    assert isinstance(short, Result)
    assert short.error == GuestError("E", 'a\\ud800b "q" \0')


def test_other_lines() -> None:
    assert parse(b'{"ready": {"concurrency": 5, "multiplex": true}}') == Ready(5, True)
    assert parse(b'{"log": {"request_id": "r", "stream": "stderr", "text": "x"}}') == Log("r", "stderr", "x")
    assert parse(b'{"ending": true}') == Ending()
    for line in (b"", b"hello", b"[]", b'{"other": 1}', b'{"ready": {"concurrency": 0}}', b'{"output": 1', b"\xff"):
        assert isinstance(parse(line), Garbage), line


def test_a_call_line_can_be_split_again_whatever_the_payload_says() -> None:
    payload = b'{"x": ", \\"context\\": {", "context": {"a": 1}}'
    context = b'{"request_id": "r", "tracestate": "\\", \\"context\\": "}'
    assert split_call(call_line(payload, context)) == (payload, context)


def test_answers_of_runners_are_single_lines() -> None:
    assert output_line(b'{\r\n"a": 1}') == b'{"output": {  "a": 1}}\n'
    assert error_line(GuestError("E", "a\nb")).count(b"\n") == 1


def test_a_line_that_is_too_long_is_an_event() -> None:
    session = WorkerSession()
    assert session.feed(b"x" * (9 << 20)) == []
    assert session.feed(b'\n{"output": 1}\n') == [TooLong(), Result(None, b"1", None)]


def test_random_lines_never_raise() -> None:
    """AG17: whatever a worker writes becomes an event."""
    random.seed(11)
    good = [
        b'{"output": {"a": 1}}',
        b'{"request_id": "a", "output": 1}',
        b'{"error": {"type": 1, "message": 2, "stack": 3}}',
    ]
    for _ in range(3000):
        line = bytearray(random.choice(good))
        for _ in range(random.randint(0, 5)):
            line[random.randrange(len(line))] = random.randrange(256)
        parse(bytes(line).replace(b"\n", b""))


def test_pieces_keep_their_bytes() -> None:
    """As bootstraps write them, and as any program may; what is no piece is named."""
    assert parse(b'{"chunk": {"enc": "text", "data": "a}}"}}') == Chunk(None, "text", b'"a}}"')
    assert parse(b'{"request_id": "r-1", "chunk": {"enc": "json", "data": {"a": 1}}}') == Chunk(
        "r-1", "json", b'{"a": 1}'
    )
    assert parse(b' {"chunk":{"data":"YQ==","enc":"b64"},"request_id":"r"}') == Chunk("r", "b64", b'"YQ=="')
    for wrong in (b'{"chunk": {"enc": "xml", "data": ""}}', b'{"chunk": {"enc": "text"}}'):
        assert parse(wrong) == Garbage("a chunk has enc (text, json or b64) and data")
