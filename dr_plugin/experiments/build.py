"""From a recipe's slots to objects, with what only the run knows put in."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Sampler

from dr_plugin import distributed
from dr_plugin.triplets import Relevance

from .families import find
from .foreign_datasets import is_pml, name_as_ours, not_unpacked
from .problems import Problem, RecipeError, dotted
from .schema import RankingStage, Recipe, Slot
from .slots import BuildError, Supply, plan

Progress = Callable[[str, int, int | None], None]


def build_dataset(recipe: Recipe, split: str, progress: Progress | None = None) -> Any:
    """The recipe's data set; ``split`` is ``"train"`` or ``"val"``, which other families call ``"test"``.

    A data set that takes ``progress``, as ours do that can be downloaded, is given it.

    Raises:
        RecipeError: as all functions here, if the slot's class refuses its arguments.
    """
    return dataset_of(recipe.data.dataset, split, progress)


def dataset_of(slot: Slot, split: str, progress: Progress | None = None) -> Any:
    """A slot's data set; see `build_dataset`."""
    try:
        dataset: Any = _build("dataset", slot, dataset_supply(slot, split, progress))
    except RecipeError as error:
        reason = error.__cause__ and error.__cause__.__cause__
        if isinstance(reason, FileNotFoundError) and is_pml(find("dataset", slot.type)):
            raise not_unpacked(slot, reason) from error
        raise
    name_as_ours(slot, dataset)
    return dataset


def build_feature(slot: Slot) -> Any:
    """A hand-crafted feature's transformer, not yet fitted."""
    return _build("feature", slot, Supply())


def build_trunk(recipe: Recipe) -> nn.Module:
    """The recipe's trunk, with new weights or those that its slot names."""
    trunk: nn.Module = _build("trunk", recipe.trunk, trunk_supply(recipe))
    return trunk


def build_relevance(recipe: Recipe, cache: Path) -> Any:
    """The recipe's relevance, not yet fitted; ``cache`` is where it may keep features."""
    if recipe.relevance is None:
        raise ValueError("the recipe has no relevance, expected one")
    return relevance_of(recipe.relevance, cache, recipe.seed)


def relevance_of(slot: Slot, cache: Path, seed: int) -> Any:
    """A slot's relevance; see `build_relevance`."""
    return _build("relevance", slot, Supply({"cache": cache, "seed": seed}))


def build_sampler(
    stage: RankingStage,
    labels: Tensor,
    recipe: Recipe,
    relevance: Relevance | None = None,
    triplets: Tensor | None = None,
) -> Sampler[Any] | None:
    """The stage's sampler of the images with these labels (N,); None where the recipe leaves it out."""
    if stage.sampler is None:
        return None
    supply = sampler_supply(stage, labels, recipe, relevance, triplets)
    sampler: Sampler[Any] = _build("sampler", stage.sampler, supply)
    return sampler


def build_stream(
    stage: RankingStage, recipe: Recipe, source: Any, pair_relevance: Any, *, alone: bool = False
) -> Any:
    """The stage's stream of triplets, of all processes or as if this one were ``alone``; None where there is none."""
    if stage.stream is None:
        return None
    return _build("stream", stage.stream, stream_supply(stage, recipe, source, pair_relevance, alone=alone))


def build_miner(
    stage: RankingStage,
    recipe: Recipe,
    relevance: Relevance | None = None,
    unit: nn.Module | None = None,
) -> nn.Module | None:
    """The stage's miner, by the similarity unit of its loss where it takes one; None where there is no slot."""
    if stage.miner is None:
        return None
    miner: nn.Module = _build("miner", stage.miner, miner_supply(recipe, relevance, unit))
    return miner


def build_loss(stage: RankingStage, num_classes: int, embedding_size: int) -> nn.Module:
    """The stage's loss for embeddings (B, embedding_size) of so many classes."""
    loss: nn.Module = _build("loss", stage.loss, loss_supply(num_classes, embedding_size))
    return loss


def unit_of(loss: nn.Module) -> tuple[str, nn.Module | None]:
    """The similarity unit of a loss, or of the first loss inside it that has one, and its name there; ("", None)."""
    for name, module in loss.named_modules():
        if isinstance(unit := getattr(module, "unit", None), nn.Module) and hasattr(unit, "candidates"):
            return f"{name}.unit".lstrip("."), unit
    return "", None


def no_unit(rerank: int, loss: str) -> str:
    """What is wrong with re-ranking by a loss that has no unit."""
    return f"got {rerank}, expected null: the last stage's loss, {loss}, has no similarity unit, as PDDMLoss has one"


def build_optimizer(slot: Slot, params: Iterable[Any]) -> Optimizer:
    """The optimizer of these parameters, or parameter groups."""
    optimizer: Optimizer = _build("optimizer", slot, Supply({"params": params}))
    return optimizer


