"""An epoch of our samplers, N images in C classes (or T given triplets) in batches of B, against PML's and torch's.

`reservoir_triplets.py` has ReservoirTripletSampler. PML's samplers give images one by one: torch's BatchSampler
makes batches of them.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from _cases import Case, Sides
from _tables import alone
from pytorch_metric_learning.samplers import FixedSetOfTriplets, MPerClassSampler
from torch.utils.data import BatchSampler
from torch.utils.data.distributed import DistributedSampler

from dr_plugin.samplers import DistributedBatchSampler, OfflineTripletSampler, UniformTripletSampler

FULL = {
    "images": 100_000,
    "classes": 200,
    "triplets": 100_000,
    "new_set_images": 10_000,  # of these PML's sampler draws its triplets one by one
    "batch_size": 510,
    "image_curve": [12_500, 25_000, 50_000, 100_000],
    "class_curve": [10, 100, 1000, 10_000],
}
QUICK = {
    "images": 120,
    "classes": 6,
    "triplets": 60,
    "new_set_images": 120,
    "batch_size": 12,
    "image_curve": [60, 120, 240],
    "class_curve": [3, 6, 12],
}


def m_per_class(labels: Any, B: int) -> BatchSampler:
    """PML's sampler with 3 images a class: an epoch of as many images as there are, or a little less."""
    return BatchSampler(MPerClassSampler(labels, 3, length_before_new_iter=len(labels)), B, drop_last=False)


def uniform_sides(against: str, *, N: int, C: int, B: int, device: torch.device) -> Sides:
    labels = np.arange(N) % C
    ours = UniformTripletSampler(labels, batch_size=B)
    if against == "classes":
        return Sides(partial(list, ours), partial(list, m_per_class(labels, B)))

    def new_set() -> list[list[int]]:
        return list(BatchSampler(FixedSetOfTriplets(labels, N // 3), B, drop_last=False))

    return Sides(partial(list, ours), new_set)


def offline_sides(*, T: int, N: int, B: int, device: torch.device) -> Sides:
    random = np.random.default_rng(0)
    triplets = (random.integers(0, N, (T, 1)) + np.array([0, 1, 2])) % N
    theirs = FixedSetOfTriplets(np.arange(N) // 2, 1)
    theirs.fixed_set_of_triplets = triplets.copy()  # theirs draws its own, by label; ours are given
    ours = OfflineTripletSampler(triplets, batch_size=B)
    return Sides(partial(list, ours), partial(list, BatchSampler(theirs, B, drop_last=False)))


def distributed_sides(against: str, *, N: int, C: int, B: int, device: torch.device) -> Sides:
    """On one process: what the wrapper itself costs."""

    def sampler() -> UniformTripletSampler:
        return UniformTripletSampler(np.arange(N) % C, batch_size=B)

    theirs: Any = sampler()
    if against == "torch":
        theirs = BatchSampler(DistributedSampler(range(N), num_replicas=1, rank=0), B, drop_last=False)
    return Sides(partial(list, DistributedBatchSampler(sampler(), group=3)), partial(list, theirs))


def cases(
    *,
    images: int,
    classes: int,
    triplets: int,
    new_set_images: int,
    batch_size: int,
    image_curve: list[int],
    class_curve: list[int],
) -> list[Case]:
    sizes = {"N": images, "C": classes, "B": batch_size}

    def case(what: str, against: str, make: Any, sizes: dict[str, int] = sizes) -> Case:
        return Case("samplers", what, against, make, sizes, unit="epoch")

    uniform = case("UniformTripletSampler", "PML MPerClassSampler, m = 3", partial(uniform_sides, "classes"))
    fixed = "PML FixedSetOfTriplets, a new set each epoch"
    given = {"T": triplets, "N": images, "B": batch_size}
    offline = case("OfflineTripletSampler", "PML FixedSetOfTriplets, given its set", offline_sides, given)
    wrapper = "DistributedBatchSampler over UniformTripletSampler"
    torchs = "torch DistributedSampler, uniform images"
    distributed = case(wrapper, "UniformTripletSampler alone", partial(distributed_sides, "alone"))
    return [
        uniform,
        case(
            "UniformTripletSampler", fixed, partial(uniform_sides, "new set"), {**sizes, "N": new_set_images}
        ),
        offline,
        distributed,
        case(wrapper, torchs, partial(distributed_sides, "torch")),
        *uniform.curve("N", image_curve),
        *uniform.curve("C", class_curve),
        *offline.curve("T", image_curve),
        *distributed.curve("N", image_curve),
        *distributed.curve("C", class_curve),
    ]


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
