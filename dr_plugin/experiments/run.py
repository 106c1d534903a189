"""One experiment from recipe to report, in a folder that holds all it takes to repeat, resume and judge it."""

from contextlib import ExitStack
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import nn

from dr_plugin import distributed
from dr_plugin.atomic import give_name, write_json, write_text

from . import checkpoint
from .assemble import initial_trunk
from .claim import claimed
from .conclude import Result, conclude
from .context import LAST, PREVIOUS, Context, data_signature
from .data import load_data
from .environment import environment, pick_device
from .journal import Journal, Reporter, SilentJournal, SilentReporter
from .launched import forget_launch, note_launch
from .recipe import Recipe, RecipeError
from .stage import StageRun


def run_experiment(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "auto",
    resume: bool = False,
    previous: bool = False,
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
        previous: Go on from the checkpoint before that one, which is then the last; where that one is damaged.
        reporter: Shows progress; None shows nothing.
    Raises:
        ValueError: if the folder, device or data do not fit, or another process works in the folder.
        WriteError: if something cannot be written; what was written before is good to go on from.
        KeyboardInterrupt: at an interrupt; within training after the step's end, when the checkpoint is written.
        TrainingError: if the loss or a weight is no longer finite.
    """
    if recipe.kind != "experiment":
        raise RecipeError(
            f"{recipe.name}: got a {recipe.kind}, expected one experiment; run_{recipe.kind} runs {recipe.kind}s"
        )
    distributed.check_group()
    reporter = reporter if reporter is not None and distributed.is_first() else SilentReporter()
    chosen = pick_device(device)
    if recipe.sync_batchnorm and distributed.world_size() > 1 and chosen.type == "cpu":
        raise RecipeError("sync_batchnorm: got true on CPUs, expected false: PyTorch has it for GPUs alone")
    with ExitStack() as stack:
        claim = claimed(folder, resume, note=reporter.note)
        distributed.done_by_first(lambda: stack.enter_context(claim))
        return _run(recipe, folder, chosen, resume, previous, reporter)


def run_folder(folder: Path, name: str, seed: int) -> Path:
    """The folder of the run of this name with this seed."""
    return folder / "runs" / f"{name}-seed{seed}"


def is_finished(folder: Path) -> bool:
    """Whether a run came to its end, which is its report."""
    return (folder / "metrics.json").is_file() and (folder / "report" / "report.html").is_file()


def _run(
    recipe: Recipe, folder: Path, device: torch.device, resume: bool, previous: bool, reporter: Reporter
) -> Result:
    """The run, in a folder that is this process's alone."""
    state = distributed.done_by_first(lambda: _checkpoint(folder, previous)) if resume else None
    with distributed.first_here_goes_first():  # it fills the caches for the others
        data = load_data(recipe, reporter.update)
    if state is not None and state["data"] != data_signature(data):
        raise RecipeError(f"--resume: the data set is not the one that {folder} was started with")
    if not resume:  # only now: a recipe whose data are not there leaves no folder behind
        distributed.done_by_first(lambda: _begin(recipe, folder))
    elif previous:
        distributed.done_by_first(lambda: _put_back(folder, reporter))
    if resume:  # a process that is lost from here on goes on from the last checkpoint, whatever was asked for
        distributed.done_by_first(lambda: note_launch(folder))
    journal = _open_journal(recipe, folder, state, reporter)
    # The shapes of a run do not change: let cuDNN look for its fastest convolutions.
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        context = Context(recipe, folder, data, device, reporter, journal)
        distributed.done_by_first(lambda: _write_environment(recipe, folder, device))
        trunk = initial_trunk(recipe)
        stages = _train(context, trunk, state)
        result = conclude(context, trunk, stages)
        distributed.from_all(None)  # one that is lost before all are done is started again
        if distributed.is_first():
            for path in (
                context.previous,
                context.previous_best,
            ):  # of use only while the last may be damaged
                path.unlink(missing_ok=True)
            forget_launch(folder)
        return result
    finally:
        torch.backends.cudnn.benchmark = benchmark
        journal.close()


def _begin(recipe: Recipe, folder: Path) -> None:
    note_launch(folder)  # first: a folder that holds it alone counts as empty
    write_text(folder / "recipe.yaml", recipe.to_yaml())


def _put_back(folder: Path, reporter: Reporter) -> None:
    """Make the checkpoint before the last the last, so that the next one does not push it out."""
    give_name(folder / "checkpoint" / PREVIOUS, folder / "checkpoint" / LAST)
    reporter.note("going on from the checkpoint before the last")


def _open_journal(
    recipe: Recipe, folder: Path, state: dict[str, Any] | None, reporter: Reporter
) -> Journal | SilentJournal:
    """Rank 0's journal, where it was at the checkpoint; the others write none."""
    opened: list[Journal | SilentJournal] = [SilentJournal()]

    def open_it() -> None:
        size, seconds = (state["journal_size"], state["seconds"]) if state else (0, 0.0)
        opened[0] = journal = Journal(folder, size=size, tensorboard=recipe.tensorboard, seconds=seconds)
        if journal.missing:
            reporter.note(
                f"{journal.path}: {journal.missing:,} bytes are missing; the records that are there are kept"
            )

    distributed.done_by_first(open_it)
    return opened[0]


def _write_environment(recipe: Recipe, folder: Path, device: torch.device) -> None:
    settings: dict[str, Any] = {"seed": recipe.seed, "precision": recipe.precision}
    if distributed.world_size() > 1:
        settings["processes"] = distributed.world_size()
    write_json(folder / "environment.json", environment(device, **settings))


def _checkpoint(folder: Path, previous: bool) -> dict[str, Any] | None:
    """The checkpoint to go on from; None of a run that was ended before its first."""
    last, before = (folder / "checkpoint" / name for name in (LAST, PREVIOUS))
    if not last.exists() and (folder / "metrics.json").exists():  # to start anew would cost what is there
        raise RecipeError(f"--resume: {folder} holds a finished run without {LAST}, as a sweep leaves it")
    if previous:
        _check_damaged(last)
        return checkpoint.load(before)
    if not last.exists() and not before.exists():
        return None
    try:
        return checkpoint.load(last)
    except ValueError as error:
        raise ValueError(f"{error}; {_way_out(folder, before)}") from None


def _check_damaged(last: Path) -> None:
    """See that going on from the checkpoint before the last gives nothing up that is whole."""
    try:
        checkpoint.load(last)
    except ValueError:
        return
    raise RecipeError(
        f"--previous: {last} is whole, and what was trained since the one before it would be lost: leave --previous "
        f"out; or, to lose it, move {last.name} away"
    )


def _way_out(folder: Path, before: Path) -> str:
    """What can be done where the last checkpoint is damaged."""
    try:
        checkpoint.load(before)
    except ValueError:
        return "there is no whole one before it: start anew in another folder"
    return f"the one before it is whole: go on from there with --resume {quote(str(folder))} --previous"


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
