"""A fresh process for each call: forks of a loaded function that copy as little of its memory as they can."""

import ctypes
import os
import random
import sys
from collections.abc import Callable
from typing import Any, Final

_REPAIRS: Final = ("threading", "logging", "concurrent.futures.thread")
"""Modules whose hooks repair what other threads held when the process forked."""
_fork: Final = ctypes.PyDLL(None, use_errno=True).fork


class Forks:
    """Forks without the interpreter's own hooks, where that is safe: half of what a call costs is pages that they touch.

    They repair what another thread may have held. So a process with one thread has no use for them, and one that has
    started others while it loaded forks in the usual way. What the function's code registers runs in either case, and each
    fork has a ``random`` of its own. Forks that the code itself makes are not touched.
    """

    def __init__(self) -> None:
        self._hooks: list[dict[str, Callable[[], Any]]] = []
        self._register = os.register_at_fork
        self._watching = False
        self._quick = False

    def watch(self) -> None:
        """The code is going to be loaded: remember what it registers."""
        self._watching = True
        self._register = os.register_at_fork
        os.register_at_fork = self._remember  # type: ignore[assignment]

    def _remember(self, **hooks: Callable[[], Any]) -> None:
        self._register(**hooks)
        if all(getattr(hook, "__module__", None) not in _REPAIRS for hook in hooks.values()):
            self._hooks.append(hooks)

    def settle(self) -> None:
        """The code is loaded."""
        os.register_at_fork = self._register
        self._quick = self._watching and len(os.listdir("/proc/self/task")) == 1

    def fork(self) -> int:
        """As ``os.fork``; what the function registered runs before and after it."""
        if not self._quick:
            return os.fork()
        self._run("before", reverse=True)
        random.seed()  # here, where its pages are at hand
        pid: int = _fork()
        if pid == 0:
            self._run("after_in_child")
        elif pid > 0:
            self._run("after_in_parent")
        else:
            raise OSError(ctypes.get_errno(), "fork")
        return pid

    def _run(self, when: str, *, reverse: bool = False) -> None:
        for hooks in reversed(self._hooks) if reverse else self._hooks:
            if (hook := hooks.get(when)) is not None:
                try:
                    hook()
                except Exception:  # as the interpreter does: told, and no more
                    sys.excepthook(*sys.exc_info())


FORKS: Final = Forks()
"""Those of this process: there is one function in it."""
