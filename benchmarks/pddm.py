"""PDDM: all similarities of a batch against one broadcast over all pairs, and a step against BatchHard + triplets."""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable

import torch
from _harness import machine_line, median_ratio, paired, peak_memory, table
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils.checkpoint import checkpoint

from dr_plugin.losses import PDDMLoss, PDDMUnit
from dr_plugin.miners import HardQuadrupletMiner


def broadcast(unit: PDDMUnit, x: Tensor) -> Tensor:
    """The unit's matrix as its equations read, on (B, B, D) tensors."""
    x = normalize(x)
    u = normalize(unit.difference((x[:, None] - x[None]).abs()).relu(), dim=2)
    v = normalize(unit.position((x[:, None] + x[None]) / 2).relu(), dim=2)
    return unit.similarity(unit.joint(torch.cat([u, v], dim=2)).relu()).squeeze(2)


def matrix(name: str, batch_size: int, size: int, gradient: bool) -> Callable[[], object]:
    """All similarities of a batch, with or without the gradient."""
    torch.manual_seed(0)
    unit, x = PDDMUnit(size), torch.randn(batch_size, size, requires_grad=gradient)
    function = unit.matrix if name == "ours" else lambda x: broadcast(unit, x)

    def run() -> object:
        with torch.set_grad_enabled(gradient):
            similarities = function(x)
        return torch.autograd.grad(similarities.sum(), [x, *unit.parameters()]) if gradient else similarities

    return run


def step(name: str, batch_size: int, size: int) -> Callable[[], object]:
    """Mining and loss, forward and backward, of a batch of four images a class."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(batch_size, size, requires_grad=True), torch.arange(batch_size) // 4
    loss_func = TripletMarginLoss() if name == "BatchHard" else PDDMLoss(size)
    if isinstance(loss_func, TripletMarginLoss):
        miner = BatchHardMiner()
    else:
        count = {"quadruplet": 1, "8 quadruplets": 8}.get(name, 1)
        kind = "triplet" if name == "triplet" else "quadruplet"
        miner = HardQuadrupletMiner(loss_func.unit, quadruplets=count, kind=kind)
    leaves = [embeddings, *loss_func.parameters()]
    return lambda: torch.autograd.grad(loss_func(embeddings, labels, miner(embeddings, labels)), leaves)


def fresh_peak(name: str, batch_size: int, size: int, gradient: bool) -> int:
    """Bytes the first pass needs, in this process: one that has run nothing before keeps no freed memory."""
    function = matrix(name, batch_size, size, gradient)
    matrix(name, 4, size, gradient)()  # what the libraries allocate once is not the unit's
    checkpoint(torch.sin, torch.ones(1), use_reentrant=False)  # imports its own needs at the first call
    return peak_memory(function)


def matrices(arguments: argparse.Namespace) -> str:
    rows = []
    for batch_size in arguments.batch_sizes:
        for gradient in (False, True):
            sizes = (batch_size, arguments.embedding_size, gradient)
            functions = {name: matrix(name, *sizes) for name in ("ours", "broadcast")}
            seconds, peak = paired(functions, arguments.repeats), {}
            for name in functions:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    peak[name] = pool.apply(fresh_peak, (name, *sizes))
            rows.append(
                (
                    batch_size,
                    "yes" if gradient else "no",
                    *(f"{statistics.median(seconds[name]) * 1e3:.1f}" for name in functions),
                    f"{median_ratio(seconds['broadcast'], seconds['ours']):.1f}",
                    *(f"{peak[name] / 2**20:.0f}" for name in functions),
                    f"{peak['broadcast'] / max(1, peak['ours']):.1f}",
                )
            )
    header = ["B", "gradient", "ours, ms", "broadcast, ms", "broadcast / ours", "ours, MiB", "broadcast, MiB"]
    return table(rows, [*header, "broadcast / ours"])


def steps(arguments: argparse.Namespace) -> str:
    names = ("BatchHard", "quadruplet", "8 quadruplets", "triplet")
    rows = []
    for batch_size in arguments.batch_sizes:
        functions = {name: step(name, batch_size, arguments.embedding_size) for name in names}
        seconds = paired(functions, arguments.repeats)
        times = (f"{statistics.median(seconds[name]) * 1e3:.1f}" for name in names)
        ratios = (f"{median_ratio(seconds[name], seconds['BatchHard']):.1f}" for name in names[1:])
        rows.append((batch_size, *times, *ratios))
    header = [f"{name}, ms" for name in names] + [f"{name} / BatchHard" for name in names[1:]]
    return table(rows, ["B", *header])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--embedding-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    print(machine_line())
    print(f"\nAll similarities of a batch, D = {arguments.embedding_size}\n")
    print(matrices(arguments))
    print("\nMining and loss, forward and backward, four images a class; BatchHard: with TripletMarginLoss\n")
    print(steps(arguments))


if __name__ == "__main__":
    main()
