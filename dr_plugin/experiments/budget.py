"""How many images a run will see, as far as its recipe and data tell before it is trained."""

import math

from . import build
from .data import RunData
from .epoch_order import EpochOrder
from .recipe import RankingStage, Recipe, Stage
from .streaming import open_stream


def images_planned(recipe: Recipe, data: RunData) -> int:
    """Images that all stages of the recipe will see, limits included."""
    return sum(stage.batch_size * _steps(recipe, stage, data) for stage in recipe.stages)


def max_steps(recipe: Recipe, stage: Stage) -> int | None:
    """Steps at which the recipe's limits end the stage; None where it has none."""
    limits = recipe.limits
    images = None if limits.images is None else math.ceil(limits.images / stage.batch_size)
    return min((limit for limit in (limits.steps, images) if limit is not None), default=None)


def _steps(recipe: Recipe, stage: Stage, data: RunData) -> int:
    whole = stage.epochs * _batches_per_epoch(recipe, stage, data)
    limit = max_steps(recipe, stage)
    return whole if limit is None else min(whole, limit)


def _batches_per_epoch(recipe: Recipe, stage: Stage, data: RunData) -> int:
    sampler = None
    if isinstance(stage, RankingStage):
        relevance = data.relevance.stored if data.relevance is not None else None
        if stage.stream is not None:
            return len(open_stream(recipe, stage, data.train.subset(data.fit), relevance))
        labels = data.train.labels[data.fit]
        sampler = build.build_sampler(stage, labels, recipe, relevance, data.triplets)
    return EpochOrder(sampler, len(data.fit), stage.batch_size, 0).batches_per_epoch
