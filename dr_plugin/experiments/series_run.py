"""One run of a series: begun with the stages that all runs of its seed share, trained, and what ended it told."""

import shutil
import traceback
from dataclasses import dataclass
from pathlib import Path

from dr_plugin.atomic import WriteError, replacing, settle, write_text

from . import checkpoint
from .claim import claimed
from .context import LAST
from .journal import Reporter
from .memory import out_of_memory
from .recipe import Recipe, RecipeError
from .run import run_experiment
from .trainer import TrainingError


@dataclass(frozen=True)
class PlannedRun:
    """One run of a series.

    Attributes:
        label: What is said of it while it runs.
        recipe: Its recipe, with its seed.
        folder: Its folder, ``series/runs/<name>``.
        shared: The recipe of the stages that all runs of its seed share; None where there are none.
    """

    label: str
    recipe: Recipe
    folder: Path
    shared: Recipe | None

    @property
    def kind(self) -> str:
        """Its folder's name without the seed: what runs have in common that differ in the seed alone."""
        return self.folder.name.removesuffix(f"-seed{self.recipe.seed}")

    @property
    def is_begun(self) -> bool:
        """Whether it has its own state, and needs the shared stages no more."""
        return (self.folder / "recipe.yaml").exists()

    @property
    def source(self) -> Path:
        """The folder of the shared stages of its seed."""
        return self.folder.parent.parent / "shared" / f"seed{self.recipe.seed}"


def shared_recipe(recipe: Recipe, stages: int, seed: int) -> Recipe | None:
    """The first stages, which all runs of a seed have in common, as a recipe; its figures are of no interest."""
    if stages == 0:
        return None
    evaluation = recipe.evaluation.model_copy(update={"baselines": [], "train": False, "rerank": None})
    changes = {
        "name": f"{recipe.name}-shared-seed{seed}",
        "seed": seed,
        "evaluation": evaluation,
        "stages": recipe.stages[:stages],
        "sweep": None,
        "compare": None,
    }
    return recipe.model_copy(update=changes)


def train(run: PlannedRun, shared: bool, device: str, reporter: Reporter) -> str | None:
    """Train a run, or the stages it shares, from the start or from where it was; gives why it failed.

    Where another error than training's own ended it, ``failure.txt`` in its folder has the whole of it.

    Raises:
        RecipeError: if folder, device or data do not fit.
        WriteError: if something cannot be written.
    """
    folder = run.source if shared else run.folder
    report = folder / "failure.txt"
    report.unlink(missing_ok=True)
    try:
        if shared and run.shared is not None:
            _experiment(run.shared, folder, device, reporter)
        else:
            if not run.is_begun:
                _begin(run)
            _experiment(run.recipe, folder, device, reporter)
    except (RecipeError, WriteError):  # a full disk is full for the others too
        raise
    except (TrainingError, ValueError) as error:  # ValueError: what was trained cannot be evaluated
        return str(error)
    except (
        Exception
    ) as error:  # of a class that the recipe names, of the disk or memory: the other runs go on
        text = out_of_memory(error) or " ".join(f"{type(error).__name__}: {error}".splitlines()[:1])
        if not (folder / "recipe.yaml").exists():  # nothing of it is there yet: its folder is to stay free
            return text
        write_text(report, traceback.format_exc())
        return f"{text} (see {report})"
    return None


def _experiment(recipe: Recipe, folder: Path, device: str, reporter: Reporter) -> None:
    resume = (folder / "recipe.yaml").exists()
    run_experiment(recipe, folder, device=device, resume=resume, reporter=reporter)


def _begin(run: PlannedRun) -> None:
    """Make the run's folder as it is after the shared stages; take away what a run leaves that was killed earlier."""
    folder = run.folder
    if folder.exists():
        with claimed(folder, resume=False):
            (folder / "recipe.yaml.partial").unlink(missing_ok=True)
        folder.rmdir()
    if run.shared is None:
        return
    try:
        checkpoint.load(run.source / "checkpoint" / LAST)
    except ValueError as error:
        raise ValueError(f"{error}; remove {run.source} to train the shared stages anew") from None
    new = folder.with_name(f".{folder.name}.new")
    if new.exists():
        shutil.rmtree(new)
    for name in (f"checkpoint/{LAST}", "metrics.jsonl"):
        with replacing(new / name) as file:
            file.write((run.source / name).read_bytes())
    write_text(new / "recipe.yaml", run.recipe.to_yaml())
    new.rename(folder)
    settle(folder.parent)
