"""A ranking stage whose triplets come from a stream of shards instead of a sampler over the data set."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dr_plugin import distributed
from dr_plugin.datasets import PackedImages
from dr_plugin.triplets import Relevance

from . import build
from .cache import derived_folder
from .epoch_order import EpochOrder
from .ranking import RankingTrainer
from .recipe import RankingStage, Recipe

Progress = Callable[[str, int, int | None], None]
_SHARD = 1000  # images, unless that made fewer shards than there may be processes
_SHARDS = 64


class StreamTrainer(RankingTrainer):
    """Takes its batches from a `TripletStream`; an epoch is as many batches as the stream gives.

    Of several processes each streams its own part of the images, and brings its share of a batch's triplets.

    Args:
        stream: Gives this process's (images uint8 (b, 3, H, W), labels (b,)), and can be set to any batch of any epoch.
        stage: The arguments of ``StageTrainer``.
    """

    def __init__(self, *, stream: Any, **stage: Any) -> None:
        self.stream = stream
        self._running: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None
        # A resumed stream counts its epoch again from the epoch's start: what was counted until then is kept here.
        self._counted_before: dict[str, int] = {}
        self._at_epoch_start: dict[str, int] = {}
        super().__init__(**stage)
        self.order = _StreamOrder(stream, int(self.batch_size))
        self.steps_per_epoch = self.order.batches_per_epoch

    def take_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The next batch of the stream, which goes on in the middle of an epoch after a resume."""
        if self.iteration == 0:
            self._at_epoch_start = self.triplet_counters
        if self._running is None or self.iteration == 0:
            self.stream.set_epoch(self.epoch, self.iteration)
            self._running = iter(self.stream)
        images, labels = next(self._running)
        return images, distributed.gather_rows(labels, distributed.shares(self.batch_images))

    @property
    def triplet_counters(self) -> dict[str, int]:
        """What the streams of all processes have counted since the stage began."""
        found = distributed.from_all(self.stream.counters)
        return {
            name: sum(one[name] for one in found) + self._counted_before.get(name, 0) for name in found[0]
        }

    def state_dict(self) -> dict[str, Any]:
        """As of every stage, and what the stream has counted."""
        between = self.batches_done == 0  # epochs
        counted = self.triplet_counters if between else self._at_epoch_start
        return {**super().state_dict(), "counted": counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        super().load_state_dict(state)
        self._counted_before = self._at_epoch_start = dict(state["counted"])


class _StreamOrder(EpochOrder):
    """How many batches an epoch has; which images they hold only the stream knows."""

    def __init__(self, stream: Any, batch_size: int) -> None:
        super().__init__(None, len(stream) * batch_size, batch_size, seed=0)
        self._places = torch.arange(batch_size)

    def batches(self, epoch: int) -> list[torch.Tensor]:
        """Places in the batch, for want of indices."""
        return [self._places] * self.batches_per_epoch


def open_stream(
    recipe: Recipe,
    stage: RankingStage,
    images: PackedImages,
    relevance: Relevance | None,
    progress: Progress | None = None,
    *,
    alone: bool = False,
) -> Any:
    """Write the images as shards, where that is not done yet, and open them as the stage's stream.

    As if there were no other process if ``alone``: what others share with it cannot be read without them.
    """
    from dr_plugin.datasets import write_shards

    where = write_shards(
        images,
        images.labels,
        derived_folder(recipe, "shards"),
        relevance=relevance,
        features=np.arange(len(images), dtype=np.int64)[:, None],  # a sample brings its index: see `ByIndex`
        images_per_shard=max(1, min(_SHARD, len(images) // _SHARDS)),
        seed=recipe.seed,
        progress=progress,
    )
    pairs = None if relevance is None else ByIndex(relevance)
    return build.build_stream(stage, recipe, where, pairs, alone=alone)


class ByIndex:
    """r(i, j) of samples whose feature is their index in the data set."""

    def __init__(self, relevance: Relevance) -> None:
        self.relevance = relevance

    def __call__(self, first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """(n, 1), (n, 1) -> (n,)."""
        return self.relevance.pairs(first[:, 0].astype(np.int64), second[:, 0].astype(np.int64))
