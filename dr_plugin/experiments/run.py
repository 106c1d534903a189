"""One experiment from recipe to report, in a folder that holds all it takes to repeat, resume and judge it."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dr_plugin import distributed
from dr_plugin.atomic import write_json, write_text

from . import checkpoint
from .assemble import initial_trunk
from .conclude import Result, conclude
from .context import Context, data_signature
from .data import load_data
from .environment import environment, pick_device
from .journal import Journal, Reporter, SilentJournal, SilentReporter
from .recipe import Recipe, RecipeError
from .stage import StageRun


def run_experiment(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    reporter: Reporter | None = None,
) -> Result:
    """Train the recipe's stages, evaluate, and write the report into ``folder``.

    Where torch.distributed is initialised, all its processes call this alike and train together, each on a device of
    its own; rank 0 alone reads and writes the folder, and all get the result.

    Args:
        recipe: A validated recipe.
        folder: The run's folder; must not hold a run yet, unless ``resume``.
        device: "auto" (a GPU where there is one) or a torch device.
        resume: Go on from ``folder/checkpoint/last.pt``, to the same numbers as an uninterrupted run.
        reporter: Shows progress; None shows nothing.
    Raises:
        ValueError: if the folder, device or data do not fit.
        TrainingError: if the loss or a weight is no longer finite.
    """
    if recipe.kind != "experiment":
        raise RecipeError(
            f"{recipe.name}: got a {recipe.kind}, expected one experiment; run_{recipe.kind} runs {recipe.kind}s"
        )
    reporter = reporter if reporter is not None and distributed.is_first() else SilentReporter()
    chosen = pick_device(device)
    if recipe.sync_batchnorm and distributed.world_size() > 1 and chosen.type == "cpu":
        raise RecipeError("sync_batchnorm: got true on CPUs, expected false: PyTorch has it for GPUs alone")
    state = distributed.from_first(_checked_folder(folder, resume) if distributed.is_first() else None)
    with distributed.first_here_goes_first():  # it fills the caches for the others
        data = load_data(recipe, reporter.update)
    if state is not None and state["data"] != data_signature(data):
        raise RecipeError(f"--resume: the data set is not the one that {folder} was started with")
    journal = _open_folder(recipe, folder, chosen, state, resume)
    # The shapes of a run do not change: let cuDNN look for its fastest convolutions.
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        context = Context(recipe, folder, data, chosen, reporter, journal)
        trunk = initial_trunk(recipe)
        stages = _train(context, trunk, state)
        return conclude(context, trunk, stages)
    finally:
        torch.backends.cudnn.benchmark = benchmark
        journal.close()


def _open_folder(
    recipe: Recipe, folder: Path, device: torch.device, state: dict[str, Any] | None, resume: bool
) -> Journal | SilentJournal:
    """Write what the run begins with, and open its journal; rank 0's work."""
    if not distributed.is_first():
        return SilentJournal()
    if not resume:  # only after the data: a recipe whose data are not there leaves no folder behind
        write_text(folder / "recipe.yaml", recipe.to_yaml())
    settings: dict[str, Any] = {"seed": recipe.seed, "precision": recipe.precision}
    if distributed.world_size() > 1:
        settings["processes"] = distributed.world_size()
    write_json(folder / "environment.json", environment(device, **settings))
    size, seconds = (state["journal_size"], state["seconds"]) if state else (0, 0.0)
    return Journal(folder, size=size, tensorboard=recipe.tensorboard, seconds=seconds)


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """The folder of the run of this name with this seed."""
    return folder / "runs" / f"{name}-seed{seed}"


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end, which is its report."""
    return (folder / "metrics.json").is_file() and (folder / "report" / "report.html").is_file()


def _checked_folder(folder: Path, resume: bool) -> dict[str, Any] | None:
    """The checkpoint to resume from; None starts from scratch, in a folder that is seen to be free."""
    if resume:
        if not (folder / "recipe.yaml").is_file():
            raise RecipeError(
                f"--resume: {folder} holds no recipe.yaml, expected the folder of an earlier run"
            )
        last = folder / "checkpoint" / "last.pt"
        if not last.exists() and (folder / "metrics.json").exists():  # to start anew would cost what is there
            raise RecipeError(
                f"--resume: {folder} holds a finished run without last.pt, as a sweep leaves it"
            )
        return checkpoint.load(last) if last.exists() else None
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RecipeError(
            f"--output: {folder} is not empty; choose another folder, or go on with --resume {folder}"
        )
    return None


def _train(context: Context, trunk: nn.Module, state: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Run the stages that are left; gives the summaries of all."""
    first, finished = 0, []
    if state is not None:
        first, finished = state["stage"], list(state["finished"])
        trunk.load_state_dict(state["models"]["trunk"])
        context.reporter.note(f"resuming at stage {min(first + 1, len(context.recipe.stages))}")
    for index in range(first, len(context.recipe.stages)):
        in_the_middle = state is not None and index == first and "position" in state
        StageRun(context, index, trunk, finished).run(state if in_the_middle else None)
    return finished
