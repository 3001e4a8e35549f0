"""Waiting for the host without being woken for nothing.

Whoever sleeps in ``read`` of a unix socket is woken whenever the other end takes in what was written to it: the news that
there is room again goes to everybody who sleeps on the socket. For each answer that cost the host a wake-up of another
processor, and the worker a turn. Who sleeps in ``poll`` is woken by what he polls for.
"""

import select
from collections.abc import Callable


def until_readable(descriptor: int) -> Callable[[], object]:
    """What waits until there is something to read on ``descriptor``, or its other end is closed."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return poll.poll
