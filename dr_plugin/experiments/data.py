"""The images of a run: train and val packed, cut to the wanted classes, with the selection images set apart."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch

from dr_plugin.datasets import BatchAugment, PackedImages

from . import build
from .recipe import Augment, Recipe, RecipeError

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class RunData:
    """The images of a run; labels 0..C-1 are those of the classes kept, in their old order.

    ``train`` holds all training images, of which ``fit`` (indices) are trained on and ``selection`` choose
    checkpoints; ``val`` is only reported.
    """

    train: PackedImages
    val: PackedImages
    fit: torch.Tensor
    selection: torch.Tensor
    class_names: list[str]

    @property
    def num_classes(self) -> int:
        """C, the number of classes kept."""
        return len(self.class_names)


def load_data(recipe: Recipe, progress: Progress | None = None) -> RunData:
    """Build the recipe's data set twice (train, val), keep its classes and pack both.

    Raises:
        RecipeError: if the classes asked for are not there or a class is too small for the selection.
        ValueError: from the data set itself.
    """
    sources: dict[str, Any] = {split: build.build_dataset(recipe, split) for split in ("train", "val")}
    class_ids = _class_ids(recipe, sources["train"])
    if _class_ids(recipe, sources["val"]) != class_ids:
        raise ValueError("train and val hold different classes; expected the same classes in both")
    kept = _kept_classes(recipe, class_ids)
    packed = {}
    for split, source in sources.items():
        indices = np.flatnonzero(np.isin(_labels(source), kept))
        folder = _cache_folder(recipe, split)
        whole = PackedImages.build(
            source, folder, size=recipe.data.packed_size, indices=indices, progress=progress
        )
        packed[split] = whole.select_classes(kept)
    fit, selection = _split_selection(recipe, packed["train"].labels, len(kept))
    return RunData(packed["train"], packed["val"], fit, selection, packed["train"].class_names)


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


def _labels(source: Any) -> Any:
    """The labels of a data set's images, which torchvision calls targets."""
    return source.labels if hasattr(source, "labels") else source.targets


def _class_ids(recipe: Recipe, source: Any) -> list[str]:
    """The data set's own names of its classes, in the order of their labels; their numbers where it has none."""
    for name in ("class_ids", "classes"):
        if hasattr(source, name):
            return [str(value) for value in getattr(source, name)]
    if not hasattr(source, "labels") and not hasattr(source, "targets"):
        raise RecipeError(
            f"{recipe.data.dataset.place}: {recipe.data.dataset.type} has neither labels nor targets; expected a "
            "data set with a list of its images' labels"
        )
    return [str(label) for label in range(int(np.max(_labels(source))) + 1)]


def _kept_classes(recipe: Recipe, class_ids: list[str]) -> list[int]:
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


def _cache_folder(recipe: Recipe, split: str) -> Path:
    """Where the packed images lie: one folder for each thing that is packed, shared by all runs that need it."""
    data = recipe.data
    root = (
        Path(data.cache) if data.cache is not None else platformdirs.user_cache_path("dr_plugin") / "packed"
    )
    what = json.dumps(
        [data.dataset.model_dump(), data.classes, data.packed_size], sort_keys=True, default=str
    )
    return root / f"{data.dataset.type}-{split}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"


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
