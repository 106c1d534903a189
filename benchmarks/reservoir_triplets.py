"""Relevance-weighted triplets, whole classes at hand, as many as the paper trained on: RelevantTriplets against
numpy.random.choice(p=) for each draw of each triplet, and against torch.multinomial on the rows of many queries.
Then epochs of ReservoirTripletSampler over the same relevances, with whole classes and with reservoirs."""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from _harness import machine_line, median_ratio, paired, peak_memory, table
from torch import Tensor

from dr_plugin.samplers import ReservoirTripletSampler
from dr_plugin.triplets import RANDOM_BITS, ClassLayout, RelevantTriplets

TRIALS = 100


def relevances(classes: int, images: int, generator: torch.Generator) -> Tensor:
    """(classes, images, images), symmetric in each class, the diagonal 0."""
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


def sampler_rows(r: np.ndarray, batch_size: int, ratio: float) -> list[tuple[str, ...]]:
    """An epoch of as many images as there are."""
    relevance, labels = Blocks(r), np.repeat(np.arange(len(r)), r.shape[1])
    ways = {
        "capacity=None": {},
        f"capacity={r.shape[1]}": {"capacity": r.shape[1]},
        "capacity=100": {"capacity": 100},
        "capacity=100, exact=False": {"capacity": 100, "exact": False},
        "capacity=100, triplets_per_image=1/3": {"capacity": 100, "triplets_per_image": 1 / 3},
    }
    rows = []
    for name, way in ways.items():
        arguments = {"batch_size": batch_size, "out_of_class_ratio": ratio} | way
        sampler = ReservoirTripletSampler(labels, relevance, **arguments)
        wall, processor = _seconds(lambda sampler=sampler: list(sampler))
        counters = sampler.counters
        speed = counters["accepted"] / processor
        inexact = f"{counters['inexact'] / counters['accepted']:.0%}"
        images = f"{counters['distinct_images']:,}"
        seconds = f"{wall:.2f} ({processor:.2f})"
        rows.append((name, seconds, f"{speed:,.0f}", f"{24e6 / speed:,.0f} s", inexact, images))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--triplets", type=int, default=24_000_000)
    parser.add_argument("--chunk", type=int, default=1_000_000, help="triplets of one call")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--images", type=int, default=500, help="of each class")
    parser.add_argument("--ratio", type=float, default=0.2, help="of triplets out of class")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=510, help="images of the sampler's batches")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    classes, images, ratio = arguments.classes, arguments.images, arguments.ratio

    r = relevances(classes, images, generator)
    labels = torch.arange(classes).repeat_interleave(images)
    triplets: list[RelevantTriplets] = []

    def build() -> None:
        triplets[:] = [RelevantTriplets(ClassLayout(labels), r.flatten(), out_of_class_ratio=ratio)]

    def bits(shape: tuple[int, ...]) -> Tensor:
        return torch.randint(1 << RANDOM_BITS, shape, generator=generator)

    memory = peak_memory(build)
    build_wall, build_processor = _seconds(build)
    counts = {"RelevantTriplets": 200_000, "numpy.random.choice": 200, "torch.multinomial": 2_000}
    seconds = paired(
        {
            "RelevantTriplets": lambda: triplets[0].draw(counts["RelevantTriplets"], bits),
            "numpy.random.choice": lambda: by_choice(r.numpy(), counts["numpy.random.choice"], ratio, rng),
            "torch.multinomial": lambda: by_multinomial(r, counts["torch.multinomial"], ratio, generator),
        },
        repeats=arguments.repeats,
    )
    each = {name: [s / counts[name] for s in values] for name, values in seconds.items()}
    rows = [
        (
            name,
            f"{statistics.median(values) * 1e6:.2f}",
            f"{median_ratio(values, each['RelevantTriplets']):.0f}",
        )
        for name, values in each.items()
    ]

    def draw_all() -> None:
        for start in range(0, arguments.triplets, arguments.chunk):
            triplets[0].draw(min(arguments.chunk, arguments.triplets - start), bits)

    wall, processor = _seconds(draw_all)
    print(machine_line())
    print(
        f"\n{classes} classes x {images} images, {ratio:.0%} out of class; built in {build_wall:.1f} s ",
        end="",
    )
    print(f"({build_processor:.1f} s of the processor, {memory / 2**20:.0f} MiB beside the relevances)")
    print(f"{arguments.triplets:,} triplets in {wall:.1f} s ({processor:.1f} s of the processor)\n")
    print(table(rows, ["", "microseconds a triplet", "times ours"]))
    triplets.clear()
    header = ["ReservoirTripletSampler", "epoch: s (of the processor)", "triplets a second", "24 million in"]
    print()
    print(table(sampler_rows(r.numpy(), arguments.batch_size, ratio), [*header, "inexact", "images used"]))


def _seconds(function: Callable[[], object]) -> tuple[float, float]:
    """By the clock, and of the processor: less, where others use it too."""
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
