"""ReservoirTripletMiner against PML's get_random_triplet_indices, and ReservoirMemory against CrossBatchMemory."""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _harness import machine_line, median_ratio, paired, peak_memory, table
from pytorch_metric_learning import losses
from pytorch_metric_learning.utils.loss_and_miner_utils import get_random_triplet_indices

from dr_plugin.losses import DeepRankingLoss, ReservoirMemory
from dr_plugin.miners import ReservoirTripletMiner


class Graded:
    """An external relevance that costs next to nothing."""

    def __len__(self) -> int:
        """The largest batch's images, and more."""
        return 1 << 20

    def pairs(self, i: Any, j: Any) -> Any:
        """Symmetric, and of many values."""
        return ((i + j) % 97 + 1).astype("float32")

    def total(self, i: Any) -> Any:
        """Not asked for by the miner."""
        raise NotImplementedError


def miner_rows(arguments: argparse.Namespace) -> list[tuple[object, ...]]:
    rows = []
    for batch_size in arguments.batch_sizes:
        labels = torch.arange(batch_size) // arguments.images_per_class
        labels = labels[torch.randperm(batch_size)]
        embeddings = torch.randn(batch_size, arguments.embedding_size, device=arguments.device)
        indices = torch.arange(batch_size)
        own = ReservoirTripletMiner(triplets_per_query=arguments.triplets_per_query)
        buffers = ReservoirTripletMiner(2, triplets_per_query=arguments.triplets_per_query)
        external = ReservoirTripletMiner(None, Graded(), triplets_per_query=arguments.triplets_per_query)

        def observed(external=external, embeddings=embeddings, labels=labels, indices=indices):
            external.observe(indices)
            external(embeddings, labels)

        pml = partial(get_random_triplet_indices, labels, t_per_anchor=arguments.triplets_per_query)
        for name, function in (
            ("current embeddings", partial(own, embeddings, labels)),
            ("current embeddings, buffers of 2", partial(buffers, embeddings, labels)),
            ("external, 20% out of class", observed),
        ):
            rows.append((batch_size, name, *_against(function, pml, arguments.repeats), _mebibytes(function)))
    return rows


def memory_rows(arguments: argparse.Namespace) -> list[tuple[object, ...]]:
    """Forward and backward of one loss, batch 128 against a full memory of 16 images a class."""
    size, classes, batch_size = arguments.embedding_size, arguments.classes, 128

    def batch() -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = torch.randn(batch_size, size, device=arguments.device, requires_grad=True)
        return embeddings, torch.randint(classes, (batch_size,), device=arguments.device)

    def step(memory: torch.nn.Module) -> None:
        memory(*batch()).backward()

    theirs = losses.CrossBatchMemory(losses.ContrastiveLoss(), size, memory_size=16 * classes)
    rows = []
    for name, loss, weigh in (
        ("all pairs, relevance", losses.ContrastiveLoss(), "relevance"),
        ("all pairs, loss", losses.ContrastiveLoss(), "loss"),
        ("all pairs, nothing", losses.ContrastiveLoss(), None),
        ("65,536 triplets, relevance", DeepRankingLoss(), "relevance"),
    ):
        ours = ReservoirMemory(loss, size, 16, weigh=weigh)
        with torch.no_grad():
            for _ in range(32 * classes // batch_size):
                ours(*batch())
                theirs(*batch())
        rows.append((name, *_against(partial(step, ours), partial(step, theirs), arguments.repeats)))
    return rows


def _against(ours: Callable[[], object], pml: Callable[[], object], repeats: int) -> tuple[str, str, str]:
    seconds = paired({"ours": ours, "pml": pml}, repeats=repeats)
    return (
        f"{statistics.median(seconds['ours']) * 1e3:.2f}",
        f"{statistics.median(seconds['pml']) * 1e3:.2f}",
        f"{median_ratio(seconds['pml'], seconds['ours']):.1f}",
    )


def _mebibytes(function: Callable[[], object]) -> str:
    return f"{peak_memory(function) / 2**20:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--images-per-class", type=int, default=4, help="images of each class in a batch")
    parser.add_argument("--triplets-per-query", type=int, default=10)
    parser.add_argument("--embedding-size", type=int, default=128)
    parser.add_argument("--classes", type=int, default=200, help="classes of the memory, 16 images each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()

    print(machine_line())
    print(
        table(miner_rows(arguments), ["batch", "relevance", "ours, ms", "PML, ms", "PML / ours", "MiB more"])
    )
    print()
    header = ["memory step, weighed by", "ours, ms", "PML's all pairs, ms", "PML / ours"]
    print(table(memory_rows(arguments), header))


if __name__ == "__main__":
    main()
