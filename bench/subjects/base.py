"""The one interface of all subjects: set up once, start many times, say where to call."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bench.driving import Target
from bench.processes import Server

Say = Callable[[str], None]
"""Tells the progress line what is going on."""


class SetupFailed(Exception):
    """A subject cannot be measured on this machine; the message says why."""


class Peer(Protocol):
    name: str

    def set_up(self, cache: Path, say: Say) -> str:
        """Install into ``cache`` unless it is there; returns version and way of serving. Raises SetupFailed."""
        ...

    def start(self, folder: Path) -> Server:
        """Launch on a free port, with its files in ``folder``; does not wait."""
        ...

    def target(self, server: Server) -> Target:
        """The warm call: the same JSON in and the same JSON out for every subject."""
        ...
