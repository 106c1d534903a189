"""How long the hand-crafted features of section 6.4 take: learning, and images a second.

    python benchmarks/features.py                                   # noise in the place of images
    python benchmarks/features.py --pack cache/train --jobs 2       # images of a PackedImages folder

Each feature learns from --learn images and describes --images of them, by the processes of --jobs; the last column is
what the paper's 4,529 rated images would take at that rate, learning included. Their sum is to stay under 15 minutes on
2 cores. A feature that is made of others, L1HashKPCA, is measured with theirs.
"""

import argparse
import time

import numpy as np
import torch
from _harness import machine_line, table

from dr_plugin.datasets import PackedImages
from dr_plugin.relevance import features
from dr_plugin.relevance.feature_store import compute_features

RATED_IMAGES = 4529


def images_of(pack: str | None, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (count, 3, size, size), and labels."""
    if pack is None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (count, 3, size // 8, size // 8), dtype=np.uint8)
        return coarse.repeat(8, axis=2).repeat(8, axis=3), np.arange(count) % 20
    packed = PackedImages(pack)
    chosen = np.sort(np.random.default_rng(0).permutation(len(packed))[:count])
    images, labels = packed.batch(chosen)
    resized = torch.nn.functional.interpolate(
        images.float(), size=(size, size), mode="bilinear", antialias=True
    )
    return resized.round().byte().numpy(), labels.numpy()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", help="a folder of PackedImages")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--learn", type=int, default=1000)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=features.__all__, choices=features.__all__)
    options = parser.parse_args()

    learn, labels = images_of(options.pack, max(options.learn, options.images), options.size)
    rows, whole = [], 0.0
    for name in options.only:
        transformer = getattr(features, name)()
        start = time.perf_counter()
        transformer.fit(learn[: options.learn], labels[: options.learn])
        fitted = time.perf_counter()
        found = compute_features(transformer, learn[: options.images], n_jobs=options.jobs)
        described = time.perf_counter()
        rate = options.images / (described - fitted)
        seconds = fitted - start + RATED_IMAGES / rate
        whole += seconds
        rows.append([name, found.shape[1], f"{fitted - start:.1f} s", f"{rate:.0f}", f"{seconds:.0f} s"])
    rows.append(["all", "", "", "", f"{whole:.0f} s"])
    print(machine_line())
    print(
        f"{options.jobs} processes, {options.size} x {options.size} pixels, learned from {options.learn} images\n"
    )
    print(table(rows, ["feature", "numbers", "learning", "images/s", "4,529 images"]))


if __name__ == "__main__":
    main()
