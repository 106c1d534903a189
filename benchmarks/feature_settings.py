"""Settings of a hand-crafted feature by a criterion without ratings: how often it tells Tiny ImageNet's classes apart.

Triplets are seeded: a query of the val split, a positive of its class, a negative of another class. A setting's
figure is the share of triplets whose positive is nearer (a tie counts half), its standard error is that of the
mean over queries, and its gain over the first row is on the same triplets. Images are resized to --size first.
A feature that learns is fitted on other images, of the train split, and sees no class.

  feature_settings.py HOG --set cell_size=8 --set cell_size=16 grey=true --distance manhattan euclidean
"""

import argparse
import ast
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from _harness import machine_line, table
from sklearn.base import clone
from torch.nn.functional import interpolate

from dr_plugin.datasets import PackedImages, TinyImageNet
from dr_plugin.relevance import features as feature_classes
from dr_plugin.relevance.distances import DISTANCES, triplet_distances

Images = npt.NDArray[np.uint8]  # (N, 3, H, W)
Triplets = npt.NDArray[np.int64]  # (T, 3): query, positive, negative


class Evaluation(NamedTuple):
    """What one transformer did."""

    right: dict[str, npt.NDArray[np.float64]]  # distance -> (T,): 1 right, 0 wrong, 0.5 a tie
    dimension: int
    fit_seconds: float
    images_per_second: float


def evaluate_setting(
    transformer: Any,
    images: Images,
    triplets: Triplets,
    distance: str | Sequence[str] | None = None,
    fit_images: Images | None = None,
) -> Evaluation:
    """Fit a clone (on fit_images, else on the images), describe the images and rank the triplets by each distance.

    None is the transformer's own choice of distance.
    """
    transformer = clone(transformer)
    start = time.perf_counter()
    transformer.fit(images if fit_images is None else fit_images)
    fitted = time.perf_counter()
    features = transformer.transform(images)
    done = time.perf_counter()
    names = [distance] if isinstance(distance, str) else distance or [transformer.distance]
    right = {}
    for name in names:
        how = transformer if name == "own" else name
        positive, negative = triplet_distances(how, features, triplets)
        right[name] = (positive < negative) + 0.5 * (positive == negative)
    return Evaluation(right, features.shape[1], fitted - start, len(images) / (done - fitted))


def class_triplets(labels: npt.NDArray[np.int64], per_query: int, seed: int = 0) -> Triplets:
    """So many of each image: (N per_query, 3), those of one query in succession; every class has two images."""
    rng = np.random.default_rng(seed)
    query = np.repeat(np.arange(len(labels)), per_query)
    positive, negative = (rng.integers(0, len(labels), len(query)) for _ in range(2))
    while (wrong := (labels[positive] != labels[query]) | (positive == query)).any():
        positive[wrong] = rng.integers(0, len(labels), wrong.sum())
    while (wrong := labels[negative] == labels[query]).any():
        negative[wrong] = rng.integers(0, len(labels), wrong.sum())
    return np.stack([query, positive, negative], axis=1)


def mean_and_error(values: npt.NDArray[np.float64], per_query: int) -> str:
    """In percent; triplets of one query count as one observation."""
    means = 100 * values.reshape(-1, per_query).mean(axis=1)
    return f"{means.mean():.2f} ± {means.std(ddof=1) / len(means) ** 0.5:.2f}"


def tiny_imagenet(
    folder: Path, split: str, per_class: int, size: int
) -> tuple[Images, npt.NDArray[np.int64]]:
    """The first so many images of each class (N, 3, size, size) and labels; from packs train/, val/ or a root."""
    packed = (folder / split / "meta.json").exists()
    dataset: Any = PackedImages(folder / split) if packed else TinyImageNet(folder, split)
    labels = np.asarray(dataset.labels)
    chosen = np.sort(
        np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)])
    )
    if packed:
        small = dataset.batch(chosen)[0]
    else:
        small = torch.from_numpy(np.stack([np.moveaxis(np.asarray(dataset[i][0]), -1, 0) for i in chosen]))
    parts = [
        interpolate(part.float(), (size, size), mode="bicubic", antialias=True).round().clamp(0, 255).byte()
        for part in small.split(256)
    ]
    return torch.cat(parts).numpy(), labels[chosen]


def parsed(assignments: Sequence[str]) -> dict[str, Any]:
    """["a=1", "b=true", "c=x"] -> {"a": 1, "b": True, "c": "x"}."""
    words = {"true": True, "false": False, "none": None}
    found: dict[str, Any] = {}
    for name, _, text in (assignment.partition("=") for assignment in assignments):
        try:
            found[name] = words[text.lower()] if text.lower() in words else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            found[name] = text
    return found


def report(
    settings: dict[str, Any],
    images: Images,
    triplets: Triplets,
    distances: Sequence[str] | None,
    fit_images: Images,
    per_query: int,
    show: Callable[[list[object]], object] = lambda row: None,
) -> list[list[object]]:
    """A row for each setting and distance; show gets each when it is there."""
    rows: list[list[object]] = []
    first = None
    for name, transformer in settings.items():
        done = evaluate_setting(transformer, images, triplets, distances, fit_images)
        for distance, right in done.right.items():
            gain = "" if first is None else mean_and_error(right - first, per_query)
            first = right if first is None else first
            speed = [done.dimension, f"{done.fit_seconds:.1f}", f"{done.images_per_second:.0f}"]
            rows.append([name, distance, mean_and_error(right, per_query), gain, *speed])
            show(rows[-1])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("feature", choices=feature_classes.__all__)
    parser.add_argument(
        "--data", type=Path, default=Path("data"), help="a TinyImageNet root, or a folder of packs"
    )
    parser.add_argument(
        "--set", nargs="*", action="append", metavar="NAME=VALUE", help="one setting; default: the defaults"
    )
    choices = [*DISTANCES, "own"]
    parser.add_argument("--distance", nargs="+", choices=choices, help="default: the feature's own choice")
    parser.add_argument("--size", type=int, default=128, help="side of the images (128)")
    parser.add_argument(
        "--per-class", type=int, default=10, help="val images of each of the 200 classes (10)"
    )
    parser.add_argument("--fit-per-class", type=int, default=10, help="train images to fit on (10)")
    parser.add_argument("--triplets", type=int, default=10, help="of each query (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the triplets")
    given = parser.parse_args()

    print(machine_line())
    images, labels = tiny_imagenet(given.data, "val", given.per_class, given.size)
    fit_images, _ = tiny_imagenet(given.data, "train", given.fit_per_class, given.size)
    triplets = class_triplets(labels, given.triplets, given.seed)
    feature = getattr(feature_classes, given.feature)
    settings = {" ".join(text) or "defaults": feature(**parsed(text)) for text in given.set or [[]]}
    print(f"\n{given.feature}: {len(images)} images of {given.size} px, {len(triplets)} triplets\n")
    rows = report(settings, images, triplets, given.distance, fit_images, given.triplets)
    header = ["setting", "distance", "right, %", "gain over the first", "F", "fit, s", "images/s"]
    print(table(rows, header))


if __name__ == "__main__":
    main()
