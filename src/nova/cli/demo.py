"""The demo: deploy the examples to a running server, call each on real input, show what came of it.

A program of its own (``python -m nova.cli.demo URL``): it knows the server only through its public API.
"""

import os
import shlex
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from nova.cli import examples
from nova.cli.deploying import Deployed, deploy
from nova.cli.examples import Example
from nova.cli.output import describe
from nova.cli.session import CliError
from nova.client import DEFAULT_SERVER, ApiError, Client, ClientError

WARM_CALLS = 5
_PIPE_WIDTH = 160


@dataclass(slots=True)
class Outcome:
    """What became of one example. Times in milliseconds, as the caller saw them; None where there was none."""

    example: Example
    deployed: Deployed | None = None
    cold_ms: float | None = None
    warm_ms: float | None = None
    result: str = ""
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
    output: Any
    cold: bool
    took_ms: float


class _Row:
    """One function's line in the display; what a build prints stands at its end."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._name = name
        self._task: TaskID = progress.add_task("waiting", total=None, name=name)

    def step(self, text: str) -> None:
        self._progress.update(self._task, description=text.removeprefix(f"{self._name}: "))

    def output(self, line: str) -> None:
        self._progress.update(self._task, description=f"building: {line.strip()[:60]}")

    def done(self, text: str) -> None:
        self._progress.update(self._task, description=text, total=1, completed=1)


class Demo:
    """One run against one server. ``api_key``, where authentication asks for it, comes from the environment."""

    def __init__(self, url: str, chosen: Sequence[Example], console: Console) -> None:
        self._url = url
        self._console = console
        self.outcomes = [Outcome(example) for example in chosen]

    def run(self) -> bool:
        """Deploy everything, call everything; true when all of it went well."""
        self._deploy_all()
        with self._client() as client:
            for outcome in self.outcomes:
                if outcome.failure is None:
                    self._call(client, outcome)
        return all(outcome.failure is None for outcome in self.outcomes)

    def _client(self) -> Client:
        return Client(self._url, os.environ.get("NOVA_API_KEY"))

    def _deploy_all(self) -> None:
        """All at once, so that builds run side by side: one thread and one line for each."""
        progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.fields[name]:<12}"),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
        )
        threads = [
            threading.Thread(target=self._deploy, args=(outcome, _Row(progress, outcome.example.name)), daemon=True)
            for outcome in self.outcomes
        ]
        with progress:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _deploy(self, outcome: Outcome, row: _Row) -> None:
        try:
            with self._client() as client:
                outcome.deployed = deploy(client, outcome.example.project, row)
            version = outcome.deployed.version
            row.done(f"version {version}" + ("" if outcome.deployed.changed else ", unchanged"))
        except (ApiError, ClientError, CliError) as exc:
            outcome.failure = "; ".join(describe(exc))
            row.done("failed")

    def _call(self, client: Client, outcome: Outcome) -> None:
        try:
            first = _invoke(client, outcome.example)
            outcome.result = outcome.example.describe(first.output)
            outcome.cold_ms = first.took_ms if first.cold else None
            outcome.warm_ms = statistics.median(_invoke(client, outcome.example).took_ms for _ in range(WARM_CALLS))
        except (ApiError, ClientError, ValueError) as exc:
            outcome.failure = "; ".join(describe(exc))


def _invoke(client: Client, example: Example) -> _Answer:
    """One call. Raises ValueError when the function failed."""
    started = time.perf_counter()
    if example.entry.url is None:
        call = client.invoke(example.name, example.payload)
        took = (time.perf_counter() - started) * 1000
        if call.error is not None:
            raise ValueError(f"{call.error['type']}: {call.error['message']}")
        return _Answer(call.output, call.cold_start, took)
    wanted = example.entry.url
    answer = client.request(wanted.method, f"/fn/{example.name}{wanted.path}", json=wanted.body)
    took = (time.perf_counter() - started) * 1000
    if answer.is_error:
        raise ValueError(f"HTTP {answer.status_code}: {answer.text[:200]}")
    is_json = answer.headers.get("Content-Type", "").startswith("application/json")
    return _Answer(answer.json() if is_json else answer.text, answer.headers.get("X-Nova-Cold-Start") == "true", took)


def results(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2))
    for title, right in (("FUNCTION", False), ("RUNTIME", False), ("COLD MS", True), ("WARM MS", True)):
        table.add_column(title, justify="right" if right else "left", no_wrap=True)
    table.add_column("RESULT", overflow="fold")
    for outcome in outcomes:
        result = Text(f"FAILED {outcome.failure}", "bold red") if outcome.failure else Text(outcome.result)
        table.add_row(
            Text(outcome.example.name),
            Text(str(outcome.example.project.settings["runtime"])),
            _milliseconds(outcome.cold_ms),
            _milliseconds(outcome.warm_ms),
            result,
        )
    return table


def _milliseconds(value: float | None) -> Text:
    return Text("–", "dim") if value is None else Text(f"{value:.1f}" if value >= 10 else f"{value:.2f}")


def next_steps(url: str) -> Iterator[Text]:
    """Where to go from here; every line works as it is printed."""
    sample = '{"text": "to be or not to be"}'
    server = [] if url == DEFAULT_SERVER.replace("localhost", "127.0.0.1") else ["--server", url]
    yield Text()
    yield Text("Where to go next", "bold")
    for title, value in (
        ("API docs", f"{url}/docs"),
        ("health", f"{url}/health"),
        ("FastAPI app", f"{url}/fn/guestbook/"),
        ("curl", f"curl -s {url}/functions/word-count/invoke -d {shlex.quote(sample)}"),
        ("orbit", shlex.join([_orbit(), *server, "invoke", "word-count", "-d", sample])),
    ):
        yield Text.assemble((f"  {title:<13}", "dim"), value)


def _orbit() -> str:
    """How to call orbit from here."""
    if shutil.which("orbit"):
        return "orbit"
    beside = Path(sys.executable).parent / "orbit"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def run(
    url: Annotated[str, typer.Argument(help="A running server.")],
    input: Annotated[Path | None, typer.Option(metavar="FILE", help="Your own image, CSV or text.")] = None,
    ends: Annotated[bool, typer.Option("--ends", help="The server ends with the demo.")] = False,
) -> None:
    """Deploy the examples and call each of them."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    try:
        demo = Demo(url.rstrip("/"), examples.load(input), console)
        well = demo.run()
    except CliError as exc:
        Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), str(exc)), soft_wrap=True)
        raise typer.Exit(exc.exit_code) from None
    console.print()
    console.print(results(demo.outcomes))
    if not ends:
        for line in next_steps(url.rstrip("/")):
            console.print(line, soft_wrap=True)
    raise typer.Exit(0 if well else 1)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    """End as by Ctrl-C, once: whoever started the demo sends SIGTERM beside the terminal's SIGINT."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    for _each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_each, _interrupted)
    typer.run(run)
