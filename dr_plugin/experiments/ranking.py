"""The ranking stage, on the trainer's loop."""

import torch
from pytorch_metric_learning.trainers import MetricLossOnly

from .trainer import StageTrainer


class RankingTrainer(StageTrainer, MetricLossOnly):
    """PML's ``MetricLossOnly``, miner and metric loss included, on the loop above.

    A miner with a method ``observe`` and a relevance is told which images of the data set each batch holds.
    """

    def take_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The step's images and labels, their indices made known to a miner that asks for them."""
        miner = self.mining_funcs.get("tuple_miner")
        if getattr(miner, "relevance", None) is not None and hasattr(miner, "observe"):
            miner.observe(self.batches[self.iteration])
        return super().take_batch()

    @property
    def triplet_counters(self) -> dict[str, int]:
        """What the sampler, or else the miner, has counted of its triplets since the stage began; may be empty."""
        for part in (self.sampler, self.mining_funcs.get("tuple_miner")):
            if counters := getattr(part, "counters", None):
                return dict(counters)
        return {}
