"""A sweep from recipe to table: its points run one after another, in a folder from which it can go on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_plugin.atomic import write_text

from . import recipe_file
from .environment import pick_device
from .journal import Reporter, SilentReporter
from .recipe import Recipe
from .run import run_folder
from .series import Series
from .series_run import PlannedRun, shared_recipe
from .sweep_plan import Point, plan
from .sweep_report import write_sweep_report
from .sweep_table import summarise


@dataclass(frozen=True)
class SweepResult:
    """Where a finished sweep's page lies, and its table (the content of ``sweep.json``)."""

    report: Path
    metrics: dict[str, Any]


def run_sweep(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> SweepResult:
    """Run all points of the recipe's sweep with all its seeds; the table is written anew after each run.

    The arguments are those of `run_experiment`. A resumed sweep skips what is finished and goes on with what is
    not, to the same numbers. A run that diverges does not keep the others from running.

    Raises:
        ValueError: if the recipe, the folder, the device or the data do not fit; before anything is trained.
        TrainingError: at the end, if a run failed.
    """
    pick_device(device)  # only to see that it works
    reporter = reporter or SilentReporter()
    points = plan(recipe, recipe_file.parse(recipe.to_yaml(), str(folder / "recipe.yaml")))
    series = Series(folder, _runs(recipe, points, folder), [device], reporter, what="sweep", each="point")

    def write() -> SweepResult:
        table = summarise(recipe, points, folder, series.failures)
        return SweepResult(write_sweep_report(folder, table), table)

    with series.claimed(resume):
        series.check_data()
        if not resume:
            write_text(folder / "recipe.yaml", recipe.to_yaml())
        series.run(lambda: _tell_unmeasured(write(), reporter))
        result = write()
    series.check_failures(result.report)
    return result


def _runs(recipe: Recipe, points: Sequence[Point], folder: Path) -> list[PlannedRun]:
    """Each point with each seed, seed by seed."""
    seeds, shared = (recipe.sweep.seeds, recipe.sweep.shared_stages) if recipe.sweep is not None else ([], 0)
    return [
        PlannedRun(
            f"{point.label}, seed {seed}",
            point.seeded(seed),
            run_folder(folder, point.name, seed),
            shared_recipe(recipe, shared, seed),
        )
        for seed in seeds
        for point in points
    ]


def _tell_unmeasured(result: SweepResult, reporter: Reporter) -> None:
    """A figure may be misspelt, which only a finished run can tell."""
    rows = result.metrics["points"]
    for figure in result.metrics["figures"]:
        if any(row["runs"] for row in rows) and not any(row["figures"][figure]["n"] for row in rows):
            reporter.note(f"sweep.figures: no metrics.json has a number at {figure} so far")
