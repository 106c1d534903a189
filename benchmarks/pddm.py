"""PDDM: all similarities of a batch against one broadcast over all pairs; mining and loss, forward and backward,
against PML's BatchHardMiner and TripletMarginLoss; and the miner alone. Batches of B embeddings of D numbers, of C
classes of equal size: four images each, but for the curves along C.
"""

from collections.abc import Callable
from functools import partial

import torch
from _cases import Case, Sides
from _tables import alone
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor
from torch.nn.functional import normalize

from dr_plugin.losses import PDDMLoss, PDDMUnit
from dr_plugin.miners import HardQuadrupletMiner

FULL = {
    "batch_sizes": [128, 256],
    "embedding_size": 128,
    "batch_curve": [64, 128, 256, 512],
    "class_curve": [8, 16, 32, 64],
}
QUICK = {"batch_sizes": [16], "embedding_size": 8, "batch_curve": [8, 16, 32], "class_curve": [2, 4, 8]}

ALL_PAIRS = "one broadcast over all pairs"
HARD_LOSS = "PML TripletMarginLoss with BatchHardMiner"
KINDS = {
    "one quadruplet": {},
    "8 quadruplets": {"quadruplets": 8},
    "hard triplets": {"kind": "triplet"},
}


def broadcast(unit: PDDMUnit, x: Tensor) -> Tensor:
    """The unit's matrix as its equations read, on (B, B, D) tensors."""
    x = normalize(x)
    u = normalize(unit.difference((x[:, None] - x[None]).abs()).relu(), dim=2)
    v = normalize(unit.position((x[:, None] + x[None]) / 2).relu(), dim=2)
    return unit.similarity(unit.joint(torch.cat([u, v], dim=2)).relu()).squeeze(2)


def batch(B: int, D: int, C: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D), for which gradients are wanted, and labels (B,) of C classes."""
    embeddings = torch.randn(B, D, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    return embeddings, torch.arange(B, device=device) * C // B


def matrix_sides(gradient: bool, *, B: int, D: int, device: torch.device) -> Sides:
    """All similarities of a batch, with or without the gradient."""
    torch.manual_seed(0)
    unit, (x, _) = PDDMUnit(D).to(device), batch(B, D, 1, device)

    def run(matrix: Callable[[Tensor], Tensor]) -> object:
        with torch.set_grad_enabled(gradient):
            similarities = matrix(x)
        return torch.autograd.grad(similarities.sum(), [x, *unit.parameters()]) if gradient else similarities

    return Sides(partial(run, unit.matrix), partial(run, partial(broadcast, unit)))


def step_sides(kind: str, *, B: int, D: int, C: int, device: torch.device) -> Sides:
    """Mining and loss, forward and backward."""
    torch.manual_seed(0)
    embeddings, labels = batch(B, D, C, device)
    ours, theirs = PDDMLoss(D).to(device), TripletMarginLoss()

    def step(loss_func: torch.nn.Module, miner: torch.nn.Module) -> Callable[[], object]:
        leaves = [embeddings, *loss_func.parameters()]
        return lambda: torch.autograd.grad(loss_func(embeddings, labels, miner(embeddings, labels)), leaves)

    miner = HardQuadrupletMiner(ours.unit, **KINDS[kind])
    return Sides(step(ours, miner), step(theirs, BatchHardMiner()))


def miner_sides(kind: str, *, B: int, D: int, C: int, device: torch.device) -> Sides:
    torch.manual_seed(0)
    embeddings, labels = batch(B, D, C, device)
    ours = HardQuadrupletMiner(PDDMUnit(D).to(device), **KINDS[kind])
    return Sides(partial(ours, embeddings, labels), partial(BatchHardMiner(), embeddings, labels))


def cases(
    *, batch_sizes: list[int], embedding_size: int, batch_curve: list[int], class_curve: list[int]
) -> list[Case]:
    def sizes(B: int) -> dict[str, int]:
        return {"B": B, "D": embedding_size, "C": B // 4}

    def matrix(gradient: bool, B: int) -> Case:
        what, make = (
            f"PDDMUnit.matrix, {'with' if gradient else 'no'} gradient",
            partial(matrix_sides, gradient),
        )
        return Case("losses", what, ALL_PAIRS, make, {"B": B, "D": embedding_size}, peak=True)

    def step(kind: str, B: int) -> Case:
        what, make = f"PDDMLoss with HardQuadrupletMiner, {kind}", partial(step_sides, kind)
        return Case("losses", what, HARD_LOSS, make, sizes(B), peak=True)

    def miner(kind: str, B: int) -> Case:
        what, make = f"HardQuadrupletMiner, {kind}", partial(miner_sides, kind)
        return Case("miners", what, "PML BatchHardMiner", make, sizes(B))

    found = []
    for B in batch_sizes:
        found += [matrix(gradient, B) for gradient in (False, True)]
        found += [make(kind, B) for make in (step, miner) for kind in KINDS]
    for make in (step, miner):
        found += [make("one quadruplet", B).point("B") for B in batch_curve]
        found += make("one quadruplet", batch_sizes[0]).curve("C", class_curve)
    return found


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
