"""LRMLLoss, mining and loss, forward and backward, against PML's BatchHardMiner with TripletMarginLoss and against
ContrastiveLoss; and RankedNegativeMiner alone. Batches of B embeddings of D numbers, of C classes of equal size: four
images each, but for the curves along C.
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

FULL = {
    "batch_sizes": [128, 512],
    "embedding_size": 128,
    "batch_curve": [128, 256, 512, 1024],
    "class_curve": [8, 16, 32, 64],
}
QUICK = {"batch_sizes": [16], "embedding_size": 8, "batch_curve": [8, 16, 32], "class_curve": [2, 4, 8]}


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


def step_sides(what: str, against: str, *, B: int, D: int, C: int, device: torch.device) -> Sides:
    embeddings, labels = batch(B, D, C, device)

    def step(name: str) -> Callable[[], object]:
        loss_func = losses()[name]
        return lambda: torch.autograd.grad(loss_func(embeddings, labels), embeddings)

    return Sides(step(what), step(against))


def miner_sides(*, B: int, D: int, C: int, device: torch.device) -> Sides:
    embeddings, labels = batch(B, D, C, device)
    theirs = partial(BatchHardMiner(), embeddings, labels)
    return Sides(partial(RankedNegativeMiner(), embeddings, labels), theirs)


def cases(
    *, batch_sizes: list[int], embedding_size: int, batch_curve: list[int], class_curve: list[int]
) -> list[Case]:
    def step(what: str, against: str, B: int) -> Case:
        sizes = {"B": B, "D": embedding_size, "C": B // 4}
        return Case("losses", what, against, partial(step_sides, what, against), sizes, peak=True)

    def miner(B: int) -> Case:
        sizes = {"B": B, "D": embedding_size, "C": B // 4}
        return Case("miners", "RankedNegativeMiner", "PML BatchHardMiner", miner_sides, sizes)

    ours = [name for name in losses() if name not in (HARD, CONTRASTIVE)]
    pairs = [(name, HARD) for name in ours] + [("LRMLLoss", CONTRASTIVE)]
    found = [step(*pair, B) for B in batch_sizes for pair in pairs] + [miner(B) for B in batch_sizes]
    for make in (partial(step, "LRMLLoss", HARD), miner):
        found += [make(B).point("B") for B in batch_curve]
        found += make(batch_sizes[0]).curve("C", class_curve)
    return found


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
