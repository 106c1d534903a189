"""Which images an epoch's batches hold, drawn whole before its first step."""

import copy
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler


class EpochOrder:
    """The batches of each epoch, from any sampler; a last batch that is not whole is left out, as PML does.

    A sampler with ``set_epoch`` is told the epoch; one with a ``state_dict`` goes on from where it is; any other starts
    each epoch from a copy of what it was at first, but draws on from ``generator`` if it holds one.

    Args:
        sampler: A sampler of indices, a ``BatchSampler``, or None to shuffle.
        images: Number of images, N.
        batch_size: Images in a batch; a ``BatchSampler`` has its own.
        seed: Of ``generator``, whose state belongs into a checkpoint.
    """

    def __init__(self, sampler: Any, images: int, batch_size: int, seed: int) -> None:
        self.sampler, self.images, self.batch_size = sampler, images, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def batches_per_epoch(self) -> int:
        """Number of whole batches."""
        if isinstance(self.sampler, BatchSampler):
            return len(self.sampler)
        return (self.images if self.sampler is None else len(self.sampler)) // self.batch_size

    def batches(self, epoch: int) -> list[torch.Tensor]:
        """The batches of ``epoch`` as index tensors (B,)."""
        sampler = self.sampler
        if sampler is None:
            return self._whole(torch.randperm(self.images, generator=self.generator))
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        elif not hasattr(sampler, "state_dict"):
            sampler = self._fresh_copy()
        if isinstance(sampler, BatchSampler):
            return [torch.as_tensor(batch) for batch in sampler]
        return self._whole(
            torch.as_tensor(np.asarray(list(sampler)))
        )  # of a list of numpy's numbers it is slow

    def _whole(self, order: torch.Tensor) -> list[torch.Tensor]:
        return list(order.split(self.batch_size))[: len(order) // self.batch_size]

    def _fresh_copy(self) -> Any:
        """A copy of the sampler as it was at first, but drawing on from a generator that checkpoints keep."""
        holders = (self.sampler, getattr(self.sampler, "sampler", None))  # a BatchSampler holds another
        generators = (getattr(holder, "generator", None) for holder in holders)
        memo = {id(one): self.generator for one in generators if isinstance(one, torch.Generator)}
        return copy.deepcopy(self.sampler, memo)
