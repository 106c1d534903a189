"""``dr-run RECIPE``: one experiment, a sweep, or a table."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.table import Table

from dr_plugin import __version__

from .errors import guarded, is_out_of_memory
from .reporters import console, reporter

if TYPE_CHECKING:  # else imported where they are used: they bring PyTorch, for which --help need not wait
    from dr_plugin.evaluation.table import TableResult
    from dr_plugin.evaluation.table_schema import TableRecipe
    from dr_plugin.experiments.conclude import Result
    from dr_plugin.experiments.recipe import Recipe
    from dr_plugin.experiments.sweep import SweepResult


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
    from dr_plugin.experiments.recipe import RecipeError

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
        loaded = _load(str(recipe), overrides)
    else:
        loaded = _load(resume / "recipe.yaml")
        if recipe is not None and _load(recipe) != loaded:
            raise RecipeError(
                f"--resume: {resume} was made by another recipe than {recipe}; leave the recipe out to go on"
            )
    if check:
        click.echo(f"{loaded.name}: the recipe is good")
        return  # load_recipe has checked each point of a sweep
    folder = resume or output or _free_folder(loaded.name)
    click.echo(f"{loaded.name}: working in {folder}")
    result = _experiment(loaded, folder, device, resume is not None)
    _print(result.metrics)
    click.echo(f"report: {result.report}")


def _load(source: str | Path, overrides: tuple[str, ...] = ()) -> "Recipe | TableRecipe":
    """The recipe of an experiment, a sweep or a table."""
    from dr_plugin.evaluation.table_recipe import is_table, load_table
    from dr_plugin.experiments.recipe import load_recipe

    return load_table(source, overrides) if is_table(source) else load_recipe(source, overrides)


def _runner(recipe: "Recipe | TableRecipe") -> Callable[..., "Result | SweepResult | TableResult"]:
    from dr_plugin.evaluation.table import run_table
    from dr_plugin.evaluation.table_schema import TableRecipe
    from dr_plugin.experiments.run import run_experiment
    from dr_plugin.experiments.sweep import run_sweep

    if isinstance(recipe, TableRecipe):
        return run_table
    return run_experiment if recipe.sweep is None else run_sweep


def _experiment(
    recipe: "Recipe | TableRecipe", folder: Path, device: str, resume: bool
) -> "Result | SweepResult | TableResult":
    """Run what the recipe asks for; where it is cut off from outside, say how to go on."""
    from dr_plugin.experiments.trainer import TrainingError

    def hint() -> str:
        return f"; go on with: dr-run --resume {folder}" if (folder / "recipe.yaml").exists() else ""

    try:
        with reporter() as shown:
            return _runner(recipe)(recipe, folder, device=device, resume=resume, reporter=shown)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{hint()}") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
        raise TrainingError(
            f"out of memory ({reason}): start anew with a smaller batch_size or evaluation.batch_size, or free memory"
            f"{hint()}"
        ) from error


def _print(metrics: dict[str, Any]) -> None:
    """The figures, as suits an experiment, a sweep or a table."""
    show = _print_points if "points" in metrics else _print_rows if "rows" in metrics else _print_figures
    show(metrics)


def _print_rows(metrics: dict[str, Any]) -> None:
    from dr_plugin.evaluation.table_report import interval

    k = metrics["k"]
    table = Table(title=f"{metrics['name']}: similarity precision")
    table.add_column("model")
    for title in ("precision", "95% interval", "paper", f"score at top {k}, own pool", f"top {k} of all"):
        table.add_column(title, justify="right")
    table.add_column("learned from")
    for row in metrics["rows"]:
        found, paper = row["similarity_precision"], row["paper"] or {}
        table.add_row(
            escape(row["name"]),
            f"{found['value']:.1%}",
            interval(found),
            f"{paper['similarity_precision']:.1%}" if paper else "",
            f"{row[f'score_at_top_{k}']['score']:,}",
            f"{row[f'score_at_top_{k}_of_all']['score']:,}",
            escape(row["seen"]),
        )
    console.print(table)


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
    """Run the experiment, sweep or table of RECIPE: a YAML file, or the name of a recipe that came with the package."""
    guarded(lambda: _run(recipe, overrides, device, output, resume, check))
