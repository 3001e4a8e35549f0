"""The page of faults says what the tests of faults test."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "faults.md").read_text()


def test_every_test_of_faults_has_its_row_and_every_row_its_test() -> None:
    files = [*HERE.glob("test_faults_*.py"), *HERE.glob("test_bad_input_*.py")]
    files.remove(Path(__file__))
    tests = {
        node.name
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert set(re.findall(r"`(test_\w+)` \|$", PAGE, re.MULTILINE)) == tests
    assert set(re.findall(r"`tests/e2e/(\w+\.py)`", PAGE)) == {file.name for file in files}
