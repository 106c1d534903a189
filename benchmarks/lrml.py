"""LRMLLoss, mining and loss, forward and backward, against PML's BatchHardMiner with TripletMarginLoss and against
ContrastiveLoss; and RankedNegativeMiner alone. Batches of B embeddings of D numbers, four images a class.
"""

from collections.abc import Callable
from functools import partial

import torch
from _cases import Case, Sides
from _tables import alone
from pddm import batch
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor

from dr_plugin.losses import LRMLLoss
from dr_plugin.miners import RankedNegativeMiner

Loss = Callable[[Tensor, Tensor], Tensor]
HARD, CONTRASTIVE = "PML TripletMarginLoss with BatchHardMiner", "PML ContrastiveLoss"

FULL = {"batch_sizes": [128, 512], "embedding_size": 128, "batch_curve": [128, 256, 512, 1024]}
QUICK = {"batch_sizes": [16], "embedding_size": 8, "batch_curve": [8, 16, 32]}


def losses() -> dict[str, Loss]:
    """What is timed, by name; each mines what it needs."""
    hard, triplet, ranked, given = BatchHardMiner(), TripletMarginLoss(), RankedNegativeMiner(), LRMLLoss()
    return {
        HARD: lambda x, labels: triplet(x, labels, hard(x, labels)),
        CONTRASTIVE: ContrastiveLoss(),
        "LRMLLoss": LRMLLoss(),
        "LRMLLoss by image": LRMLLoss(per_class=False),
        "LRMLLoss with RankedNegativeMiner": lambda x, labels: given(x, labels, ranked(x, labels)),
        "LRMLLoss, every positive": LRMLLoss(positive="every"),
    }


def step_sides(what: str, against: str, *, B: int, D: int, device: torch.device) -> Sides:
    embeddings, labels = batch(B, D, device)

    def step(name: str) -> Callable[[], object]:
        loss_func = losses()[name]
        return lambda: torch.autograd.grad(loss_func(embeddings, labels), embeddings)

    return Sides(step(what), step(against))


def miner_sides(*, B: int, D: int, device: torch.device) -> Sides:
    embeddings, labels = batch(B, D, device)
    theirs = partial(BatchHardMiner(), embeddings, labels)
    return Sides(partial(RankedNegativeMiner(), embeddings, labels), theirs)


def cases(*, batch_sizes: list[int], embedding_size: int, batch_curve: list[int]) -> list[Case]:
    ours = [name for name in losses() if name not in (HARD, CONTRASTIVE)]
    pairs = [(name, HARD) for name in ours] + [("LRMLLoss", CONTRASTIVE)]
    found, miners = [], []
    for B in batch_sizes:
        sizes = {"B": B, "D": embedding_size}
        for what, against in pairs:
            found.append(Case("losses", what, against, partial(step_sides, what, against), sizes, peak=True))
        miners.append(Case("miners", "RankedNegativeMiner", "PML BatchHardMiner", miner_sides, sizes))
    return found + miners + found[0].curve("B", batch_curve) + miners[0].curve("B", batch_curve)


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
