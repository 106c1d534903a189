"""What the command line shows while it works: bars in a terminal, lines in a log."""

import time

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

console = Console()


class TerminalReporter:
    """Progress bars with figures and the time left, for a terminal."""

    MOST_FINISHED = 8  # bars that stay; more than the terminal has lines would hide those that move

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._finished: list[TaskID] = []

    def __enter__(self) -> "TerminalReporter":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, task: str, done: int, total: int | None, **figures: float) -> None:
        """Move the task's bar; a finished task that starts anew gets a fresh bar, and old bars make room."""
        if task not in self._tasks:
            self._tasks[task] = self.progress.add_task(escape(task), total=total, figures="")
        self.progress.update(self._tasks[task], completed=done, total=total, figures=_figures(figures))
        if total is not None and done >= total:
            self.progress.stop_task(self._tasks[task])
            self._finished.append(self._tasks.pop(task))
        while len(self._finished) > self.MOST_FINISHED:
            self.progress.remove_task(self._finished.pop(0))

    def note(self, text: str) -> None:
        """A line above the bars."""
        self.progress.console.print(escape(text))


class PlainReporter:
    """One line every few seconds, for logs."""

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._started: dict[str, tuple[float, int]] = {}
        self._last: dict[str, float] = {}

    def __enter__(self) -> "PlainReporter":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, task: str, done: int, total: int | None, **figures: float) -> None:
        """Print the task's state if it is finished or was silent for long enough."""
        now = time.monotonic()
        start, first = self._started.setdefault(task, (now, done))
        finished = total is not None and done >= total
        if not finished and now - self._last.setdefault(task, start) < self.seconds:
            return
        self._last[task] = now
        left = ""
        if total is not None and not finished and done > first:
            left = f" left={(now - start) / (done - first) * (total - done):.0f}s"
        click.echo(f"{task} {done}/{total if total is not None else '?'} {_figures(figures)}{left}".rstrip())
        if finished:
            del self._started[task], self._last[task]

    def note(self, text: str) -> None:
        """A line of its own."""
        click.echo(text)


def _figures(figures: dict[str, float]) -> str:
    return " ".join(f"{key}={value:.4g}" for key, value in figures.items())


def reporter() -> TerminalReporter | PlainReporter:
    """What suits where the output goes."""
    return TerminalReporter() if console.is_terminal else PlainReporter()
