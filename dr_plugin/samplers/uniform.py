"""Batches of uniform triplets of a data set."""

import torch
from torch import Tensor

from dr_plugin.checks import check_whole, check_whole_or_none
from dr_plugin.samplers.packaged import (
    Labels,
    PackagedTripletSampler,
    RandomBits,
    as_classes,
    check_batch_size,
    checksum,
)
from dr_plugin.triplets import UniformTriplets


class UniformTripletSampler(PackagedTripletSampler):
    """Batches of uniform triplets: a flat list query, positive, negative, query, ... of a data set's indices.

    The query is uniform over the images that have a positive, the positive uniform over the other images of
    its class, the negative uniform over all images of the other classes; all draws are independent. For PML's
    `MetricLossOnly(sampler=...)` with the miner `EmbeddingsAlreadyPackagedAsTriplets`.

    Batch b of epoch e depends on (seed, e, b) and the labels only, and can be had directly: `batch(e, b)`.
    Each pass gives one epoch and the next pass the next one, so no `set_epoch` is needed.

    To resume: loader workers ask for batches well ahead of the training, so where in which epoch the training
    is only its loop can say. It takes `epoch, start = sampler.position` before each pass, and saves
    `sampler.state_dict(epoch, start + batches_trained_on)` in the middle of one, or `state_dict()` between
    two.

    Args:
        labels: The data set's classes, in its order; any integers.
        batch_size: Images a batch, three for each triplet: a positive multiple of 3.
        batches_per_epoch: Batches an epoch; None: as many as it takes to draw as many images as there are.
        seed: At least 0.
    Shape:
        labels (N,) -> lists of batch_size ints.
    Raises:
        ValueError: if labels are not 1-D integers, are empty, hold one class only or no class with two
            images, or if another argument is out of range.
    Example:
        >>> sampler = UniformTripletSampler([0, 0, 1, 1, 1], batch_size=6, seed=0)
        >>> len(sampler), [len(batch) for batch in sampler]
        (1, [6])
    """

    def __init__(
        self,
        labels: Labels,
        *,
        batch_size: int,
        batches_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        batch_size = check_batch_size(batch_size)
        classes = as_classes(labels)
        self._triplets = UniformTriplets(classes)
        batches_per_epoch = check_whole_or_none("batches_per_epoch", batches_per_epoch, minimum=1)
        if batches_per_epoch is None:
            batches_per_epoch = -(-len(classes) // batch_size)
        super().__init__(
            len(classes),
            batch_size=batch_size,
            batches_per_epoch=batches_per_epoch,
            seed=seed,
            same={"labels_crc32": checksum(classes)},
        )
        if len(self._triplets.queries) == 0:
            raise ValueError(_why_no_query(classes))

    def batch(self, epoch: int, index: int) -> list[int]:
        """Batch `index` of `epoch`: query, positive, negative, query, ..."""
        epoch, index = check_whole("epoch", epoch, minimum=0), check_whole("index", index, minimum=0)
        bits = RandomBits(self.seed, epoch, index)((3, self.batch_size // 3))
        queries = self._triplets.draw_queries(bits[0])
        positives, negatives = self._triplets.draw(queries, bits[1:])
        batch: list[int] = torch.stack((queries, positives, negatives), dim=1).flatten().tolist()
        return batch


def _why_no_query(labels: Tensor) -> str:
    if len(labels.unique()) == 1:
        return f"labels: got one class only ({int(labels[0])}), expected at least two: there are no negatives"
    return f"labels: got {len(labels)} images, no two of one class, expected some: there are no positives"
