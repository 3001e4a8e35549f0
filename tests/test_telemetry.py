"""Operational logs, as a process of its own writes them."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import logging, sys, structlog
from nova.telemetry import configure_logging
configure_logging("warning", sys.argv[1])
logging.getLogger("some.library").warning("it %s", "broke")
logging.getLogger("some.library").info("chatter")
structlog.get_logger("nova.part").warning("ours", token="t0p", count=2)
structlog.get_logger("nova.part").info("chatter")
try:
    secret_local = "hidden"
    raise ValueError("bad")
except ValueError:
    logging.getLogger("some.library").exception("it raised")
"""


def lines(fmt: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", PROGRAM, fmt], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_per_line_also_from_libraries() -> None:
    theirs, ours, raised = map(json.loads, lines("json"))
    assert (theirs["msg"], theirs["level"], theirs["plane"]) == ("it broke", "warning", "nova")
    assert (ours["msg"], ours["token"], ours["count"]) == ("ours", "***", 2)
    assert raised["exception"][0]["exc_type"] == "ValueError"
    assert "hidden" not in json.dumps(raised)


@pytest.mark.parametrize("fmt", ["text", "json"])
def test_levels_hold_for_libraries_too(fmt: str) -> None:
    text = "\n".join(lines(fmt))
    assert "it broke" in text
    assert "ours" in text
    assert "chatter" not in text
    assert "Logging error" not in text
