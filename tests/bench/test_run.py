import io
import itertools
from pathlib import Path

import pytest
from bench.__main__ import app
from bench.driving import Answer, DriveError
from bench.measures import must_be_cold
from bench.model import Report
from bench.plan import GROUPS, MEASURES
from bench.run import Options, benchmark, ratios
from bench.table import show
from rich.console import Console
from typer.testing import CliRunner

from tests.bench.reports import report, row

BESIDE_PLANES = {"planes_latency", "planes_throughput", "two_comets", "restarts", "chaos"}
NO_PLATFORM = GROUPS["wasm"]
BESIDE_ENGINES = GROUPS["backends"]


def test_a_platform_that_does_not_start_is_a_problem_not_a_number(tmp_path: Path) -> None:
    broken = _broken(tmp_path)
    only = [measure for measure in MEASURES if measure not in {*BESIDE_PLANES, *NO_PLATFORM, *BESIDE_ENGINES}]
    found = benchmark(only, Options(quick=True, peers=False, nova=broken), lambda text: None)
    assert found.rows == []
    assert {problem.measure for problem in found.problems} == {
        *("startup", "all", "warm_throughput", "queue", "two_cores", "flows", "trigger_rate"),
        *GROUPS["pool"],
    }
    assert all("no database here" in problem.reason for problem in found.problems)


def test_planes_that_do_not_start_are_a_problem_too(tmp_path: Path) -> None:
    found = benchmark(["restarts"], Options(quick=True, nova=_broken(tmp_path)), lambda text: None)
    assert found.rows == []
    (problem,) = found.problems
    assert problem.measure == "restarts"
    assert "no database here" in problem.reason


def _broken(folder: Path) -> Path:
    """The programs of a platform that ends at once; the path of its ``nova``."""
    for name in ("nova", "comet", "corona", "nebula", "aurora", "zenith"):
        program = folder / name
        program.write_text("#!/bin/sh\necho no database here\nexit 3\n")
        program.chmod(0o755)
    return folder / "nova"


def test_shapes_of_the_platform_are_not_each_others_peers() -> None:
    assert ratios([row(200), row(800, subject="six planes")]) == []


def test_ratios_say_how_many_times_better() -> None:
    slow_peer, fast_peer = row(800, subject="functions-framework"), row(100, subject="workerd")
    found = {ratio.peer: ratio.times_better for ratio in ratios([row(200), slow_peer, fast_peer])}
    assert found == {"functions-framework": 4.0, "workerd": 0.5}


@pytest.mark.parametrize(("value", "word", "missed"), [(399, "pass", 0), (401, "MISS", 1)])
def test_the_table_says_whether_the_promise_is_kept(value: float, word: str, missed: int) -> None:
    text = io.StringIO()
    show(report(row(value)), Console(file=text, width=180))
    assert word in text.getvalue()
    assert "≤ 400" in text.getvalue()
    assert len(report(row(value)).missed()) == missed


def test_a_warm_answer_is_never_counted_as_a_cold_start() -> None:
    warm = Answer([1.0], "http/1.1 200 ok\r\nx-nova-cold-start: false", '{"cold_start":false}')
    with pytest.raises(DriveError, match="not a cold start"):
        must_be_cold("f", warm)
    must_be_cold("f", Answer([1.0], "http/1.1 200 ok\r\nx-nova-cold-start: true", '{"cold_start": true}'))


def test_the_table_tells_what_a_number_cannot() -> None:
    text = io.StringIO()
    failed = row(3).model_copy(update={"note": "comet: refused"})
    show(report(failed), Console(file=text, width=180))
    assert "warm_latency p50: comet: refused" in text.getvalue()


def test_a_group_names_several_measures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def fake(only: list[str], options: Options, say: object) -> Report:
        asked.extend(only)
        return report()

    monkeypatch.setattr("bench.__main__.benchmark", fake)
    monkeypatch.setattr("bench.__main__.RESULTS", tmp_path)
    assert CliRunner().invoke(app, ["--only", "queue", "--only", "async_ack", "--only", "startup"]).exit_code == 0
    assert asked == ["async_ack", "async_rate", "chaos", "startup"]
    assert set(itertools.chain.from_iterable(GROUPS.values())) <= set(MEASURES)


def test_an_unknown_measure_is_refused_by_name() -> None:
    answer = CliRunner().invoke(app, ["--only", "warm_latencies"])
    assert answer.exit_code == 2
    assert "warm_latencies" in answer.output
