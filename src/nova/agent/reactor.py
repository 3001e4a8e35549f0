"""Who is called when a descriptor is ready, and a poll loop that does so, for the first process of an instance."""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import Protocol

_POLL_READ = select.POLLIN
_POLL_WRITE = select.POLLOUT


class Reactor(Protocol):
    """Calls back while a descriptor is ready; None ends that. Idempotent."""

    def on_readable(self, fd: int, call: Callable[[], None] | None) -> None: ...

    def on_writable(self, fd: int, call: Callable[[], None] | None) -> None: ...


class PollReactor:
    """Implements :class:`Reactor`. A descriptor is asked about only while somebody waits for it."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}

    def on_readable(self, fd: int, call: Callable[[], None] | None) -> None:
        self._set(self._readers, fd, call)

    def on_writable(self, fd: int, call: Callable[[], None] | None) -> None:
        self._set(self._writers, fd, call)

    def _set(self, table: dict[int, Callable[[], None]], fd: int, call: Callable[[], None] | None) -> None:
        if call is not None:
            table[fd] = call
        elif table.pop(fd, None) is None:
            return
        events = (_POLL_READ if fd in self._readers else 0) | (_POLL_WRITE if fd in self._writers else 0)
        if events:
            self._poll.register(fd, events)
        else:
            self._poll.unregister(fd)

    def turn(self, until: float | None) -> None:
        """Wait for something, at most until a moment in monotonic seconds, and have it handled."""
        timeout_ms = None if until is None else max(0, int((until - time.monotonic()) * 1000) + 1)
        for fd, events in self._poll.poll(timeout_ms):
            if events & ~_POLL_READ and (writer := self._writers.get(fd)) is not None:
                writer()
            if events & ~_POLL_WRITE and (reader := self._readers.get(fd)) is not None:
                reader()


def watch_signals(reactor: PollReactor, numbers: Iterable[signal.Signals], heard: Callable[[set[int]], None]) -> None:
    """Have ``heard`` told which signals came, in a turn of the loop instead of in between."""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in numbers:
        signal.signal(number, _nothing)
    reactor.on_readable(read, lambda: heard(set(os.read(read, 512))))


def _nothing(_number: int, _frame: object) -> None:
    """A handler of Python's must exist for the wake-up descriptor to be written."""
