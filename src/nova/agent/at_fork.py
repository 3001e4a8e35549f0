"""What modules want done after a fork, put off from the zygote and the agents to the processes that run user code.

Locks that a fork may leave held are repaired by hooks of ``threading``, ``logging`` and ``concurrent.futures``. A zygote and
an agent have one thread, so there is nothing to repair, and running those hooks copies 0.6 MB of shared memory in each
child. A worker registers them for the forks of its own; what renews something (``random``) also runs in it at once.
"""

import os
from collections.abc import Callable
from typing import Any, Final

_REPAIRS: Final = ("threading", "logging", "concurrent.futures.thread")
"""Modules whose hooks only repair what other threads held."""

_register = os.register_at_fork
_postponed: list[dict[str, Callable[[], Any]]] = []


def postpone() -> None:
    """Call before the first import of a module that registers hooks, in the process that agents are forked from."""
    os.register_at_fork = _remember  # type: ignore[assignment]


def _remember(**hooks: Callable[[], Any]) -> None:
    _postponed.append(hooks)


def resume() -> None:
    """Call in a worker that has just been forked, while it has one thread."""
    if os.register_at_fork is not _remember:
        return
    os.register_at_fork = _register
    for hooks in _postponed:
        _register(**hooks)
        renew = hooks.get("after_in_child")
        if renew is not None and getattr(renew, "__module__", None) not in _REPAIRS:
            renew()
