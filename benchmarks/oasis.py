"""Steps of OASIS a second, against the algorithm as printed: a product and an outer product for each triplet.

Part 1 begins at W = I, where nearly every triplet costs something; part 2 goes on from a W that has been trained,
where fewer do. The loop is numpy's own, in float32, and skips the update where the loss is 0; a second one updates in
place by BLAS (sger). Features are random, of unit length, in classes. Our time is that of a whole call.
"""

import argparse
import copy

import numpy as np
import numpy.typing as npt
from _harness import machine_line, median_ratio, paired, table
from scipy.linalg.blas import sger

from dr_plugin.relevance import OASIS

Floats = npt.NDArray[np.float32]


def naive(features: Floats, triplets: npt.NDArray[np.int64], weights: Floats, *, in_place: bool) -> Floats:
    for query, positive, negative in triplets:
        p, difference = features[query], features[positive] - features[negative]
        loss = 1 - p @ weights @ difference
        square = (p @ p) * (difference @ difference)
        if loss > 0 and square > 0:
            rate = min(0.1, float(loss / square))
            if in_place:
                weights = sger(rate, p, difference, a=weights, overwrite_a=1)
            else:
                weights = weights + rate * np.outer(p, difference)
    return weights


def rows(images: int, dimension: int, steps: int, before: int, repeats: int) -> list[list[object]]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 50, images)
    features = rng.normal(size=(images, dimension)) + rng.normal(size=(50, dimension))[labels]
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    order = np.argsort(labels, kind="stable")
    place = rng.integers(0, images - 1, steps)
    triplets = np.column_stack((order[place], order[place + 1], rng.integers(0, images, steps)))
    found: list[list[object]] = []
    for trained in (0, before):
        start = OASIS(steps=max(1, trained)).fit(features, labels)
        weights = start.weights_ if trained else np.eye(dimension, dtype=np.float32)

        def block_wise(start: OASIS = start, trained: int = trained) -> OASIS:
            fresh = copy.deepcopy(start) if trained else OASIS()
            return fresh.partial_fit(features, triplets=triplets, steps=steps)

        fortran = np.asfortranarray(weights)
        seconds = paired(
            {
                "ours": block_wise,
                "numpy": lambda: naive(features, triplets, weights, in_place=False),  # noqa: B023
                "sger": lambda: naive(features, triplets, fortran.copy(order="F"), in_place=True),  # noqa: B023
            },
            repeats,
        )
        learned = block_wise()
        updates = learned.updates_ - (start.updates_ if trained else 0)
        found.append(
            [
                dimension,
                trained,
                f"{updates / steps:.0%}",
                f"{steps / np.median(seconds['ours']):,.0f}",
                f"{median_ratio(seconds['numpy'], seconds['ours']):.1f}",
                f"{median_ratio(seconds['sger'], seconds['ours']):.1f}",
            ]
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64, 256, 1000])
    parser.add_argument("--steps", type=int, default=16_384, help="triplets that are timed")
    parser.add_argument("--before", type=int, default=50_000, help="triplets of part 2's W")
    parser.add_argument("--repeats", type=int, default=3)
    sizes = parser.parse_args()
    print(machine_line())
    found = [
        row
        for dimension in sizes.dimensions
        for row in rows(sizes.images, dimension, sizes.steps, sizes.before, sizes.repeats)
    ]
    header = ["F", "triplets before", "that cost", "ours, steps/s", "loop, numpy: time", "loop, sger: time"]
    print("\nTimes are multiples of ours.\n")
    print(table(found, header))


if __name__ == "__main__":
    main()
