"""``python -m tests.chaos``: everything of nebula under load while what it runs on is killed, and a ledger that must add up."""

import asyncio
import contextlib
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.chaos.oracle import Row
from tests.chaos.run import Progress as Step
from tests.chaos.run import Run, Verdict
from tests.chaos.stage import stage

_WIDE = 140
_MOST_TOLD = 8
app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    minutes: Annotated[float, typer.Option("--minutes", min=0.1, max=120, help="How long things go wrong.")] = 5,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the faults; made up when it is not given.")] = None,
    rate: Annotated[float, typer.Option("--rate", min=5, max=500, help="Things asked for each second.")] = 50,
    keep: Annotated[bool, typer.Option("--keep", help="Leave logs and ledger, and say where.")] = False,
) -> None:
    """Exit 0 only if nothing was lost, inverted or ended twice, and everything ended as it has to."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # unwinds: everything is stopped
    logging.disable()  # clients of brokers tell of each attempt to connect
    console = Console(width=None if sys.stdout.isatty() else _WIDE)
    seed = random.randrange(1_000_000) if seed is None else seed
    console.print(f"seed {seed}; {minutes:g} minutes of faults, {rate:g} things a second", highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="nova-chaos-"))
    try:
        verdict = _run(folder, seed, minutes * 60, rate, console)
    finally:
        if keep:
            console.print(f"logs and ledger: {folder}", highlight=False, soft_wrap=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    _show(verdict, seed, console)
    raise typer.Exit(0 if verdict.sound else 1)


def _run(folder: Path, seed: int, seconds: float, rate: float, console: Console) -> Verdict:
    with _bar(console) as say:
        say(Step("starting", 0, "", 0))
        with stage(folder) as everything:
            run = Run(everything, seed, seconds, rate, say)
            say(Step("setting up", 0.5, "", 0))
            run.set_up()
            return asyncio.run(run.run())


@contextlib.contextmanager
def _bar(console: Console) -> "Iterator[Say]":
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[accepted]} accepted"),
        TextColumn("{task.fields[fault]}", style="red"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=1.0, fault="", accepted=0)
        yield Say(progress, task, console)


class Say:
    """Tells people by a bar, and logs by a line for each fault."""

    def __init__(self, progress: Progress, task: "object", console: Console) -> None:
        self._progress = progress
        self._task = task
        self._console = console
        self._began = time.monotonic()
        self._last = ("", "")

    def __call__(self, step: Step) -> None:
        if not self._console.is_terminal:
            if (step.phase, step.fault) != self._last and (step.fault or step.phase != self._last[0]):
                took = time.monotonic() - self._began
                self._console.print(
                    f"{took:6.1f} s  {step.phase}: {step.accepted} accepted  {step.fault}", highlight=False
                )
            self._last = (step.phase, step.fault)
            return
        self._progress.update(
            self._task,  # type: ignore[arg-type]
            description=step.phase,
            completed=step.share,
            fault=step.fault,
            accepted=step.accepted,
        )


def _show(verdict: Verdict, seed: int, console: Console) -> None:
    table = Table(title=f"ledger of seed {seed}", title_justify="left")
    table.add_column("source")
    for heading in ("accepted", "effects", "redelivered", "lost", "out of order", "twice", "wrong end"):
        table.add_column(heading, justify="right")
    for row in verdict.rows:
        bad = (row.lost, row.inversions, row.twice, row.wrong)
        cells = [str(row.accepted), str(row.effects), str(row.redelivered), *(str(len(some)) for some in bad)]
        table.add_row(row.source, *cells, style=None if row.sound else "red")
    console.print(table)
    faults = ", ".join(f"{count} × {name}" for name, count in sorted(verdict.faults.items()))
    console.print(f"faults: {faults}", highlight=False)
    owed = "nothing" if verdict.sound else "something"
    console.print(f"{owed} was owed {verdict.drained_s:.0f} s after the end of the load", highlight=False)
    for row in verdict.rows:
        _tell(row, console)
    for note in verdict.notes:
        console.print(f"ended by itself: {note}", highlight=False, markup=False)
    console.print("sound" if verdict.sound else "NOT sound", style="green" if verdict.sound else "bold red")


def _tell(row: Row, console: Console) -> None:
    """What is wrong with it, by name."""
    some: Sequence[tuple[str, Sequence[object]]] = (
        ("lost", row.lost),
        ("out of order", row.inversions),
        ("twice", row.twice),
        ("wrong end", row.wrong),
    )
    for what, names in some:
        for name in names[:_MOST_TOLD]:
            console.print(f"{row.source}: {what}: {name}", highlight=False, markup=False, soft_wrap=True)
        if len(names) > _MOST_TOLD:
            console.print(f"{row.source}: {what}: {len(names) - _MOST_TOLD} more", highlight=False)


if __name__ == "__main__":
    app()
