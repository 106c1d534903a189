"""Relevance-weighted triplets, whole classes at hand: RelevantTriplets against numpy.random.choice(p=) for each draw
of each triplet, and against torch.multinomial on the rows of many queries. Then epochs of ReservoirTripletSampler
over the same relevances, with whole classes and with reservoirs, against numpy.random.choice and PML's
MPerClassSampler.

N images in C classes of equal size; a sampler's epoch has as many images as there are, in batches of B. One thread.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from _cases import Case, Sides
from _harness import peak_memory, table
from _tables import alone
from samplers import m_per_class
from torch import Tensor

from dr_plugin.samplers import ReservoirTripletSampler
from dr_plugin.triplets import RANDOM_BITS, ClassLayout, RelevantTriplets

TRIALS = 100
RATIO = 0.2  # of triplets out of class
ALL = 24_000_000  # triplets of the paper's training set
CHOICE, MULTINOMIAL = "numpy choice(p=), one by one", "torch.multinomial on the queries' rows"

FULL = {
    "classes": 200,
    "images": 100_000,
    "triplets": 200_000,
    "batch_size": 510,
    "capacity": 100,
    "image_curve": [12_800, 25_600, 51_200, 102_400],
    "class_curve_images": 25_600,  # few, as relevances are of all pairs of a class
    "class_curve": [25, 50, 100, 200],
}
QUICK = {
    "classes": 4,
    "images": 48,
    "triplets": 1000,
    "batch_size": 12,
    "capacity": 6,
    "image_curve": [32, 48, 64],
    "class_curve_images": 36,
    "class_curve": [2, 3, 4],
}


@lru_cache(maxsize=1)
def relevances(classes: int, images: int) -> Tensor:
    """(classes, images, images), symmetric in each class, the diagonal 0."""
    generator = torch.Generator().manual_seed(0)
    r = torch.rand(classes, images, images, generator=generator)
    r += r.transpose(1, 2).clone()
    r.diagonal(dim1=1, dim2=2).zero_()
    return r


def by_choice(r: np.ndarray, count: int, ratio: float, rng: np.random.Generator) -> None:
    """One triplet after the other."""
    classes, images, _ = r.shape
    sums = r.sum(axis=2, dtype=np.float64)
    of_class = sums.sum(axis=1) / sums.sum()
    for _ in range(count):
        while True:
            label = rng.choice(classes, p=of_class)
            query = rng.choice(images, p=sums[label] / sums[label].sum())
            weights = r[label, query].astype(np.float64)
            positive = rng.choice(images, p=weights / weights.sum())
            if rng.random() < ratio:
                negative = rng.integers((classes - 1) * images)  # of the other classes: always found
                break
            relevance = weights[positive]
            weights[positive] = 0
            share = weights / weights.sum()
            trials = (rng.choice(images, p=share) for _ in range(TRIALS))
            negative = next((n for n in trials if weights[n] < relevance), -1)
            if negative >= 0:
                break


def by_multinomial(r: Tensor, count: int, ratio: float, generator: torch.Generator) -> None:
    """All triplets at once, each with its query's row in full."""
    rows = r.flatten(0, 1)
    cumulative = rows.sum(1, dtype=torch.float64).cumsum(0)
    in_class = int((torch.rand(count, generator=generator) >= ratio).sum())
    for wanted, inside in ((count - in_class, False), (in_class, True)):
        while wanted:
            pick = torch.rand(wanted, generator=generator, dtype=torch.float64) * cumulative[-1]
            weights = rows[torch.searchsorted(cumulative, pick)]
            positive = torch.multinomial(weights, 1, generator=generator)
            if not inside:
                torch.randint(len(rows) - r.shape[1], (wanted,), generator=generator)
                break
            relevance = weights.gather(1, positive)
            weights.scatter_(1, positive, 0)
            negative = torch.multinomial(weights, TRIALS, replacement=True, generator=generator)
            wanted -= int((weights.gather(1, negative) < relevance).any(1).sum())


