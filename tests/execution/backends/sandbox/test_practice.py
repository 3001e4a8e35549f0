"""What is learned from the launcher's practice instance."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import nova

PRACTICE = """
import sys
sys.path.insert(0, sys.argv[1])
from nova.agent import at_fork
at_fork.postpone()
from nova.agent import preload
from nova.execution.backends.sandbox import practice
from nova.runtimes.python import bootstrap
preload.warm_up([bootstrap.__name__])
practice.practise(bootstrap.__name__)
learned = bootstrap._have.__self__
print(sum(learned.used[1::2]) >> 10, sum(learned.written[1::2]) >> 10)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user may not look into an agent")
def test_a_practice_instance_shows_what_workers_touch() -> None:
    """Some of it is had beforehand, and far from all that the zygote has."""
    source = str(Path(nova.__file__).parent.parent)
    command = [sys.executable, "-I", "-S", "-c", PRACTICE, source]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    used, written = map(int, told.split())
    assert used > 500
    assert 200 < written < 2000


KEPT = """
import sys
sys.path.insert(0, sys.argv[1])
from nova.agent import pages, preload
from nova.runtimes.python import sealed
preload.warm_up(["nova.runtimes.python.bootstrap"])
written = pages.of_fork(lambda: sealed._rehearse({"env": {"A": "1"}, "code_dir": "/"})).written
print(sum(written[1::2]) >> 10)
"""


def test_a_loaded_function_knows_what_its_instances_will_write_to() -> None:
    """Also without privileges: it looks into a fork of its own."""
    source = str(Path(nova.__file__).parent.parent)
    command = [sys.executable, "-I", "-S", "-c", KEPT, source]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert 200 < int(told) < 8000


PREPARED = """
import sys
sys.path.insert(0, sys.argv[1])
from nova.agent import preload
preload.warm_up(["nova.runtimes.python.bootstrap"])
print([path for path in sys.path if not path.startswith("/usr/lib/python")], [name for name in sys.modules if "nova" in name])
"""


def test_what_agents_are_forked_from_finds_no_code_of_a_function_and_a_function_none_of_the_platform() -> None:
    """AG23: a module of the standard library that an agent imports late is not the function's of that name."""
    source = str(Path(nova.__file__).parent.parent)
    command = [sys.executable, "-I", "-S", "-c", PREPARED, source]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert told == "[] []\n"
