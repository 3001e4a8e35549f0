"""Lines and prints as bytes come in."""

import random

from nova.agent.lines import LineReader, PrintBuffer


def test_lines_come_out_whole_however_the_bytes_are_cut() -> None:
    random.seed(3)
    lines = [random.randbytes(random.randint(0, 50)).replace(b"\n", b"") for _ in range(100)]
    stream = b"".join(line + b"\n" for line in lines)
    for _ in range(30):
        reader, found, rest = LineReader(), [], stream
        while rest:
            cut = random.randint(1, 120)
            found += reader.feed(rest[:cut])
            rest = rest[cut:]
        assert found == lines


def test_a_line_above_the_limit_is_skipped_and_the_next_one_is_read() -> None:
    reader = LineReader(limit=10)
    assert reader.feed(b"x" * 8) == []
    assert reader.feed(b"x" * 8) == []
    assert reader.feed(b"x" * 1000) == []
    assert reader.feed(b"x\nshort\n") == [None, b"short"]
    assert reader.feed(b"0123456789\n") == [b"0123456789"]
    assert reader.feed(b"0123456789a\n") == [None]
    assert reader.feed(b"\n") == [b""]


def test_prints_are_cut_at_a_character_with_a_marker_that_counts() -> None:
    prints = PrintBuffer(limit=10)
    prints.add("123456789é".encode())
    prints.add(b"more")
    assert prints.take() == "123456789\n[… 6 bytes cut]\n"
    assert prints.take() == ""


def test_prints_under_the_limit_are_kept_as_they_are() -> None:
    prints = PrintBuffer(limit=10)
    prints.add(b"a\n")
    prints.add("é\n".encode())
    assert prints.take() == "a\né\n"


def test_prints_that_are_not_text_become_text() -> None:
    prints = PrintBuffer()
    prints.add(b"\xff\x00ok")
    assert prints.take() == "\ufffd\ufffdok"


def test_prints_hold_no_more_than_their_limit() -> None:
    prints = PrintBuffer(limit=100)
    for _ in range(1000):
        prints.add(b"x" * 1000)
    text = prints.take()
    assert text == "x" * 100 + "\n[… 999900 bytes cut]\n"
