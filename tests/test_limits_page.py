"""docs/limits.md: every limit of an instance has a row, and every row a test that attacks it."""

import ast
import re
from pathlib import Path

from nova.api.functions import Limits

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "limits.md").read_text()


def test_every_limit_has_a_row() -> None:
    fields = [*(f"limits.{name}" for name in Limits.model_fields), "memory_mb", "timeout_s"]
    assert [field for field in fields if not re.search(rf"^\|.*`{field}`", PAGE, re.MULTILINE)] == []


def test_every_row_names_a_test_that_is_there() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| limit |")]
    assert len(rows) > 25
    for row in rows:
        proof = re.search(r"\| `([\w/]+\.py)::(\w+)` \|$", row)
        assert proof is not None, row
        tree = ast.parse((ROOT / "tests" / proof[1]).read_text())
        assert proof[2] in {node.name for node in ast.walk(tree) if hasattr(node, "name")}, row
