"""Runs the first process of a container in this process, without the container: ``boot_child.py <src> <description> <code>``."""

import dataclasses
import sys
from typing import Any

source, description, code_dir = sys.argv[1:]
sys.path.insert(0, source)

from nova.agent import boot  # noqa: E402
from nova.agent.entry import Entry  # noqa: E402

_config = Entry.config


def _elsewhere(self: Entry, *args: Any, **options: Any) -> Any:
    """What a container has at ``/code`` is somewhere else here, and the guest API's port is anybody's."""
    return dataclasses.replace(_config(self, *args, **options), code_dir=code_dir, guest_port=0)


Entry.config = _elsewhere  # type: ignore[method-assign]
boot.main(description)
