"""Messages between daemon and launcher."""

import os

import pytest

from nova.execution.backends.sandbox.protocol import MAX_MESSAGE, message_pair, receive, send


def test_messages_keep_their_bounds_and_descriptors() -> None:
    ours, theirs = message_pair()
    with ours, theirs:
        reader, writer = os.pipe()
        send(ours, {"seq": 1, "op": "a"}, [writer])
        send(ours, {"seq": 2, "text": "x" * 300_000})
        os.close(writer)
        first = receive(theirs)
        assert first is not None
        assert first.body == {"seq": 1, "op": "a"}
        assert not os.get_inheritable(first.fds[0])
        os.write(first.fds[0], b"through")
        assert os.read(reader, 100) == b"through"
        first.close()
        assert os.read(reader, 100) == b"", "closed on both sides"
        os.close(reader)
        second = receive(theirs)
        assert second is not None
        assert len(second.body["text"]) == 300_000
        ours.close()
        assert receive(theirs) is None


def test_a_message_that_is_too_large_is_refused_where_it_is_made() -> None:
    ours, theirs = message_pair()
    with ours, theirs, pytest.raises(ValueError, match="at most"):
        send(ours, {"text": "x" * MAX_MESSAGE})
