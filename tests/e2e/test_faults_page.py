"""The page of faults says what the tests of faults test."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = (ROOT / "docs" / "faults.md").read_text()


def cases_of(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_test_of_faults_has_its_row_and_every_row_its_test() -> None:
    """Every file of faults here is on the page, and so are all tests of a file from here; of others, those about faults."""
    faults = {*HERE.glob("test_faults_*.py"), *HERE.glob("test_bad_input_*.py")} - {Path(__file__)}
    named = {ROOT / path for path in re.findall(r"`(tests/[\w/]+\.py)`", PAGE)}
    rows = re.findall(r"`(test_\w+)` \|$", PAGE, re.MULTILINE)
    known = {file: cases_of(file) for file in named}
    assert faults <= named
    assert set(rows) <= set().union(*known.values())
    assert set().union(*(tests for file, tests in known.items() if file.parent == HERE)) <= set(rows)
    assert all(tests & set(rows) for tests in known.values()), "a file without a row"
