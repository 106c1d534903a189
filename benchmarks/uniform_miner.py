"""UniformTripletMiner against PML's get_random_triplet_indices (as many triplets of the same batch), and against
TripletMarginMiner, which looks at all triplets. Batches of B embeddings of C classes, T triplets of ours.
"""

from functools import partial

import torch
from _cases import Case, Sides
from _tables import alone
from pytorch_metric_learning.miners import TripletMarginMiner
from pytorch_metric_learning.utils.loss_and_miner_utils import get_random_triplet_indices

from dr_plugin.miners import UniformTripletMiner

DIMENSION = 128

FULL = {
    "batch_sizes": [512, 2048, 8192],
    "images_per_class": 4,
    "per_query": 10,
    "all_triplets": 256,  # the largest batch that TripletMarginMiner gets
    "batch_curve": [512, 1024, 2048, 4096, 8192],
    "class_curve": [16, 64, 256, 1024],
}
QUICK = {
    "batch_sizes": [32],
    "images_per_class": 4,
    "per_query": 2,
    "all_triplets": 16,
    "batch_curve": [16, 32, 64],
    "class_curve": [2, 4, 8],
}


def batch(B: int, C: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings (B, 128) and labels (B,) of C classes of equal size, shuffled."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(B, DIMENSION, generator=generator)
    labels = (torch.arange(B) % C)[torch.randperm(B, generator=generator)]
    return embeddings.to(device), labels.to(device)


def sides(against: str, *, B: int, C: int, T: int, device: torch.device) -> Sides:
    (embeddings, labels), per_query = batch(B, C, device), T // B
    ours = UniformTripletMiner(per_query)
    if against == "random":
        theirs = partial(get_random_triplet_indices, labels, t_per_anchor=per_query)
    else:
        theirs = partial(TripletMarginMiner(margin=0.2), embeddings, labels)
    return Sides(partial(ours, embeddings, labels), theirs)


def cases(
    *,
    batch_sizes: list[int],
    images_per_class: int,
    per_query: int,
    all_triplets: int,
    batch_curve: list[int],
    class_curve: list[int],
) -> list[Case]:
    def case(against: str, name: str, B: int) -> Case:
        sizes = {"B": B, "C": B // images_per_class, "T": B * per_query}
        return Case("miners", "UniformTripletMiner", name, partial(sides, against), sizes)

    found = [case("random", "PML get_random_triplet_indices", B) for B in batch_sizes]
    growing = found[-1]
    found.append(case("all", "PML TripletMarginMiner, all triplets", all_triplets))
    found += [case("random", growing.against, B).point("B") for B in batch_curve]
    return found + growing.curve("C", class_curve)


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
