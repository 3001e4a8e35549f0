"""What the suite shares, and what it found: one JSON file per backend and capability."""

import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from nova.execution.backends.base import Capabilities
from tests.backends.cases import Case, cases
from tests.backends.harness import Function, Maker

RESULTS = Path(os.environ.get("CONFORMANCE_RESULTS", Path(__file__).parents[2] / "build" / "conformance"))
"""Where ``scripts/backends_table.py`` looks."""


@pytest.fixture(scope="module", params=cases(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    if reason := found.missing():
        note(found.name, "available", "not here", reason)
        pytest.skip(f"{found.name}: {reason}")
    return found


@pytest.fixture(scope="module")
def node() -> str:
    return f"conf-{uuid.uuid4().hex[:6]}"


@pytest.fixture(scope="module")
async def maker(
    anyio_backend: str, case: Case, node: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Maker]:
    folder = tmp_path_factory.mktemp(case.name)
    async with case.backend(folder, node) as backend:
        yield Maker(case, backend, folder)


@pytest.fixture(scope="module")
async def capabilities(maker: Maker) -> Capabilities:
    found = await maker.backend.capabilities()
    assert found.available, found.reason
    note(maker.case.name, "enforces", "passed", json.dumps(dict(found.enforces)))
    return found


@pytest.fixture(scope="module")
async def standing(maker: Maker) -> AsyncIterator[Function]:
    """One instance that tests use which do it no harm."""
    function = await maker.load(env={"GREETING": "hello"})
    yield function
    await function.stop()


def note(backend: str, capability: str, result: str, detail: str = "") -> None:
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"backend": backend, "capability": capability, "result": result, "detail": detail})
    (RESULTS / f"{backend}.{capability.replace(' ', '-')}.json").write_text(text)


@pytest.fixture
def found(request: pytest.FixtureRequest, case: Case) -> Iterator[Callable[[str, str], None]]:
    """What a test says of its capability beside that it passed: ``refused`` and why, or measured words."""
    marker = request.node.get_closest_marker("capability")
    said: list[tuple[str, str]] = []
    yield lambda result, detail: said.append((result, detail))
    report: Any = request.node.stash.get(_REPORT, None)
    result, detail = said[-1] if said else ("passed", "")
    if report is None or report.skipped:
        result, detail = "not tried", ""
    elif report.failed:
        result = "failed"
    note(case.name, marker.args[0], result, detail)


_REPORT = pytest.StashKey[pytest.TestReport]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[_REPORT] = report
        for side in item.iter_markers("host_side"):
            backend, capability, result = (*side.args, "passed")[:3]
            note(
                backend,
                capability,
                result if report.passed else "failed",
                "" if result == "refused" else "the host's side",
            )
    marker = item.get_closest_marker("capability")
    if report.when == "setup" and report.failed and marker is not None and isinstance(item, pytest.Function):
        note(item.callspec.params["case"].name, marker.args[0], "failed")
    return report
