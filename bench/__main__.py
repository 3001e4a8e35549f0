"""``python -m bench``: run the benchmark; ``python -m bench compare A B``: what changed between two runs."""

import re
import signal
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench import compare as comparing
from bench.model import Report
from bench.plan import GROUPS, MEASURES
from bench.run import Options, benchmark
from bench.table import show

RESULTS = Path(__file__).parent / "results"
WIDE = 180
"""Columns of a table that no terminal limits."""
NAMES = (*MEASURES, *GROUPS)
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer calls and rounds; numbers only for orientation.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help=f"Repeatable: {', '.join(NAMES)}.")] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write the JSON report here as well.")] = None,
    skip_peers: Annotated[bool, typer.Option("--skip-peers", help="Measure Nova alone.")] = False,
    nova: Annotated[Path | None, typer.Option("--nova", help="The nova command to measure.")] = None,
    label: Annotated[
        str | None, typer.Option("--label", help="Name of what is measured, instead of the commit.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 when a promised number is missed.")] = False,
) -> None:
    """Measure Nova and its peers on this machine. Exit 2 when something could not be measured."""
    if context.invoked_subcommand is not None:
        return
    asked = only or list(MEASURES)
    if unknown := [name for name in asked if name not in NAMES]:
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; there are {', '.join(NAMES)}", param_hint="--only")
    wanted = list(dict.fromkeys(measure for name in asked for measure in GROUPS.get(name, (name,))))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwinds: the servers are stopped
    console = _console()
    options = Options(quick=quick, peers=not skip_peers, label=label)
    if nova is not None:
        options = replace(options, nova=nova.absolute())
    report = _measure(wanted, options, console)
    show(report, console)
    for path in _write(report, json):
        console.print(f"written: {path}", style="dim", highlight=False)
    if report.problems:
        raise typer.Exit(2)
    if check and report.missed():
        raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="The earlier report.")],
    b: Annotated[Path, typer.Argument(help="The later report.")],
    noise: Annotated[float, typer.Option("--noise", min=0, help="Percent that is never called a change.")] = 10,
    fail_on_worse: Annotated[bool, typer.Option("--fail-on-worse", help="Exit 1 when Nova got worse.")] = False,
) -> None:
    """Show what changed from A to B, with the peers beside it as the measure of the machine's own mood."""
    found = comparing.show(_read(a), _read(b), noise, _console())
    if fail_on_worse and any(entry.change == "worse" and entry.a.subject == "nova" for entry in found):
        raise typer.Exit(1)


def _console() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _measure(wanted: list[str], options: Options, console: Console) -> Report:
    # Two redraws a second: the progress line must not compete with what is measured.
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, refresh_per_second=2, transient=True) as progress:
        task = progress.add_task("starting", total=None)

        said = ""

        def say(text: str) -> None:
            nonlocal said
            progress.update(task, description=text)
            step = re.sub(r"(, round)?[ 0-9/]+$", "", text)
            if not console.is_terminal and step != said:
                print(step, flush=True)
            said = step

        return benchmark(wanted, options, say)


def _write(report: Report, extra: Path | None) -> list[Path]:
    RESULTS.mkdir(exist_ok=True)
    stem = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    text = report.model_dump_json(indent=2) + "\n"
    paths = [RESULTS / f"{stem}.json", *([extra] if extra else [])]
    for path in paths:
        path.write_text(text)
    table = RESULTS / f"{stem}.txt"
    with table.open("w") as file:
        show(report, Console(file=file, width=WIDE))
    return [*paths, table]


def _read(path: Path) -> Report:
    try:
        return Report.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise typer.BadParameter(f"{path} is not a report of this benchmark: {error}") from error


if __name__ == "__main__":
    app(prog_name="python -m bench")
