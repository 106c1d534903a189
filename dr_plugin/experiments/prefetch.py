"""The next batch, read in a thread while the present one is worked on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch

Batch = tuple[torch.Tensor, torch.Tensor]


class Prefetch:
    """Reads batches by their indices, one ahead where it is told which comes next.

    Args:
        read: Gives a batch for its indices; what it raises is raised when the batch is taken.
    """

    def __init__(self, read: Callable[[torch.Tensor], Batch]) -> None:
        self._read = read
        self._pool = ThreadPoolExecutor(1, "prefetch")
        self._ahead: tuple[torch.Tensor, Future[Batch]] | None = None

    def take(self, indices: torch.Tensor, following: torch.Tensor | None = None) -> Batch:
        """The batch of these indices; that of the ``following`` ones, if any, is begun."""
        ahead, self._ahead = self._ahead, None
        batch = ahead[1].result() if ahead is not None and ahead[0] is indices else self._read(indices)
        if following is not None:
            self._ahead = following, self._pool.submit(self._read, following)
        return batch
