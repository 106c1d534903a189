"""Training from a file of triplets: what a recipe may do with them, and the guard of the rated ones."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from dr_plugin.datasets import RatedTripletsError, SimilarityTriplets, refuse_rated
from dr_plugin.samplers import OfflineTripletSampler

from . import build
from .families import find
from .recipe import RankingStage, Recipe, RecipeError, Slot

Progress = Callable[[str, int, int | None], None]


def triplets_of(source: Any) -> torch.Tensor | None:
    """The triplets (T, 3) that a data set brings along for a sampler, as indices of its images."""
    return torch.from_numpy(source.triplets) if isinstance(source, SimilarityTriplets) else None


def check_triplets(recipe: Recipe, source: Any, progress: Progress | None = None) -> None:
    """Refuse what a recipe may not train on, before anything is packed.

    Args:
        recipe: The recipe.
        source: Its data set's training split.
        progress: Is told of the images that are looked at.
    Raises:
        RecipeError: if the data set or a stage's sampler holds triplets of the paper's rated evaluation set; or
            if a sampler of offline triplets, which number the training split's images, would be given others.
    """
    lines = []
    if isinstance(source, SimilarityTriplets):
        try:
            source.refuse_rated()
        except RatedTripletsError as error:
            lines.append(f"{recipe.data.dataset.place}: {error}")
    for stage, slot in _offline(recipe):
        lines += _renumbered(recipe, stage) or _rated(recipe, stage, slot, source, progress)
    if lines:
        raise RecipeError(*lines)


def _offline(recipe: Recipe) -> Iterator[tuple[RankingStage, Slot]]:
    """The stages with a sampler of offline triplets."""
    for stage in recipe.stages:
        if not isinstance(stage, RankingStage) or stage.sampler is None:
            continue
        if issubclass(find("sampler", stage.sampler.type), OfflineTripletSampler):
            yield stage, stage.sampler


def _renumbered(recipe: Recipe, stage: RankingStage) -> list[str]:
    """What would leave images out, so that a triplet's numbers would mean others."""
    data, why = recipe.data, f"the triplets of stage {stage.name} number all images of the training split"
    lines = []
    if data.selection:
        lines.append(f"data.selection: got {data.selection}, expected 0: {why}")
    if data.classes is not None:
        lines.append(f"data.classes: got a choice, expected null: {why}")
    return lines


def _rated(
    recipe: Recipe, stage: RankingStage, slot: Slot, source: Any, progress: Progress | None
) -> list[str]:
    """The sampler's own triplets, where these are rated or the sampler refuses them."""
    if "triplets" not in slot.arguments:
        return []  # the data set's: already looked at
    try:
        sampler: Any = build.build_sampler(stage, torch.as_tensor(source.labels), recipe)
        refuse_rated(lambda index: source[index][0], sampler.triplets, progress=progress)
    except RecipeError as error:
        return error.lines
    except RatedTripletsError as error:
        return [f"{slot.place}.triplets: {error}"]
    return []
