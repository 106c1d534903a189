"""A sweep from recipe to table: its points run one after another, in a folder from which it can go on.

``folder/runs/<point>-seed<k>`` is an ordinary run's folder. Stages that all points share are trained once a seed,
in ``folder/shared/seed<k>``; a point starts as if it had trained them itself and been resumed after them.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dr_plugin.atomic import replacing, write_text

from . import recipe_file
from .data import RunData, check_data, load_data
from .environment import pick_device
from .journal import Reporter, SilentReporter
from .recipe import Recipe, RecipeError, load_recipe
from .run import run_experiment
from .sweep_plan import is_finished, plan, run_folder, shared_recipe
from .sweep_report import write_sweep_report
from .sweep_table import summarise
from .trainer import TrainingError


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
    return _SweepRun(recipe, folder, device, reporter or SilentReporter()).run(resume)


class _SweepRun:
    """What the runs of a sweep share."""

    def __init__(self, recipe: Recipe, folder: Path, device: str, reporter: Reporter) -> None:
        pick_device(device)  # only to see that it works
        resolved = recipe_file.parse(recipe.to_yaml(), str(folder / "recipe.yaml"))
        self.recipe, self.folder, self.device, self.reporter = recipe, folder, device, reporter
        self.points = plan(recipe, resolved)
        seeds = recipe.sweep.seeds if recipe.sweep is not None else []
        self.runs = [
            (seed, point, run_folder(folder, point, seed)) for seed in seeds for point in self.points
        ]
        self.failures: dict[str, str] = {}

    def run(self, resume: bool) -> SweepResult:
        self._check_folder(resume)
        self._check_data()
        if not resume:
            write_text(self.folder / "recipe.yaml", self.recipe.to_yaml())
        for number, (seed, point, folder) in enumerate(self.runs, start=1):
            if not is_finished(folder):
                self.reporter.note(f"point {number}/{len(self.runs)}: {point.label}, seed {seed}")
                self._point(point.seeded(seed), folder)
                self._tell_unmeasured(self._write())
            if is_finished(folder):  # best.pt holds the same weights
                (folder / "checkpoint" / "last.pt").unlink(missing_ok=True)
        result = self._write()
        if self.failures:
            failed = "; ".join(f"{name}: {text}" for name, text in self.failures.items())
            counts = f"{len(self.failures)} of {len(self.runs)} runs failed"
            raise TrainingError(f"{counts}, the others are in {result.report}; {failed}")
        return result

    # -- before anything is trained --------------------------------------------------------------------------------

    def _check_folder(self, resume: bool) -> None:
        if not resume:
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise RecipeError(
                    f"--output: {self.folder} is not empty; choose another folder, or go on with --resume {self.folder}"
                )
            return
        if not (self.folder / "recipe.yaml").is_file():
            raise RecipeError(
                f"--resume: {self.folder} holds no recipe.yaml, expected the folder of an earlier sweep"
            )
        for seed, point, folder in self.runs:
            _check_recipe(folder, point.seeded(seed))

    def _check_data(self) -> None:
        """See that each point's recipe fits the data, which are loaded again only where a point changes them."""
        lines: list[str] = []
        known: Recipe | None = None
        data: RunData | None = None
        waiting = {point.name: point for _, point, folder in self.runs if not is_finished(folder)}
        for point in waiting.values():
            try:
                if data is not None and known is not None and _same_data(known, point.recipe):
                    check_data(point.recipe, data)
                else:
                    data = load_data(point.recipe, self.reporter.update)
                    known = point.recipe
            except RecipeError as error:
                lines += error.lines
        if lines:
            raise RecipeError(*dict.fromkeys(lines))

    # -- one run ---------------------------------------------------------------------------------------------------

    def _point(self, recipe: Recipe, folder: Path) -> None:
        """A point's run, from the start or from where it was; that it diverges is noted."""
        if not (folder / "recipe.yaml").exists():
            _clear(folder)
            self._share(recipe, folder)
        try:
            self._experiment(recipe, folder)
        except RecipeError:
            raise
        except (TrainingError, ValueError) as error:  # ValueError: what was trained cannot be evaluated
            self.failures[folder.name] = str(error)
            self.reporter.note(f"{folder.name} failed: {error}")

    def _share(self, recipe: Recipe, folder: Path) -> None:
        """Make the run's folder as it is after the stages that all points share; they are trained if need be."""
        shared = shared_recipe(self.recipe, recipe.seed)
        if not shared.stages:
            return
        source = self.folder / "shared" / f"seed{recipe.seed}"
        if not is_finished(source):
            self.reporter.note(f"shared stages, seed {recipe.seed}")
            self._experiment(shared, source)
        new = folder.with_name(f".{folder.name}.new")
        if new.exists():
            shutil.rmtree(new)
        for name in ("checkpoint/last.pt", "metrics.jsonl"):
            with replacing(new / name) as file:
                file.write((source / name).read_bytes())
        write_text(new / "recipe.yaml", recipe.to_yaml())
        new.rename(folder)

    def _experiment(self, recipe: Recipe, folder: Path) -> None:
        resume = (folder / "recipe.yaml").exists()
        run_experiment(recipe, folder, device=self.device, resume=resume, reporter=self.reporter)

    def _write(self) -> SweepResult:
        table = summarise(self.recipe, self.points, self.folder, self.failures)
        return SweepResult(write_sweep_report(self.folder, table), table)

    def _tell_unmeasured(self, result: SweepResult) -> None:
        """A figure may be misspelt, which only a finished run can tell."""
        rows = result.metrics["points"]
        for figure in result.metrics["figures"]:
            if any(row["runs"] for row in rows) and not any(row["figures"][figure]["n"] for row in rows):
                self.reporter.note(f"sweep.figures: no metrics.json has a number at {figure} so far")


def _clear(folder: Path) -> None:
    """Take away what a run leaves that was killed before its recipe.yaml was whole."""
    if folder.exists():
        (folder / "recipe.yaml.partial").unlink(missing_ok=True)
        folder.rmdir()


def _check_recipe(folder: Path, recipe: Recipe) -> None:
    """See that a run that was begun is of the recipe that the sweep has for it."""
    file = folder / "recipe.yaml"
    if not file.exists() or file.read_text(encoding="utf-8") == recipe.to_yaml():
        return
    if load_recipe(file) != recipe:  # the text may be of an earlier version, with fewer defaults
        raise RecipeError(
            f"--resume: {folder} was made by another recipe than the sweep's; start anew in another folder"
        )


def _same_data(one: Recipe, other: Recipe) -> bool:
    """Whether two recipes differ in nothing that data are made from."""
    rest = {"name", "stages", "evaluation", "report", "checkpoint", "limits", "trunk"}
    return one.model_dump(exclude=rest) == other.model_dump(exclude=rest)
