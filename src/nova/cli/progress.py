"""What is going on, while it goes on: a spinner with elapsed time and the last lines of a build's output."""

from collections import deque
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

_SHOWN = 5


class Activity:
    """A live display on a terminal; elsewhere one plain line for each step; nothing when ``quiet``.

    Use as a context manager. The display is gone at the end: what stays is for the caller to print.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._lines: deque[str] = deque(maxlen=_SHOWN)
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console
        )
        self._task = self._progress.add_task("", total=None)
        self._live = (
            Live(get_renderable=self._render, console=console, transient=True, refresh_per_second=10)
            if console.is_terminal and not quiet
            else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def step(self, text: str) -> None:
        """What is being done from now on."""
        self._lines.clear()
        self._progress.update(self._task, description=text)
        if self._live is None and not self._quiet:
            self._console.print(Text(text, style="dim"))

    def output(self, line: str) -> None:
        """One line of output of the step."""
        self._lines.append(line)

    def _render(self) -> RenderableType:
        return Group(
            self._progress, *(Text(f"  {line}", style="dim", no_wrap=True, overflow="ellipsis") for line in self._lines)
        )
