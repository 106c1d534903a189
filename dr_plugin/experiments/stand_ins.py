"""What a recipe's parts are checked with in the place of what only a run can give them."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dr_plugin.triplets.relevances import Indices


class StandInRelevance:
    """A relevance over 4 classes of 8 images each, none as relevant as another."""

    labels = torch.arange(4).repeat(8)

    def __len__(self) -> int:
        return len(self.labels)

    def pairs(self, i: Indices, j: Indices) -> npt.NDArray[np.float32]:
        """Less the farther apart the two images stand in their class."""
        same = self.labels.numpy()[i] == self.labels.numpy()[j]
        return np.asarray(same / (1 + abs(i - j)), dtype=np.float32)

    def total(self, i: Indices) -> npt.NDArray[np.float64]:
        """Sum over the class."""
        every = np.arange(len(self))
        return np.array([self.pairs(np.full_like(every, one), every).sum() - 1.0 for one in i])


def relevance_of_samples(first: Any, second: Any) -> Any:
    """Stands for what the run knows of two samples of a stream."""
    return np.ones(len(first), np.float32)