class Blocks:
    """r (classes, images, images) as a relevance."""

    def __init__(self, r: np.ndarray) -> None:
        self.r, self.images = r, r.shape[1]
        self.totals = r.sum(axis=2, dtype=np.float64).ravel()

    def __len__(self) -> int:
        return len(self.totals)

    def pairs(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Of one class."""
        return self.r.reshape(-1)[i * self.images + j % self.images]

    def total(self, i: np.ndarray) -> np.ndarray:
        """r_i."""
        return self.totals[i]

    def block(self, members: np.ndarray) -> np.ndarray:
        """Of a whole class."""
        return self.r[members[0] // self.images]


def draw_sides(against: str, *, N: int, C: int, triplets: int, device: torch.device) -> Sides:
    """Ours gives so many triplets a call; the others, which are slow, a hundredth or a thousandth."""
    r, generator = relevances(C, N // C), torch.Generator().manual_seed(1)
    own = whole_classes(C, N // C)
    ours = partial(own.draw, triplets, random_bits(generator))
    if against == CHOICE:
        count = max(1, triplets // 1000)
        theirs = partial(by_choice, r.numpy(), count, RATIO, np.random.default_rng(0))
    else:
        count = max(1, triplets // 100)
        theirs = partial(by_multinomial, r, count, RATIO, generator)
    return Sides(ours, theirs, (triplets, count))


@lru_cache(maxsize=1)
def whole_classes(classes: int, images: int) -> RelevantTriplets:
    labels = torch.arange(classes).repeat_interleave(images)
    return RelevantTriplets(
        ClassLayout(labels), relevances(classes, images).flatten(), out_of_class_ratio=RATIO
    )


def random_bits(generator: torch.Generator) -> Callable[[tuple[int, ...]], Tensor]:
    return lambda shape: torch.randint(1 << RANDOM_BITS, shape, generator=generator)


def ways(n: int, capacity: int) -> dict[str, dict[str, Any]]:
    """How to sample, by name."""
    return {
        "capacity=None": {},
        "capacity of a class": {"capacity": n},
        "bounded": {"capacity": capacity},
        "bounded, exact=False": {"capacity": capacity, "exact": False},
        "bounded, triplets_per_image=1/3": {"capacity": capacity, "triplets_per_image": 1 / 3},
    }


def sampler(way: str, N: int, C: int, B: int, capacity: int) -> ReservoirTripletSampler:
    n = N // C
    labels = np.repeat(np.arange(C), n)
    options = {"batch_size": B, "out_of_class_ratio": RATIO, **ways(n, capacity)[way]}
    return ReservoirTripletSampler(labels, Blocks(relevances(C, n).numpy()), **options)


def sampler_sides(
    way: str, against: str, *, N: int, C: int, B: int, capacity: int, device: torch.device
) -> Sides:
    """An epoch; of numpy's choices, which are slow, two hundred triplets."""
    ours = sampler(way, N, C, B, capacity)
    if against == CHOICE:
        choices = partial(by_choice, relevances(C, N // C).numpy(), 200, RATIO, np.random.default_rng(0))
        return Sides(partial(list, ours), choices, (len(ours) * B // 3, 200))
    labels = np.repeat(np.arange(C), N // C)
    return Sides(partial(list, ours), partial(list, m_per_class(labels, B)))


def cases(
    *,
    classes: int,
    images: int,
    triplets: int,
    batch_size: int,
    capacity: int,
    image_curve: list[int],
    class_curve_images: int,
    class_curve: list[int],
) -> list[Case]:
    sizes = {"N": images, "C": classes}

    def drawn(against: str) -> Case:
        what, make = "RelevantTriplets.draw", partial(draw_sides, against)
        more = {**sizes, "triplets": triplets}
        return Case("triplets", what, against, make, more, unit="triplet", threads=1)

    def sampled(way: str, against: str, unit: str) -> Case:
        what, make = f"ReservoirTripletSampler, {way}", partial(sampler_sides, way, against)
        more = {**sizes, "B": batch_size, "capacity": capacity}
        return Case("samplers", what, against, make, more, unit=unit, threads=1)

    per_class = "PML MPerClassSampler, m = 3"
    found = [drawn(CHOICE), drawn(MULTINOMIAL)]
    found += [sampled(way, per_class, "epoch") for way in ways(images // classes, capacity)]
    found += [sampled(way, CHOICE, "triplet") for way in ("capacity=None", "bounded")]
    for growing in (
        drawn(CHOICE),
        *(sampled(way, per_class, "epoch") for way in ("capacity=None", "bounded")),
    ):
        found += growing.curve("N", image_curve)
        few = replace(growing, sizes={**growing.sizes, "N": class_curve_images})
        found += few.curve("C", class_curve)
    return found


def extras(sizes: dict[str, Any]) -> None:
    """What is no ratio: what building takes, and how exact the samplers' triplets are."""
    classes, images = sizes["classes"], sizes["images"]
    shape, seconds = (classes, images // classes), []
    relevances(*shape)
    whole_classes.cache_clear()
    memory = peak_memory(lambda: seconds.extend(_seconds(partial(whole_classes, *shape))))
    print(f"\nRelevantTriplets built in {seconds[0]:.1f} s ({seconds[1]:.1f} s of the processor), ", end="")
    print(f"{memory / 2**20:.0f} MiB beside the relevances\n")
    rows = []
    for way in ways(images // classes, sizes["capacity"]):
        one = sampler(way, images, classes, sizes["batch_size"], sizes["capacity"])
        wall, processor = _seconds(partial(list, one))
        counters = one.counters
        speed = counters["accepted"] / processor
        inexact = f"{counters['inexact'] / counters['accepted']:.0%}"
        seconds_text, all_text = f"{wall:.2f} ({processor:.2f})", f"{ALL / speed:,.0f} s"
        rows.append((way, seconds_text, f"{speed:,.0f}", all_text, inexact, counters["distinct_images"]))
    header = ["ReservoirTripletSampler", "epoch: s (of the processor)", "triplets a second", "24 million in"]
    print(table(rows, [*header, "inexact", "images used"]))


def _seconds(function: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of the processor: less, where others use it too."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    torch.set_num_threads(1)
    extras(alone(__doc__, cases, FULL, QUICK))
