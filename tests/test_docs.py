"""The documentation says what is there: links, commands, tables, promises, examples."""

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.core
import typer.main
from bench.plan import MEASURES
from pydantic import BaseModel
from standardwebhooks import Webhook

from nova.agent import frames
from nova.api import functions
from nova.cli import nova, orbit, planes
from nova.store.listen import Channel
from nova.store.migrate import available
from tests.agent.harness import guest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "SPECIFICATION.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
APPS = {
    "nova": nova.app,
    "orbit": orbit.app,
    "comet": planes.comet_app,
    "corona": planes.corona_app,
    "nebula": planes.nebula_app,
    "aurora": planes.aurora_app,
    "zenith": planes.zenith_app,
}
PROGRAMS = {name: typer.main.get_command(app) for name, app in APPS.items()}
NAMES = "|".join(["make", *APPS])
BIN = r"(?:\.venv|\.)/bin/"
TARGETS = frozenset(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def each(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """What the headings of a page can be linked as."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def prose(text: str) -> str:
    """A page without its code blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """Every command line of ours that a page shows: in blocks, after a prompt or not, and in running text."""
    shown = re.findall(rf"^ {{4}}(?:\$ )?((?:{NAMES}|{BIN}\w+) .*)$", text, re.MULTILINE)
    shown += re.findall(rf"`((?:{NAMES}) [^`]+)`", prose(text))
    for line in shown:
        for part in re.split(r"\s(?:&&|\|)\s", line.replace(r"\|", "|")):
            words = shlex.split(part.split("  #")[0].replace("…", ""), comments=True)
            if words and (program := re.sub(f"^{BIN}", "", words[0])) in ("make", *APPS):
                yield [program, *words[1:]]


def problem(words: list[str]) -> str | None:
    """What is wrong with a command line, as far as names go."""
    program, *rest = words
    if program == "make":
        return next((f"no target {word}" for word in rest if word not in TARGETS and "=" not in word), None)
    command: Any = PROGRAMS[program]
    allowed = {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]}
    known = {"--help", "-h", "--install-completion"} | allowed
    flags = [word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    while isinstance(command, typer.core.TyperGroup):
        name = next((word for word in rest if word in command.commands), None)
        if name is None:
            plain = [word for word in rest if re.fullmatch(r"[a-z]+", word)]
            return f"{command.name} has no command among {plain}" if plain else None
        rest = rest[rest.index(name) + 1 :]
        command = command.commands[name]
        known |= {flag for parameter in command.params for flag in [*parameter.opts, *parameter.secondary_opts]}
    return next((f"{command.name} has no option {flag}" for flag in flags if flag not in known), None)


@each(PAGES)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@each(PAGES)
def test_every_command_exists(page: Path) -> None:
    assert [found for words in commands(page.read_text()) if (found := problem(words))] == []


def test_commands_that_do_not_exist_would_be_noticed() -> None:
    """The check above is one."""
    text = "    $ orbit deploi x\n\n    orbit list --colour\n\n    ./bin/zenith serve --comets x\n\n"
    text += "Say `make runn`, `nova config shw` or `orbit versions list hello`."
    assert [words for words in commands(text) if problem(words) is None] == [["orbit", "versions", "list", "hello"]]
    assert len(list(commands(text))) == 6


def test_tables_made_from_the_code_are_up_to_date() -> None:
    """Otherwise run scripts/tables.py."""
    assert script("tables").outdated() == []


def test_the_page_of_statements_is_up_to_date() -> None:
    """Otherwise run scripts/statements.py."""
    assert (DOCS / "statements.md").read_text() == script("statements").render()


def test_every_promise_names_its_proof() -> None:
    rows = re.findall(
        r"^\|(?! promise |-)[^|]*\|([^|]*)\|([^|]*)\|$", (ROOT / "SPECIFICATION.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 50
    for number, proof in rows:
        assert number.strip()
        if measure := re.match(r" `bench`: `(\w+)`", proof):
            assert measure[1] in MEASURES, proof
            continue
        test = re.fullmatch(r" `([\w/]+\.py)::(\w+)` ", proof)
        assert test is not None, proof
        tree = ast.parse((ROOT / "tests" / test[1]).read_text())
        names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert test[2] in names, proof


def test_every_field_of_a_function_is_described() -> None:
    page = (DOCS / "control.md").read_text()
    nested: dict[str, type[BaseModel]] = {
        "limits": functions.Limits,
        "network_policy": functions.NetworkPolicy,
        "function_url": functions.FunctionUrl,
        "capture": functions.Capture,
    }
    for name in functions.FunctionCreate.model_fields:
        for field in [f"{name}.{part}" for part in nested[name].model_fields] if name in nested else [name]:
            assert re.search(rf"^\| [^|]*`{field}`", page, re.MULTILINE), field


def test_every_table_and_channel_is_described() -> None:
    page = (DOCS / "store.md").read_text()
    sql = "\n".join(migration.sql for migration in available())
    tables = set(re.findall(r"^CREATE TABLE (\w+)", sql, re.MULTILINE)) - {"invocation_logs_default"}
    assert {name for name in [*tables, *Channel] if f"`{name}`" not in page} == set()


def test_every_frame_is_described() -> None:
    page = (DOCS / "agent.md").read_text()
    bounds = {"PROTOCOL", "MIN_MESSAGE", "MAX_MESSAGE", "MAX_HEAD"}
    types = {value for name, value in vars(frames).items() if isinstance(value, int) and name not in bounds}
    assert types
    assert {number for number in types if not re.search(rf"^\| {number} \|", page, re.MULTILINE)} == set()


def test_the_receiver_of_the_page_takes_what_is_signed_and_nothing_else() -> None:
    found = re.search(r"```python\n(.*?)```", (DOCS / "async.md").read_text(), re.DOTALL)
    assert found is not None
    page: dict[str, Any] = {}
    exec(found[1], page)
    secret, now, body = f"whsec_{'c2VjcmV0' * 4}", datetime.now(UTC), '{"type": "nova.async.failed"}'

    def verified(sent_at: datetime, body: str, other: str | None = None) -> bool:
        headers = {
            "webhook-id": "event",
            "webhook-timestamp": str(int(sent_at.timestamp())),
            "webhook-signature": Webhook(other or secret).sign("event", sent_at, '{"type": "nova.async.failed"}'),
        }
        answer: bool = page["verified"](secret, headers, body.encode())
        return answer

    assert verified(now, body)
    assert not verified(now, body.replace("failed", "succeeded"))
    assert not verified(now, body, other=f"whsec_{'b3RoZXIh' * 4}")
    assert not verified(now - timedelta(hours=1), body)


@pytest.mark.anyio
async def test_the_custom_worker_of_the_page_works(tmp_path: Path) -> None:
    found = re.search(r"```bash\n(.*?)```", (DOCS / "agent.md").read_text(), re.DOTALL)
    assert found is not None
    async with guest("custom", {"bootstrap": found[1]}, tmp_path) as instance:
        await instance.init()
        first = await instance.call({"a": 'b, "context": {'})
        second = await instance.call(2)
    assert json.loads(first.output or b"") == {"you_sent": {"a": 'b, "context": {'}, "call": 1}
    assert json.loads(second.output or b"") == {"you_sent": 2, "call": 2}
    assert second.stdout == "input has 1 characters\n"
