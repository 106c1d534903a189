"""DeepRankingLoss against PML's TripletMarginLoss(distance=LpDistance(power=2)) on the same T triplets of B
embeddings of D numbers of C classes: forward and backward, time and peak memory. The recipes train with batches of 100
and 512 and 8 triplets a query.
"""

from collections.abc import Callable

import torch
from _cases import Case, Sides
from _tables import alone
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss

from dr_plugin.losses import DeepRankingLoss

CLASSES = 20  # but for the curve along C

FULL = {
    "batch_size": 4096,
    "triplets": [4096, 40960],
    "recipe_batches": [100, 512],
    "per_query": 8,
    "embedding_sizes": [128, 512],
    "batch_curve": [128, 256, 512, 1024, 2048, 4096],
    "class_curve": [8, 32, 128],
}
QUICK = {
    "batch_size": 32,
    "triplets": [64],
    "recipe_batches": [12],
    "per_query": 2,
    "embedding_sizes": [8],
    "batch_curve": [16, 32, 64],
    "class_curve": [2, 3, 4],
}


def sides(*, B: int, T: int, D: int, C: int, device: torch.device) -> Sides:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(B, D, generator=generator).to(device).requires_grad_()
    labels = torch.arange(B, device=device) % C
    indices = tuple(torch.randint(B, (3, T), generator=generator).to(device).unbind())

    def step(loss_func: torch.nn.Module) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss_func(embeddings, labels, indices), embeddings)

    ours = DeepRankingLoss(0.2)
    theirs = TripletMarginLoss(margin=0.2, distance=LpDistance(power=2))
    return Sides(step(ours), step(theirs))


def cases(
    *,
    batch_size: int,
    triplets: list[int],
    recipe_batches: list[int],
    per_query: int,
    embedding_sizes: list[int],
    batch_curve: list[int],
    class_curve: list[int],
) -> list[Case]:
    def case(B: int, T: int, D: int) -> Case:
        sizes = {"B": B, "T": T, "D": D, "C": CLASSES}
        return Case("losses", "DeepRankingLoss", "PML TripletMarginLoss", sides, sizes, peak=True)

    shapes = [(B, B * per_query) for B in recipe_batches] + [(batch_size, T) for T in triplets]
    found = [case(*shape, D) for shape in shapes for D in embedding_sizes]
    growing = [case(B, B * per_query, embedding_sizes[0]) for B in (*batch_curve, recipe_batches[-1])]
    return found + [point.point("B") for point in growing[:-1]] + growing[-1].curve("C", class_curve)


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
