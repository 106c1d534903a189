"""A loss on the joined batch of several processes, mined once and alike on all of them."""

from typing import Any

import torch
from torch import Tensor, nn

from dr_plugin import distributed
from dr_plugin.checks import shown


class GatheredLoss(nn.Module):
    """The loss, and the miner, of the batches of all processes together, which stand in the order of their ranks.

    Takes the place of PML's `DistributedLossWrapper` and `DistributedMinerWrapper` where these would differ between the
    processes. They put a process's own rows first: the order differs, so that a miner that draws at random picks other
    triplets on each, and a memory holds other embeddings. Here all see one order; with the same seed everywhere they
    mine the same triplets, and the weights of all processes get the gradient that one process would compute from the
    joined batch. Embeddings and labels are exchanged once, not once for the miner and again for the loss.

    The trunk, and the loss itself where it has weights, belong in DistributedDataParallel. Batches may differ in size
    between the processes. Alone, the loss of the own batch.

    Args:
        loss: Any PML loss or memory.
        miner: Any PML miner; None: none.
    Shape:
        embeddings (B, D), labels (B,) of this process -> scalar, the same on all processes.
    Raises:
        ValueError: if loss or miner is no module, or `indices_tuple` is given: it can only mean this process's rows.
    Example:
        >>> loss = GatheredLoss(DeepRankingLoss(gap=0.2), UniformTripletMiner(seed=0))  # doctest: +SKIP
        >>> MetricLossOnly(models={"trunk": DistributedDataParallel(trunk)}, loss_funcs={"metric_loss": loss}, ...)
        ... # doctest: +SKIP
    """

    def __init__(self, loss: nn.Module, miner: nn.Module | None = None) -> None:
        for name, module in (("loss", loss), ("miner", miner)):
            if not isinstance(module, nn.Module) and not (name == "miner" and module is None):
                raise ValueError(f"{name}: got {shown(module)}, expected one of PML's")
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: Tensor, labels: Tensor, indices_tuple: Any = None) -> Tensor:
        """The loss of all processes' batches."""
        if indices_tuple is not None:
            raise ValueError(
                "indices_tuple: got one, expected None: it means the rows of one process; give GatheredLoss the miner"
            )
        sizes = distributed.sizes_of(embeddings)
        labels = distributed.gather_rows(torch.as_tensor(labels, device=embeddings.device), sizes)
        embeddings = distributed.gather_rows(embeddings, sizes)
        found = None if self.miner is None else self.miner(embeddings, labels)
        loss: Tensor = self.loss(embeddings, labels, found)
        return loss
