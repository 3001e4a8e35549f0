"""Collect the statements that tests prove (``"AG6: prints never reach the result."``) into docs/statements.md.

`scripts/statements.py --check` fails when the page is not what the tests say.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "statements.md"
_IDS = re.compile(r"((?:[A-Z]{2}\d{1,2})(?:, ?[A-Z]{2}\d{1,2})*)(?:: *(.*)|\.?)")
_AREAS = {
    "AG": "Agent and workers",
    "EX": "Executor and guards",
    "PO": "Pool",
    "BE": "Backends",
    "BU": "Builds",
    "ST": "State",
    "DB": "Store, cache, configuration",
    "GW": "Gateway",
    "EV": "Work",
    "OB": "Observability",
    "ID": "Identity",
    "SE": "Secrets and audit",
    "AP": "Versions, API, clients",
}


def collect() -> dict[str, list[tuple[str, str]]]:
    """Statement id → (sentence, test). A test that names ids and nothing more is called what it says."""
    found: dict[str, list[tuple[str, str]]] = {}
    for file in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (doc := ast.get_docstring(node)):
                match = _IDS.fullmatch(" ".join(doc.split("\n\n")[0].split()))
                if match is None:
                    continue
                sentence = match[2] or node.name.removeprefix("test_").replace("_", " ") + "."
                for number in re.split(", ?", match[1]):
                    found.setdefault(number, []).append((sentence, f"{file.relative_to(ROOT)}::{node.name}"))
    return found


def render() -> str:
    found = collect()
    lines = ["# Statements", "", "What the tests prove about the running system. Made by `scripts/statements.py`.", ""]
    for area, title in _AREAS.items():
        ids = sorted((i for i in found if i.startswith(area)), key=lambda i: int(i[2:]))
        if not ids:
            continue
        lines += [f"## {title}", "", "| | statement | test |", "|---|---|---|"]
        for number in ids:
            for sentence, test in found[number]:
                lines.append(f"| {number} | {sentence.replace('|', '/')} | `{test}` |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    text = render()
    if "--check" in sys.argv:
        if PAGE.read_text() != text:
            sys.exit("docs/statements.md is out of date: run scripts/statements.py")
    else:
        PAGE.write_text(text)
