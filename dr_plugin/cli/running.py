"""``dr-run RECIPE``: one experiment, a sweep, a comparison, or a table."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from dr_plugin import __version__

from .errors import guarded
from .figures import print_figures
from .launching import launch
from .reporters import reporter

if TYPE_CHECKING:  # else imported where they are used: they bring PyTorch, for which --help need not wait
    from dr_plugin.evaluation.table import TableResult
    from dr_plugin.evaluation.table_schema import TableRecipe
    from dr_plugin.experiments.compare import ComparisonResult
    from dr_plugin.experiments.conclude import Result
    from dr_plugin.experiments.recipe import Recipe
    from dr_plugin.experiments.sweep import SweepResult


def free_folder(name: str) -> Path:
    """runs/NAME, or runs/NAME-2 and so on where that is taken."""
    folder, number = Path("runs") / name, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{name}-{number}"
    return folder


@dataclass(frozen=True)
class Asked:
    """What to run and where, as the command line says it."""

    recipe: str | None
    overrides: tuple[str, ...]
    device: str
    output: Path | None
    resume: Path | None
    previous: bool


def _run(asked: Asked, check: bool, processes: int | None, restarts: int) -> None:
    if restarts and processes is None:
        raise ValueError(
            f"--max-restarts: got {restarts} without --nproc, expected both; or start it by torchrun"
        )
    loaded = _checked(asked)
    if check:
        click.echo(f"{loaded.name}: the recipe is good")
    elif processes is None:
        _run_here(asked, loaded)
    else:
        _check_alone(loaded, processes)
        _launch(asked, loaded.name, processes, restarts)


def _run_here(asked: Asked, loaded: "Recipe | TableRecipe") -> None:
    """In this process, and in those that torchrun started with it."""
    from dr_plugin import distributed
    from dr_plugin.experiments.launched import ending_with_torchrun, is_restart, may_restart

    if may_restart() and asked.output is None and asked.resume is None:
        raise ValueError(
            "--output: got none under torchrun --max-restarts, expected the run's folder to go on in"
        )
    with ending_with_torchrun(), distributed.joined():
        _check_alone(loaded, distributed.world_size())
        folder = asked.resume or asked.output or distributed.from_first(free_folder(loaded.name))
        # Started again it goes on from its last checkpoint, whatever was asked for at first.
        again = distributed.from_first(is_restart(folder))
        resume = again or asked.resume is not None
        work(loaded, folder, asked.device, resume=resume, previous=asked.previous and not again)


def _launch(asked: Asked, name: str, processes: int, restarts: int) -> None:
    """The same command on several processes, in a folder that all of them know."""
    from dr_plugin.experiments.claim import check_free

    folder = asked.resume or asked.output or free_folder(name)
    if asked.resume is None:
        check_free(folder)
    arguments = ["--device", asked.device]
    if asked.resume is not None:
        arguments += ["--resume", str(folder), *(["--previous"] if asked.previous else [])]
    else:
        arguments += ["--output", str(folder), *(f"--set={one}" for one in asked.overrides)]
        arguments += ["--", str(asked.recipe)]
    launch(
        processes,
        restarts,
        arguments,
        f"go on with: dr-run --nproc {processes} --resume {quote(str(folder))}",
    )


def _check_alone(recipe: "Recipe | TableRecipe", processes: int) -> None:
    """See that what is to be run on several processes is one experiment."""
    from dr_plugin.experiments.recipe import RecipeError

    if processes > 1 and _kind(recipe) != "experiment":
        raise RecipeError(
            f"{recipe.name}: got a {_kind(recipe)} on {processes} processes, expected one experiment: leave --nproc out"
        )


def _checked(asked: Asked) -> "Recipe | TableRecipe":
    """The recipe to run, once the options are seen to suit each other."""
    from dr_plugin.experiments.recipe import RecipeError

    recipe, resume = asked.recipe, asked.resume
    if resume is not None and (asked.overrides or asked.output is not None):
        raise RecipeError(
            "--resume: goes on with the run's own recipe and folder; expected no --set and no --output"
        )
    if asked.previous and resume is None:
        raise RecipeError("--previous: goes on with an earlier run; expected --resume DIR beside it")
    if recipe is None and resume is None:
        raise RecipeError(
            "RECIPE: got nothing, expected a recipe's path or a shipped recipe's name (see: dr recipes)"
        )
    if resume is None:
        return _load(str(recipe), asked.overrides)
    if not (resume / "recipe.yaml").is_file():
        raise RecipeError(f"--resume: {resume} holds no recipe.yaml, expected the folder of an earlier run")
    loaded = _load(resume / "recipe.yaml")
    if recipe is not None and _load(recipe) != loaded:
        raise RecipeError(
            f"--resume: {resume} was made by another recipe than {recipe}; leave the recipe out to go on"
        )
    if asked.previous and _kind(loaded) != "experiment":
        raise RecipeError(
            f"--previous: {resume} is a {_kind(loaded)}, expected one run: the one whose checkpoint is damaged"
        )
    return loaded


def work(
    recipe: "Recipe | TableRecipe",
    folder: Path,
    device: str | list[str],
    *,
    resume: bool,
    previous: bool = False,
    again: str = "dr-run",
) -> None:
    """Run what the recipe asks for in the folder and show its figures.

    Args:
        recipe: Of any kind.
        folder: Where to.
        device: One, or several for a comparison.
        resume: Go on with what is there.
        previous: From the checkpoint before the last; for an experiment alone.
        again: The command that goes on.
    """
    from dr_plugin.distributed import is_first

    how = {"resume": resume, "previous": True} if previous else {"resume": resume}
    if not is_first():
        _experiment(recipe, folder, device, again, how)
        return
    click.echo(f"{recipe.name}: working in {folder}")
    result = _experiment(recipe, folder, device, again, how)
    print_figures(result.metrics)
    click.echo(f"report: {result.report}")


def _load(source: str | Path, overrides: tuple[str, ...] = ()) -> "Recipe | TableRecipe":
    """The recipe of an experiment, a sweep, a comparison or a table."""
    from dr_plugin.evaluation.table_recipe import is_table, load_table
    from dr_plugin.experiments.recipe import load_recipe

    return load_table(source, overrides) if is_table(source) else load_recipe(source, overrides)


def _kind(recipe: "Recipe | TableRecipe") -> str:
    """experiment, sweep, comparison or table."""
    return str(getattr(recipe, "kind", "table"))


def _runner(
    recipe: "Recipe | TableRecipe",
) -> Callable[..., "Result | SweepResult | ComparisonResult | TableResult"]:
    from dr_plugin.evaluation.table import run_table
    from dr_plugin.evaluation.table_schema import TableRecipe
    from dr_plugin.experiments.compare import run_comparison
    from dr_plugin.experiments.run import run_experiment
    from dr_plugin.experiments.sweep import run_sweep

    if isinstance(recipe, TableRecipe):
        return run_table
    if recipe.compare is not None:
        return run_comparison
    return run_experiment if recipe.sweep is None else run_sweep


def _experiment(
    recipe: "Recipe | TableRecipe", folder: Path, device: str | list[str], again: str, how: dict[str, bool]
) -> "Result | SweepResult | ComparisonResult | TableResult":
    """Run what the recipe asks for; where it is cut off from outside, say how to go on."""
    from dr_plugin.atomic import WriteError
    from dr_plugin.distributed import is_exchange_failure, is_first
    from dr_plugin.experiments.memory import out_of_memory
    from dr_plugin.experiments.trainer import TrainingError

    def hint() -> str:
        return (
            f"; go on with: {again} --resume {quote(str(folder))}"
            if (folder / "recipe.yaml").exists()
            else ""
        )

    try:
        with reporter() if is_first() else nullcontext() as shown:
            return _runner(recipe)(recipe, folder, device=device, reporter=shown, **how)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted{hint()}") from None
    except WriteError as error:
        raise WriteError(f"{error}{hint()}") from error
    except (RuntimeError, MemoryError) as error:
        if (text := out_of_memory(error)) is not None:
            raise TrainingError(f"{text}{hint()}") from error
        if isinstance(error, MemoryError) or not is_exchange_failure(error):
            raise
        reason = " ".join(str(error).splitlines()[:1]) or type(error).__name__
        raise TrainingError(
            f"another process of this run is gone or out of reach ({reason}){hint()}"
        ) from error


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
@click.option(
    "--previous",
    is_flag=True,
    help="With --resume: from the checkpoint before the last, where that is damaged.",
)
@click.option("--check", is_flag=True, help="Only check the recipe; touch no data.")
@click.option(
    "--nproc",
    "processes",
    type=click.IntRange(min=1, max=4096),
    metavar="N",
    help="Train on N processes of this machine, by torchrun.",
)
@click.option(
    "--max-restarts",
    "restarts",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="With --nproc: go on from the last checkpoint so often where a process is lost.",
)
@click.version_option(__version__, package_name="dr-plugin")
def run(
    recipe: str | None,
    overrides: tuple[str, ...],
    device: str,
    output: Path | None,
    resume: Path | None,
    previous: bool,
    check: bool,
    processes: int | None,
    restarts: int,
) -> None:
    """Run the experiment, sweep, comparison or table of RECIPE.

    RECIPE is a YAML file, or the name of a recipe that came with the package.
    """
    asked = Asked(recipe, overrides, device, output, resume, previous)
    guarded(lambda: _run(asked, check, processes, restarts))
