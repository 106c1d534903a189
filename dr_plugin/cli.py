"""The command line: ``dr-run RECIPE`` and the group ``dr``. The only file that prints."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from dr_plugin import __version__

if TYPE_CHECKING:  # else imported where they are used: they bring PyTorch, for which --help need not wait
    from dr_plugin.experiments.conclude import Result
    from dr_plugin.experiments.recipe import Recipe
    from dr_plugin.experiments.sweep import SweepResult

console = Console()
errors = Console(stderr=True)


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


def _fail(error: BaseException, status: int) -> None:
    """Print an error as red lines, no traceback, and exit."""
    for line in str(error).splitlines() or [type(error).__name__]:
        errors.print(f"[red]{escape(line)}[/red]", soft_wrap=True, highlight=False)
    sys.exit(status)


def _guarded(action: Callable[[], None]) -> None:
    """Run an action; a mistake of the user's ends in one line and status 2, a failure of the run in status 1."""
    try:
        from dr_plugin.experiments.recipe import RecipeError
        from dr_plugin.experiments.trainer import TrainingError

        action()
    except ImportError as error:  # first: the classes below may be what could not be imported
        _fail(error, 1)
    except RecipeError as error:
        _fail(error, 2)
    except (ValueError, OSError, TrainingError) as error:
        _fail(error, 1)
    except KeyboardInterrupt as interrupt:
        _fail(interrupt, 130)


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """Whether memory ran out, which PyTorch says in the text alone where it was not a GPU's."""
    told = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in told)


def _free_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2 and so on where that is taken."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


def _run(
    recipe: str | None,
    overrides: tuple[str, ...],
    device: str,
    output: Path | None,
    resume: Path | None,
    check: bool,
) -> None:
    from dr_plugin.experiments.recipe import RecipeError, load_recipe

    if resume is not None and (overrides or output is not None):
        raise RecipeError(
            "--resume: goes on with the run's own recipe and folder; expected no --set and no --output"
        )
    if recipe is None and resume is None:
        raise RecipeError(
            "RECIPE: got nothing, expected a recipe's path or a shipped recipe's name (see: dr recipes)"
        )
    if resume is not None and not (resume / "recipe.yaml").is_file():
        raise RecipeError(f"--resume: {resume} holds no recipe.yaml, expected the folder of an earlier run")
    if resume is None:
        loaded = load_recipe(str(recipe), overrides)
    else:
        loaded = load_recipe(resume / "recipe.yaml")
        if recipe is not None and load_recipe(recipe) != loaded:
            raise RecipeError(
                f"--resume: {resume} was made by another recipe than {recipe}; leave the recipe out to go on"
            )
    if check:
        click.echo(f"{loaded.name}: the recipe is good")
        return  # load_recipe has checked each point of a sweep
    folder = resume or output or _free_folder(loaded.name)
    click.echo(f"{loaded.name}: working in {folder}")
    result = _experiment(loaded, folder, device, resume is not None)
    show = _print_figures if loaded.sweep is None else _print_points
    show(result.metrics)
    click.echo(f"report: {result.report}")


def _experiment(recipe: "Recipe", folder: Path, device: str, resume: bool) -> "Result | SweepResult":
    """Run the experiment or sweep; where it is cut off from outside, say how to go on."""
    from dr_plugin.experiments.run import run_experiment
    from dr_plugin.experiments.sweep import run_sweep
    from dr_plugin.experiments.trainer import TrainingError

    def hint() -> str:
        return f"; go on with: dr-run --resume {folder}" if (folder / "recipe.yaml").exists() else ""

    reporter = TerminalReporter() if console.is_terminal else PlainReporter()
    try:
        with reporter:
            if recipe.sweep is not None:
                return run_sweep(recipe, folder, device=device, resume=resume, reporter=reporter)
            return run_experiment(recipe, folder, device=device, resume=resume, reporter=reporter)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{hint()}") from None
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
        raise TrainingError(
            f"out of memory ({reason}): start anew with a smaller batch_size or evaluation.batch_size, or free memory"
            f"{hint()}"
        ) from error


def _print_figures(metrics: dict[str, Any]) -> None:
    k = metrics["k"]
    table = Table(title=f"{metrics['name']}: precision at {k}")
    table.add_column("what")
    table.add_column(f"P@{k}", justify="right")
    rows = {"val": metrics["val"], "train (without itself)": metrics.get("train")}
    rows |= {f"val, {name}": figures for name, figures in metrics["baselines"].items()}
    for name, figures in rows.items():
        if figures is not None:
            table.add_row(name, f"{figures[f'precision_at_{k}']:.4f}")
    console.print(table)


def _print_points(metrics: dict[str, Any]) -> None:
    from dr_plugin.experiments.sweep_report import level

    table = Table(title=f"{metrics['name']}: mean ± standard deviation over the seeds")
    table.add_column("point")
    for figure in metrics["figures"]:
        table.add_column(escape(figure), justify="right")
    for row in metrics["points"]:
        figures = (level(row["figures"][figure]) for figure in metrics["figures"])
        table.add_row(escape(row["label"]), *figures)
    console.print(table)


@click.command(name="run")
@click.argument("recipe", required=False)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key, e.g. stages.0.epochs=3."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="The run's folder; runs/NAME where not given."
)
@click.option(
    "--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with an interrupted run."
)
@click.option("--check", is_flag=True, help="Only check the recipe; touch no data.")
@click.version_option(__version__, package_name="dr-plugin")
def run(
    recipe: str | None,
    overrides: tuple[str, ...],
    device: str,
    output: Path | None,
    resume: Path | None,
    check: bool,
) -> None:
    """Run the experiment of RECIPE: a YAML file, or the name of a recipe that came with the package."""
    _guarded(lambda: _run(recipe, overrides, device, output, resume, check))


@click.group()
@click.version_option(__version__, package_name="dr-plugin")
def main() -> None:
    """Deep Ranking on pytorch-metric-learning."""


main.add_command(run)


@main.group(invoke_without_command=True)
@click.pass_context
def recipes(context: click.Context) -> None:
    """The recipes that came with the package."""
    if context.invoked_subcommand is None:
        context.invoke(list_recipes)


@recipes.command(name="list")
def list_recipes() -> None:
    """Name each recipe and what it is for."""
    from dr_plugin.experiments import shipped

    for name in shipped.names():
        summary = shipped.path(name).read_text().splitlines()[0].removeprefix("# ")
        click.echo(f"{name:22} {summary}")


@recipes.command()
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe."""
    from dr_plugin.experiments import shipped

    _guarded(lambda: click.echo(shipped.path(name).read_text(), nl=False))


@recipes.command()
@click.argument("name")
@click.argument("destination", required=False, type=click.Path(path_type=Path))
def copy(name: str, destination: Path | None) -> None:
    """Copy a recipe to DESTINATION (here, where not given), to make it yours."""
    from dr_plugin.experiments import shipped

    _guarded(lambda: click.echo(f"copied to {shipped.copy(name, destination or Path())}"))
