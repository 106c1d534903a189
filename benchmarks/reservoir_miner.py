"""ReservoirTripletMiner against PML's get_random_triplet_indices and TripletMarginMiner, and the memories,
ReservoirMemory and CrossBatchMemory, against PML's CrossBatchMemory: time and peak memory of a step.

Batches of B embeddings of C classes, T triplets of the miner's. A memory of 16 images a class is full; of all pairs of
a batch and the memory, or of at most 65,536 triplets, a step is forward and backward.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from _cases import Case, Sides
from _tables import alone
from pytorch_metric_learning import losses
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import get_random_triplet_indices
from uniform_miner import batch

from dr_plugin.losses import CrossBatchMemory, DeepRankingLoss, ReservoirMemory
from dr_plugin.miners import ReservoirTripletMiner

HELD = 16  # images a class

FULL = {
    "batch_sizes": [512, 2048, 8192],
    "images_per_class": 4,
    "per_query": 10,
    "all_triplets": 256,  # the largest batch that TripletMarginMiner gets
    "batch_curve": [512, 1024, 2048, 4096],
    "class_curve": [16, 32, 64, 128],
    "memory_batch": 128,
    "memory_classes": 200,
    "memory_batch_curve": [32, 64, 128, 256],
    "memory_class_curve": [50, 100, 200, 400],
    "embedding_size": 128,
}
QUICK = {
    "batch_sizes": [32],
    "images_per_class": 4,
    "per_query": 2,
    "all_triplets": 16,
    "batch_curve": [16, 32, 64],
    "class_curve": [2, 4, 8],
    "memory_batch": 16,
    "memory_classes": 4,
    "memory_batch_curve": [8, 16, 32],
    "memory_class_curve": [2, 4, 6],
    "embedding_size": 8,
}

WAYS = {
    "current embeddings": "ReservoirTripletMiner, current embeddings",
    "buffers": "ReservoirTripletMiner, current embeddings, buffers of 2",
    "external": "ReservoirTripletMiner, external relevance, 20% out of class",
}


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


def miner_sides(way: str, against: str, *, B: int, C: int, T: int, device: torch.device) -> Sides:
    (embeddings, labels), per_query = batch(B, C, device), T // B
    indices = torch.arange(B)
    arguments: dict[str, tuple[Any, ...]] = {
        "current embeddings": (),
        "buffers": (2,),
        "external": (None, Graded()),
    }
    miner = ReservoirTripletMiner(*arguments[way], triplets_per_query=per_query)

    def ours() -> None:
        if way == "external":
            miner.observe(indices)
        miner(embeddings, labels)

    if against == "random":
        return Sides(ours, partial(get_random_triplet_indices, labels, t_per_anchor=per_query))
    return Sides(ours, partial(TripletMarginMiner(margin=0.2), embeddings, labels))


def memories(D: int, C: int) -> dict[str, Callable[[], torch.nn.Module]]:
    """Our memories by name."""

    def reservoir(loss: type[torch.nn.Module], weigh: str | None) -> Callable[[], torch.nn.Module]:
        return lambda: ReservoirMemory(loss(), D, HELD, weigh=weigh)

    pairs = losses.ContrastiveLoss
    return {
        "CrossBatchMemory, all pairs": lambda: CrossBatchMemory(pairs(), D, memory_size=HELD * C),
        "ReservoirMemory, all pairs, by relevance": reservoir(pairs, "relevance"),
        "ReservoirMemory, all pairs, by loss": reservoir(pairs, "loss"),
        "ReservoirMemory, all pairs, nothing weighed": reservoir(pairs, None),
        "ReservoirMemory, 65,536 triplets, by relevance": reservoir(DeepRankingLoss, "relevance"),
    }


def memory_sides(name: str, *, B: int, D: int, C: int, device: torch.device) -> Sides:
    """A step with each full memory."""
    generator = torch.Generator().manual_seed(0)
    theirs = losses.CrossBatchMemory(losses.ContrastiveLoss(), D, memory_size=HELD * C).to(device)
    ours = memories(D, C)[name]().to(device)

    def step(memory: torch.nn.Module) -> None:
        embeddings = torch.randn(B, D, generator=generator).to(device).requires_grad_()
        memory(embeddings, torch.randint(C, (B,), generator=generator).to(device)).backward()

    for _ in range(-(-2 * HELD * C // B)):
        step(ours)
        step(theirs)
    return Sides(partial(step, ours), partial(step, theirs))


def cases(
    *,
    batch_sizes: list[int],
    images_per_class: int,
    per_query: int,
    all_triplets: int,
    batch_curve: list[int],
    class_curve: list[int],
    memory_batch: int,
    memory_classes: int,
    memory_batch_curve: list[int],
    memory_class_curve: list[int],
    embedding_size: int,
) -> list[Case]:
    def miner(way: str, against: str, name: str, B: int) -> Case:
        sizes = {"B": B, "C": B // images_per_class, "T": B * per_query}
        return Case("miners", WAYS[way], name, partial(miner_sides, way, against), sizes)

    def memory(name: str) -> Case:
        sizes = {"B": memory_batch, "D": embedding_size, "C": memory_classes}
        make = partial(memory_sides, name)
        return Case("losses", name, "PML CrossBatchMemory, all pairs", make, sizes, peak=True)

    random = "PML get_random_triplet_indices"
    found = [miner(way, "random", random, B) for B in batch_sizes for way in WAYS]
    every = "PML TripletMarginMiner, all triplets"
    found += [miner(way, "all", every, all_triplets) for way in ("current embeddings", "external")]
    for way in WAYS:
        found += [miner(way, "random", random, B).point("B") for B in batch_curve]
        found += miner(way, "random", random, batch_sizes[0]).curve("C", class_curve)
    held = [memory(name) for name in memories(embedding_size, memory_classes)]
    curves = held[1].curve("B", memory_batch_curve) + held[1].curve("C", memory_class_curve)
    return found + held + curves


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
