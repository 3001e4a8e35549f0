"""What modules want done after a fork, put off from the zygote and the agents to the processes that run user code.

Locks that a fork may leave held are repaired by hooks of ``threading``, ``logging`` and ``concurrent.futures``. A zygote and
an agent have one thread, so there is nothing to repair, and running those hooks copies 0.6 MB of shared memory in each
child. A worker registers them when it comes to fork itself, which few do; what renews something (``random``) runs in it at
once.
"""

import os
from collections.abc import Callable
from typing import Any, Final

_REPAIRS: Final = ("threading", "logging", "concurrent.futures.thread")
"""Modules whose hooks only repair what other threads held."""

_register = os.register_at_fork
_postponed: list[dict[str, Callable[[], Any]]] = []
_renewals: list[Callable[[], Any]] = []


def postpone() -> None:
    """Call before the first import of a module that registers hooks, in the process that agents are forked from."""
    os.register_at_fork = _remember  # type: ignore[assignment]


def _remember(**hooks: Callable[[], Any]) -> None:
    _postponed.append(hooks)
    renew = hooks.get("after_in_child")
    if renew is not None and getattr(renew, "__module__", None) not in (None, *_REPAIRS):
        _renewals.append(renew)


def resume() -> None:
    """Call in a worker that has just been forked, while it has one thread."""
    if os.register_at_fork is not _remember:
        return
    os.register_at_fork = _register
    _register(before=_register_all)
    for renew in _renewals:
        renew()


def _register_all() -> None:
    """Before the first fork of a worker: from now on the interpreter runs them all. It has a list of what to run before this
    fork already, so that is done here."""
    for hooks in _postponed:
        _register(**hooks)
    before = [hooks["before"] for hooks in reversed(_postponed) if "before" in hooks]
    _postponed.clear()
    for hook in before:
        hook()