def build_scheduler(slot: Slot, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The scheduler of ``optimizer`` that will be stepped ``total_steps`` times."""
    scheduler: LRScheduler = _build("scheduler", slot, scheduler_supply(slot, optimizer, total_steps))
    planned = getattr(scheduler, "total_steps", None)
    if isinstance(planned, int) and planned < total_steps:
        raise RecipeError(
            f"{slot.place}: got a schedule of {planned} steps, expected at least the stage's {total_steps}; "
            "leave total_steps, epochs and steps_per_epoch out to have it fit"
        )
    return scheduler


def dataset_supply(slot: Slot, split: str, progress: Progress | None = None) -> Supply:
    """``split`` in the words of the class: PML's say test for val, torchvision's may ask ``train=True``."""
    other = is_pml(find("dataset", slot.type)) and split == "val"
    values = {"split": "test" if other else split, "train": split == "train"}
    return Supply(values if progress is None else {**values, "progress": progress})


def trunk_supply(recipe: Recipe) -> Supply:
    """The size of the images that the trunk will see."""
    return Supply({"input_size": recipe.data.image_size}, {"input_size": "as data.image_size"})


def sampler_supply(
    stage: RankingStage,
    labels: Tensor,
    recipe: Recipe,
    relevance: Relevance | None = None,
    triplets: Tensor | None = None,
) -> Supply:
    """An epoch is as long as the data set, also for PML's samplers, whose own default is 100,000 images."""
    values: dict[str, Any] = {
        "labels": labels,
        "data_source": labels,
        "batch_size": stage.batch_size,
        "length_before_new_iter": len(labels),
        "seed": recipe.seed,
        "generator": torch.Generator().manual_seed(recipe.seed),
    }
    known = {"relevance": relevance, "triplets": triplets}
    values |= {name: value for name, value in known.items() if value is not None}
    return Supply(values, lacking=_LACKING)


def stream_supply(
    stage: RankingStage, recipe: Recipe, source: Any, pair_relevance: Any, *, alone: bool = False
) -> Supply:
    """Where the samples of a stream come from, and how relevant two of them are to each other."""
    own = stage.batch_size // (1 if alone else distributed.world_size())  # each process streams its share
    values = {"source": source, "batch_size": own, "seed": recipe.seed}
    if alone:
        values |= {"rank": 0, "world_size": 1}
    return Supply({**values, "pair_relevance": pair_relevance, "size": recipe.data.packed_size})


def miner_supply(recipe: Recipe, relevance: Relevance | None, unit: nn.Module | None = None) -> Supply:
    """The run's relevance, but for a slot that says ``relevance: null``; the loss's unit as ``similarity``."""
    known = {"relevance": relevance, "similarity": unit}
    given = {name: value for name, value in known.items() if value is not None}
    return Supply({"seed": recipe.seed, **given}, lacking=_LACKING)


_LACKING = {
    "relevance": "a relevance, which the run gives where the recipe has the section relevance",
    "similarity": "the similarity unit of the stage's loss, which PDDMLoss has",
    "triplets": "a file of triplets, or data.dataset: SimilarityTriplets, which brings its own",
}


def loss_supply(num_classes: int, embedding_size: int) -> Supply:
    """The sizes of what a loss with weights of its own will see."""
    values = {"num_classes": num_classes, "embedding_size": embedding_size}
    return Supply(
        values, {"num_classes": "the number of classes", "embedding_size": "the trunk's embedding_size"}
    )


def scheduler_supply(slot: Slot, optimizer: Optimizer, total_steps: int) -> Supply:
    """The whole stage as the schedule's length, and the optimizer's own learning rates as the highest."""
    values: dict[str, Any] = {
        "optimizer": optimizer,
        "T_max": total_steps,
        "max_lr": [float(group["lr"]) for group in optimizer.param_groups],
    }
    # OneCycleLR would ignore these two beside total_steps.
    if not {"epochs", "steps_per_epoch"} & slot.arguments.keys():
        values["total_steps"] = total_steps
    return Supply(values)


def _build(kind: str, slot: Slot, supply: Supply) -> Any:
    problems: list[Problem] = []
    part = plan(kind, {"type": slot.type, **slot.arguments}, (), supply, problems)
    try:
        if part is not None:
            return part.build()
    except BuildError as error:
        problems.append(error.problem)
        raise _error(slot, problems) from error
    raise _error(slot, problems)


def _error(slot: Slot, problems: list[Problem]) -> RecipeError:
    lines = []
    for item in problems:
        inner = f".{dotted(item.key)}" if item.key else ""
        lines.append(f"{slot.place}{inner}: {item.text}")
    return RecipeError(*lines)
