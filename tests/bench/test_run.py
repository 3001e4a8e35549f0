import io
from pathlib import Path

import pytest
from bench.__main__ import app
from bench.driving import Answer, DriveError
from bench.measures import must_be_cold
from bench.plan import MEASURES
from bench.run import Options, benchmark, ratios
from bench.table import show
from rich.console import Console
from typer.testing import CliRunner

from tests.bench.reports import report, row


def test_a_platform_that_does_not_start_is_a_problem_not_a_number(tmp_path: Path) -> None:
    broken = tmp_path / "nova"
    broken.write_text("#!/bin/sh\necho no database here\nexit 3\n")
    broken.chmod(0o755)
    found = benchmark(list(MEASURES), Options(quick=True, peers=False, nova=broken), lambda text: None)
    assert found.rows == []
    assert {problem.measure for problem in found.problems} == {"startup", "all"}
    assert all("no database here" in problem.reason for problem in found.problems)


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


def test_an_unknown_measure_is_refused_by_name() -> None:
    answer = CliRunner().invoke(app, ["--only", "warm_latencies"])
    assert answer.exit_code == 2
    assert "warm_latencies" in answer.output
