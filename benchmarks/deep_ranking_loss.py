"""DeepRankingLoss against TripletMarginLoss(distance=LpDistance(power=2)): forward + backward."""

import argparse
import multiprocessing
import statistics
from collections.abc import Callable

import torch
from _harness import machine_line, median_ratio, paired, peak_memory, table
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss

from dr_plugin.losses import DeepRankingLoss


def step(name: str, batch_size: int, triplets: int, size: int) -> Callable[[], object]:
    """One forward and backward pass of the named loss, on inputs that depend on the sizes only."""
    torch.manual_seed(0)
    embeddings = torch.randn(batch_size, size, requires_grad=True)
    labels = torch.arange(batch_size) % 200
    indices = tuple(torch.randint(batch_size, (3, triplets)).unbind())
    ours = DeepRankingLoss(0.2)
    loss_func = ours if name == "ours" else TripletMarginLoss(margin=0.2, distance=LpDistance(power=2))
    return lambda: torch.autograd.grad(loss_func(embeddings, labels, indices), embeddings)


def fresh_peak(name: str, batch_size: int, triplets: int, size: int) -> int:
    """Bytes the first pass needs, in this process: one that has run nothing before keeps no freed memory."""
    function = step(name, batch_size, triplets, size)
    step(name, 8, 8, size)()  # what the libraries allocate once is not the loss's
    return peak_memory(function)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--triplets", type=int, nargs="+", default=[4096, 40960])
    parser.add_argument("--embedding-sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    rows = []
    for triplets in arguments.triplets:
        for size in arguments.embedding_sizes:
            sizes = (arguments.batch_size, triplets, size)
            seconds = paired({name: step(name, *sizes) for name in ("ours", "pml")}, arguments.repeats)
            bytes_used = {}
            for name in seconds:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    bytes_used[name] = pool.apply(fresh_peak, (name, *sizes))
            rows.append(
                (
                    *sizes,
                    f"{statistics.median(seconds['ours']) * 1e3:.1f}",
                    f"{statistics.median(seconds['pml']) * 1e3:.1f}",
                    f"{median_ratio(seconds['pml'], seconds['ours']):.1f}",
                    f"{bytes_used['ours'] / 2**20:.0f}",
                    f"{bytes_used['pml'] / 2**20:.0f}",
                    f"{bytes_used['pml'] / max(1, bytes_used['ours']):.1f}",
                )
            )
    header = ["B", "T", "D", "ours, ms", "PML, ms", "PML / ours", "ours, MiB", "PML, MiB", "PML / ours"]
    print(machine_line())
    print(table(rows, header))


if __name__ == "__main__":
    main()
