"""The images of a run: train and val packed, cut to the wanted classes, with the selection images set apart."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler

from dr_plugin import distributed
from dr_plugin.datasets import BatchAugment, PackedImages
from dr_plugin.relevance.features import HOG

from . import build
from .cache import packed_folder
from .offline import check_triplets, triplets_of
from .recipe import Augment, RankingStage, Recipe, RecipeError
from .relevance import RunRelevance, load_relevance
from .streaming import open_stream
from .unseen import unseen_images

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class RunData:
    """The images of a run; labels 0..C-1 are those of the classes kept, in their old order.

    ``train`` holds all training images, of which ``fit`` (indices) are trained on and ``selection`` choose
    checkpoints; ``val`` is only reported. Its classes are those of ``train``, but other ones, with labels and names of
    their own, under ``evaluation.gallery: val``. ``relevance`` is over the images of ``fit``, in that order, and
    ``triplets`` (T, 3), where the data set brings some, number them.
    """

    train: PackedImages
    val: PackedImages
    fit: torch.Tensor
    selection: torch.Tensor
    class_names: list[str]
    relevance: RunRelevance | None = None
    triplets: torch.Tensor | None = None

    @property
    def num_classes(self) -> int:
        """C, the number of classes trained on."""
        return len(self.class_names)


def load_data(recipe: Recipe, progress: Progress | None = None) -> RunData:
    """Build the recipe's data set twice (train, val), keep its classes and pack both.

    Raises:
        RecipeError: if the classes asked for are not there, a class is too small for the selection, or the
            recipe asks for more than the data have (see `check_data`), or trains on rated triplets.
        ValueError: from the data set itself.
    """
    sources: dict[str, Any] = {
        split: build.build_dataset(recipe, split, progress) for split in ("train", "val")
    }
    check_triplets(recipe, sources["train"], progress)
    class_ids = sources["train"].class_ids
    kept = kept_classes(recipe, class_ids)
    chosen = {"train": (sources["train"], kept), "val": (sources["val"], kept)}
    if recipe.evaluation.gallery == "val":
        chosen["val"] = unseen_images(recipe, sources["train"], sources["val"], kept)
    elif sources["val"].class_ids != class_ids:
        raise ValueError(
            "train and val hold different classes; expected the same classes in both, or evaluation.gallery: val"
        )
    packed = {}
    for split, (source, labels) in chosen.items():
        indices = np.flatnonzero(np.isin(source.labels, labels))
        folder = packed_folder(recipe, split)
        whole = PackedImages.build(
            source, folder, size=recipe.data.packed_size, indices=indices, progress=progress
        )
        packed[split] = whole.select_classes(labels)
    fit, selection = _split_selection(recipe, packed["train"].labels, len(kept))
    relevance = load_relevance(recipe, packed["train"].subset(fit), progress)
    names, triplets = packed["train"].class_names, triplets_of(sources["train"])
    data = RunData(packed["train"], packed["val"], fit, selection, names, relevance, triplets)
    check_data(recipe, data)
    return data


def check_data(recipe: Recipe, data: RunData) -> None:
    """Find what would fail for want of images or pixels only after hours of training.

    Raises:
        RecipeError: with every fault, one a line: neighbours asked for that no gallery has, a baseline that the
            images are too small for, a stage without one whole batch, a sampler that refuses the labels, a stream
            that gives nothing.
    """
    lines = _too_many_neighbors(recipe, data) + _impossible_baselines(recipe, data)
    for index in range(len(recipe.stages)):
        lines += _no_share(recipe, index) or _no_whole_batch(recipe, index, data) + _no_stream(
            recipe, index, data
        )
    if lines:
        raise RecipeError(*lines)


def batch_augment(recipe: Recipe, augment: Augment | None = None) -> BatchAugment:
    """The recipe's batch preparation; ``augment`` overrides the recipe's own, as a stage may."""
    chosen = augment if augment is not None else recipe.data.augment
    crop = chosen.random_resized_crop
    return BatchAugment(
        recipe.data.image_size,
        pixel_shift=chosen.pixel_shift,
        horizontal_flip=chosen.horizontal_flip,
        random_resized_crop=crop.model_dump() if crop is not None else None,
        mean=recipe.data.normalize.mean,
        std=recipe.data.normalize.std,
        memory_format=torch.channels_last if recipe.channels_last else torch.contiguous_format,
    )


def kept_classes(recipe: Recipe, class_ids: list[str]) -> list[int]:
    """Labels of the classes the recipe asks for, ascending."""
    wanted = recipe.data.classes
    if wanted is None:
        return list(range(len(class_ids)))
    if isinstance(wanted, int):
        if wanted > len(class_ids):
            raise RecipeError(
                f"data.classes: got {wanted}, expected at most {len(class_ids)}, the data set's classes"
            )
        return list(range(wanted))
    unknown = [name for name in wanted if name not in class_ids]
    if unknown:
        raise RecipeError(
            f"data.classes: got {unknown[0]!r}, expected class ids of the data set such as {', '.join(class_ids[:3])}"
        )
    return sorted(class_ids.index(name) for name in wanted)


def _split_selection(
    recipe: Recipe, labels: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of the training images to fit and of the selection images, a number a class drawn from the seed."""
    number = recipe.data.selection
    generator = torch.Generator().manual_seed(recipe.seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        members = torch.nonzero(labels == label).flatten()
        if number and len(members) < number + 2:
            raise RecipeError(
                f"data.selection: got {number} images a class, but class {label} has {len(members)} training images; "
                "expected at least two more than the selection"
            )
        chosen[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return torch.nonzero(~chosen).flatten(), torch.nonzero(chosen).flatten()


def _too_many_neighbors(recipe: Recipe, data: RunData) -> list[str]:
    """k and K that the smallest gallery of the run's evaluations cannot give."""
    settings = recipe.evaluation
    galleries = {"the training images": len(data.train)}
    if settings.gallery == "val":
        galleries = {"the val images without the query": len(data.val) - 1}
    if settings.train:
        galleries["the training images without the query"] = len(data.train) - 1
    if len(data.selection) and any(stage.evaluate_every for stage in recipe.stages):
        galleries["the training images without the selection"] = len(data.fit)
    what, most = min(galleries.items(), key=lambda item: item[1])
    asked = [("k", settings.k)] + [("recall_at", number) for number in settings.recall_at]
    lines = [
        f"evaluation.{key}: got {number}, expected at most {most}, {what}"
        for key, number in asked
        if number > most
    ]
    first = next(iter(galleries))  # which val ranks, and alone is re-ranked
    if settings.rerank is not None and settings.rerank > galleries[first]:
        lines.append(
            f"evaluation.rerank: got {settings.rerank}, expected at most {galleries[first]}, {first}"
        )
    return lines


def _impossible_baselines(recipe: Recipe, data: RunData) -> list[str]:
    """Baselines on the stored pixels that these images do not allow."""
    descriptor = HOG()
    least = descriptor.cell_size * descriptor.block_size
    sizes = data.train.image_size, data.val.image_size
    lines = []
    for name in recipe.evaluation.baselines:
        if name == "untrained":
            continue
        where = f"evaluation.baselines: got {name}"
        if sizes[0] != sizes[1]:
            shown = " and ".join("{} x {}".format(*size) for size in sizes)
            lines.append(
                f"{where}, expected train and val images of one size, not {shown}; set data.packed_size"
            )
        elif name == "hog" and min(sizes[0]) < least:
            shown = "{} x {}".format(*sizes[0])
            lines.append(f"{where}, expected stored images of at least {least} x {least} pixels, not {shown}")
    return lines


def _no_stream(recipe: Recipe, index: int, data: RunData) -> list[str]:
    """A stage whose stream cannot be opened, or gives no first batch (a budget too small for one image, say)."""
    stage = recipe.stages[index]
    if not isinstance(stage, RankingStage) or stage.stream is None:
        return []
    stored = data.relevance.stored if data.relevance is not None else None
    try:
        open_stream(recipe, stage, data.train.subset(data.fit), stored)
        next(iter(open_stream(recipe, stage, data.train.subset(data.fit), stored, alone=True)))
    except RecipeError as error:
        return error.lines
    except ValueError as error:
        return [f"stages[{index}].stream: {error}"]
    return []


def _no_share(recipe: Recipe, index: int) -> list[str]:
    """A batch that the processes cannot divide among them."""
    stage, count = recipe.stages[index], distributed.world_size()
    where = f"stages[{index}].batch_size: got {stage.batch_size} on {count} processes, expected"
    if isinstance(stage, RankingStage) and stage.stream is not None and stage.batch_size % (3 * count):
        return [f"{where} a multiple of {3 * count}: each streams whole triplets"]
    return [f"{where} at least {count}, an image for each"] if stage.batch_size < count else []


def _no_whole_batch(recipe: Recipe, index: int, data: RunData) -> list[str]:
    """A stage that could not fill one batch, or whose sampler refuses the images to fit."""
    stage, images = recipe.stages[index], len(data.fit)
    what = "the images to train on"
    if isinstance(stage, RankingStage) and stage.sampler is not None:
        try:
            stored = data.relevance.stored if data.relevance is not None else None
            sampler: Any = build.build_sampler(
                stage, data.train.labels[data.fit], recipe, stored, data.triplets
            )
        except RecipeError as error:
            return error.lines
        if isinstance(sampler, BatchSampler):
            return []
        images, what = len(sampler), f"what {stage.sampler.type} gives an epoch"
    if stage.batch_size <= images:
        return []
    return [f"stages[{index}].batch_size: got {stage.batch_size}, expected at most {images}, {what}"]
