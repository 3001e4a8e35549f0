from pathlib import Path

import pytest
from bench.__main__ import app
from bench.compare import caveats, difference
from bench.model import Row
from typer.testing import CliRunner

from tests.bench.reports import report, row


@pytest.mark.parametrize(
    ("a", "b", "change"),
    [
        (row(100, [98, 102]), row(150, [148, 152]), "worse"),
        (row(150, [148, 152]), row(100, [98, 102]), "better"),
        (row(100, [98, 102]), row(105, [104, 106]), "noise"),
        (row(100, [90, 140]), row(130, [95, 160]), "noise"),
        (row(100), row(150, [148, 152]), "unclear"),
    ],
)
def test_a_change_is_called_one_only_beyond_noise(a: Row, b: Row, change: str) -> None:
    assert difference(a, b, noise_percent=10).change == change


def test_more_calls_a_second_are_better() -> None:
    a = row(100, [98, 102]).model_copy(update={"better": "higher"})
    b = row(150, [148, 152]).model_copy(update={"better": "higher"})
    assert difference(a, b, noise_percent=10).change == "better"
    assert difference(a, b, noise_percent=10).percent == pytest.approx(50)


def test_another_machine_is_pointed_out() -> None:
    assert caveats(report(), report()) == []
    assert caveats(report(), report(cores=8)) == ["different cores: 2 and 8"]


def test_command_fails_when_nova_got_worse_and_only_then(tmp_path: Path) -> None:
    fast, slow = tmp_path / "fast.json", tmp_path / "slow.json"
    fast.write_text(report(row(100, [98, 102]), row(100, [98, 102], subject="workerd")).model_dump_json())
    slow.write_text(report(row(200, [198, 202]), row(100, [98, 102], subject="workerd")).model_dump_json())
    run = CliRunner().invoke
    worse = run(app, ["compare", str(fast), str(slow), "--fail-on-worse"])
    assert worse.exit_code == 1
    assert "+100.0 %" in worse.output
    assert run(app, ["compare", str(slow), str(fast), "--fail-on-worse"]).exit_code == 0
    assert run(app, ["compare", str(fast), str(slow)]).exit_code == 0


def test_command_refuses_what_is_no_report(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    answer = CliRunner().invoke(app, ["compare", str(tmp_path / "a.json"), str(tmp_path / "a.json")])
    assert answer.exit_code == 2
    assert "not a report" in answer.output
