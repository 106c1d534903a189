"""PDDM: all similarities of a batch against one broadcast over all pairs; mining and loss, forward and backward,
against PML's BatchHardMiner and TripletMarginLoss; and the miner alone. Batches of B embeddings of D numbers, four
images a class.
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

FULL = {"batch_sizes": [128, 256], "embedding_size": 128, "batch_curve": [64, 128, 256, 512]}
QUICK = {"batch_sizes": [16], "embedding_size": 8, "batch_curve": [8, 16, 32]}

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


def batch(B: int, D: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D), for which gradients are wanted, and labels (B,)."""
    embeddings = torch.randn(B, D, generator=torch.Generator().manual_seed(0)).to(device).requires_grad_()
    return embeddings, torch.arange(B, device=device) // 4


def matrix_sides(gradient: bool, *, B: int, D: int, device: torch.device) -> Sides:
    """All similarities of a batch, with or without the gradient."""
    torch.manual_seed(0)
    unit, (x, _) = PDDMUnit(D).to(device), batch(B, D, device)

    def run(matrix: Callable[[Tensor], Tensor]) -> object:
        with torch.set_grad_enabled(gradient):
            similarities = matrix(x)
        return torch.autograd.grad(similarities.sum(), [x, *unit.parameters()]) if gradient else similarities

    return Sides(partial(run, unit.matrix), partial(run, partial(broadcast, unit)))


def step_sides(kind: str, *, B: int, D: int, device: torch.device) -> Sides:
    """Mining and loss, forward and backward."""
    torch.manual_seed(0)
    embeddings, labels = batch(B, D, device)
    ours, theirs = PDDMLoss(D).to(device), TripletMarginLoss()

    def step(loss_func: torch.nn.Module, miner: torch.nn.Module) -> Callable[[], object]:
        leaves = [embeddings, *loss_func.parameters()]
        return lambda: torch.autograd.grad(loss_func(embeddings, labels, miner(embeddings, labels)), leaves)

    miner = HardQuadrupletMiner(ours.unit, **KINDS[kind])
    return Sides(step(ours, miner), step(theirs, BatchHardMiner()))


def miner_sides(kind: str, *, B: int, D: int, device: torch.device) -> Sides:
    torch.manual_seed(0)
    embeddings, labels = batch(B, D, device)
    ours = HardQuadrupletMiner(PDDMUnit(D).to(device), **KINDS[kind])
    return Sides(partial(ours, embeddings, labels), partial(BatchHardMiner(), embeddings, labels))


def cases(*, batch_sizes: list[int], embedding_size: int, batch_curve: list[int]) -> list[Case]:
    found, miners, loss = [], [], "PDDMLoss with HardQuadrupletMiner"
    for B in batch_sizes:
        sizes = {"B": B, "D": embedding_size}
        for gradient in (False, True):
            what = f"PDDMUnit.matrix, {'with' if gradient else 'no'} gradient"
            against = "one broadcast over all pairs"
            found.append(Case("losses", what, against, partial(matrix_sides, gradient), sizes, peak=True))
        for kind in KINDS:
            against, make = "PML TripletMarginLoss with BatchHardMiner", partial(step_sides, kind)
            found.append(Case("losses", f"{loss}, {kind}", against, make, sizes, peak=True))
            what, make = f"HardQuadrupletMiner, {kind}", partial(miner_sides, kind)
            miners.append(Case("miners", what, "PML BatchHardMiner", make, sizes))
    step = next(case for case in found if case.what.startswith(loss))
    return found + miners + step.curve("B", batch_curve) + miners[0].curve("B", batch_curve)


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
