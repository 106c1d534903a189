"""LRML: mining and loss, forward and backward, against PML's BatchHardMiner + TripletMarginLoss and ContrastiveLoss."""

import argparse
import statistics
from collections.abc import Callable

import torch
from _harness import machine_line, median_ratio, paired, table
from pytorch_metric_learning.losses import ContrastiveLoss, TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from torch import Tensor

from dr_plugin.losses import LRMLLoss
from dr_plugin.miners import RankedNegativeMiner

Loss = Callable[[Tensor, Tensor], Tensor]


def losses() -> dict[str, Loss]:
    """What is timed, by name; each mines what it needs."""
    hard, triplet, ranked, given = BatchHardMiner(), TripletMarginLoss(), RankedNegativeMiner(), LRMLLoss()
    return {
        "BatchHard": lambda x, labels: triplet(x, labels, hard(x, labels)),
        "Contrastive": ContrastiveLoss(),
        "LRML": LRMLLoss(),
        "LRML by image": LRMLLoss(per_class=False),
        "LRML, miner": lambda x, labels: given(x, labels, ranked(x, labels)),
        "LRML, every positive": LRMLLoss(positive="every"),
    }


def step(loss_func: Loss, batch_size: int, size: int, device: str) -> Callable[[], object]:
    """One of a batch of four images a class."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(batch_size, size, generator=generator).to(device).requires_grad_()
    labels = torch.arange(batch_size, device=device) // 4
    return lambda: torch.autograd.grad(loss_func(embeddings, labels), embeddings)


def steps(arguments: argparse.Namespace) -> str:
    rows = []
    for batch_size in arguments.batch_sizes:
        functions = {
            name: step(loss_func, batch_size, arguments.embedding_size, arguments.device)
            for name, loss_func in losses().items()
        }
        seconds = paired(functions, arguments.repeats)
        times = (f"{statistics.median(seconds[name]) * 1e3:.1f}" for name in functions)
        ratios = (
            f"{median_ratio(seconds['LRML'], seconds[name]):.2f}" for name in ("BatchHard", "Contrastive")
        )
        rows.append((batch_size, *times, *ratios))
    header = [f"{name}, ms" for name in losses()]
    return table(rows, ["B", *header, "LRML / BatchHard", "LRML / Contrastive"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--embedding-size", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print(machine_line())
    print(f"\nOf four images a class, D = {arguments.embedding_size}; BatchHard: with TripletMarginLoss\n")
    print(steps(arguments))


if __name__ == "__main__":
    main()
