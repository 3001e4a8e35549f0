"""What the conformance suite found (``tests/backends``), as the tables of ``docs/backends.md``.

    python -m pytest tests/backends/test_conformance.py && python scripts/backends_table.py

The last result of each backend is kept in ``docs/backends.json``, so a host that cannot run one of them does not empty its
column. Times are left out: they belong to the benchmarks.
"""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "backends.md"
KEPT = ROOT / "docs" / "backends.json"
RESULTS = Path(os.environ.get("CONFORMANCE_RESULTS", ROOT / "build" / "conformance"))
BACKENDS = ("firecracker", "qemu", "sandbox", "docker", "wasm")
CAPABILITIES = (
    ("invoke", "calls, prints, errors, environment"),
    ("stream", "answers piece by piece, held back by a slow reader"),
    ("bad code", "code that does not load is told"),
    ("reload", "new code in a running instance"),
    ("snapshot", "instances of a function that was loaded before"),
    ("template", "instances that stood ready before their function was known"),
    ("memory", "memory limit"),
    ("pids", "limit of processes"),
    ("disk", "limit of `/tmp`"),
    ("endless loop", "a call that does not end is ended"),
    ("network", "network policies"),
    ("layers", "layers, read-only"),
    ("volumes", "volumes"),
    ("crash", "a crash is told and ends nothing else"),
    ("stop", "stopping ends everything, once"),
    ("failed create", "a failed or cancelled create leaves nothing"),
    ("cycles", "create and stop in a row leave nothing"),
    ("killed daemon", "kill -9 of the daemon: the next start leaves nothing"),
)
_PLACE = re.compile(r"(<!-- backends: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
Found = dict[str, dict[str, dict[str, str]]]
"""By backend and capability: ``result`` and ``detail``."""


def collect() -> Found:
    found: Found = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for file in sorted(RESULTS.glob("*.json")):
        one = json.loads(file.read_text())
        if one["capability"] != "available":
            detail = re.sub(r",? ?[\d.]+ ms.*", "", one["detail"])
            found.setdefault(one["backend"], {})[one["capability"]] = {"result": one["result"], "detail": detail}
    return found


def conformance(found: Found, shown: list[str]) -> Iterator[str]:
    rows = [(title, *(_cell(found[name].get(key)) for name in shown)) for key, title in CAPABILITIES]
    return _table(("", *shown), rows)


def _cell(one: dict[str, str] | None) -> str:
    if one is None or one["result"] == "not tried":
        return "–"
    if one["result"] == "failed":
        return "**failed**"
    if one["result"] == "refused":
        return "refused by name"
    word = {"passed": "yes", "no": "no"}[one["result"]]
    return f"{word}: {one['detail']}" if one["detail"] else word


def enforced(found: Found, shown: list[str]) -> Iterator[str]:
    said = {name: json.loads(found[name]["enforces"]["detail"]) for name in shown if "enforces" in found[name]}
    resources = dict.fromkeys(resource for each in said.values() for resource in each)
    return _table(("", *said), [(f"`{key}`", *(each.get(key, "–") for each in said.values())) for key in resources])


def isolation(found: Found, shown: list[str]) -> Iterator[str]:
    tried = {
        name: json.loads(found[name]["isolation"]["detail"])
        for name in shown
        if found[name].get("isolation", {}).get("result") == "passed"
    }
    attacks = dict.fromkeys(attack for each in tried.values() for attack in each)
    return _table(("tried", *tried), [(key, *(each.get(key, "–") for each in tried.values())) for key in attacks])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


TABLES = {"conformance": conformance, "enforced": enforced, "isolation": isolation}


def main() -> int:
    found = collect()
    KEPT.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    shown = [name for name in BACKENDS if name in found]

    def table(place: re.Match[str]) -> str:
        return f"{place[1]}{chr(10).join(TABLES[place[2]](found, shown))}\n{place[3]}"

    PAGE.write_text(_PLACE.sub(table, PAGE.read_text()))
    failed = [f"{name}: {key}" for name in shown for key, one in found[name].items() if one["result"] == "failed"]
    print(f"{len(shown)} backends; failed: {', '.join(failed) or 'nothing'}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
