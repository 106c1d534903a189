"""DeepRankingLoss against PML's TripletMarginLoss(distance=LpDistance(power=2)) on the same T triplets of B
embeddings of D numbers: forward and backward, time and peak memory.
"""

from collections.abc import Callable

import torch
from _cases import Case, Sides
from _tables import alone
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss

from dr_plugin.losses import DeepRankingLoss

FULL = {
    "batch_size": 4096,
    "triplets": [4096, 40960],
    "embedding_sizes": [128, 512],
    "batch_curve": [512, 1024, 2048, 4096],
}
QUICK = {"batch_size": 32, "triplets": [64], "embedding_sizes": [8], "batch_curve": [16, 32, 64]}


def sides(*, B: int, T: int, D: int, device: torch.device) -> Sides:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(B, D, generator=generator).to(device).requires_grad_()
    labels = torch.arange(B, device=device) % 200
    indices = tuple(torch.randint(B, (3, T), generator=generator).to(device).unbind())

    def step(loss_func: torch.nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss_func(embeddings, labels, indices), embeddings)

    ours = DeepRankingLoss(0.2)
    theirs = TripletMarginLoss(margin=0.2, distance=LpDistance(power=2))
    return Sides(step(ours), step(theirs))


def cases(
    *, batch_size: int, triplets: list[int], embedding_sizes: list[int], batch_curve: list[int]
) -> list[Case]:
    found = [
        Case(
            "losses",
            "DeepRankingLoss",
            "PML TripletMarginLoss",
            sides,
            {"B": batch_size, "T": T, "D": D},
            peak=True,
        )
        for T in triplets
        for D in embedding_sizes
    ]
    return found + found[0].curve("B", batch_curve)


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
