"""Class-wise relevances of a whole data set, from features on disk to a store on disk, against pairwise calls.

The default is the size of Tiny ImageNet's train split: 200 classes of 500 images. Features are random, their
file is in the page cache, and a store is made anew each time. Part 1 is the whole job; part 2, on a few
classes in memory, compares with what a user would write instead: one pairwise call of scikit-learn or scipy
a class, or all N x N distances at once, as the distances of pytorch-metric-learning give them (their multiple
grows with the number of classes, to 40 GB of distances for 200). Peak memory counts mapped pages of the files.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from _harness import machine_line, median_ratio, paired, peak_memory, table
from pytorch_metric_learning.distances import LpDistance
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity, laplacian_kernel, rbf_kernel

from dr_plugin.relevance import FeatureRelevance, StoredRelevance

Features = npt.NDArray[np.float32]
KERNELS = ("gaussian", "laplacian", "cosine", "intersection")
BANDWIDTHS = {"gaussian": 1.0, "laplacian": 10.0}
PAIRS = 1_000_000


def write_features(path: Path, count: int, dimension: int) -> Features:
    """A .npy file of random histograms, written in pieces, and its memory map."""
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(count, dimension))
    rng = np.random.default_rng(0)
    for start in range(0, count, 10_000):
        part = mapped[start : start + 10_000]
        part[:] = rng.random(part.shape, dtype=np.float32)
    mapped.flush()
    return np.load(path, mmap_mode="r")


def whole(folder: Path, features: Features, labels: npt.NDArray[np.int64], kernel: str) -> list[object]:
    """One row: what it takes to check, estimate the bandwidth, compute and store."""
    seconds: list[float] = []
    made: list[StoredRelevance] = []

    def job() -> None:
        start = time.perf_counter()
        relevance = FeatureRelevance(features, labels, kernel=kernel)
        made.append(StoredRelevance.build(relevance, folder))
        seconds.append(time.perf_counter() - start)

    peak = peak_memory(job)
    stored = made[0]
    rng = np.random.default_rng(1)
    i = rng.integers(0, len(labels), PAIRS)
    classes = stored.classes
    j = classes.order[classes.start[classes.number[i]] + rng.integers(0, classes.sizes[classes.number[i]])]
    start = time.perf_counter()
    stored.pairs(i, j)
    asked = time.perf_counter() - start
    shutil.rmtree(folder)
    read, written = features.nbytes / 1e9, 4 * float((classes.sizes**2).sum()) / 1e9
    return [
        features.shape[1],
        kernel,
        f"{seconds[0]:.1f}",
        f"{len(labels) / seconds[0]:,.0f}",
        f"{read / seconds[0]:.3f}",
        f"{written:.2f}",
        f"{peak / 2**20:.0f}",
        f"{PAIRS / asked / 1e6:.1f}",
    ]


def against(features: Features, classes: int) -> list[list[object]]:
    """Rows of ratios on these images, in classes of equal size."""
    size = len(features) // classes
    blocks = [features[start : start + size] for start in range(0, len(features), size)]
    labels = np.repeat(np.arange(classes), size)

    def ours(kernel: str) -> Callable[[], object]:
        relevance = FeatureRelevance(features, labels, kernel=kernel, bandwidth=BANDWIDTHS.get(kernel))
        return lambda: [relevance.block(members) for members in relevance.classes]

    def each(call: Callable[[Features], object]) -> Callable[[], object]:
        return lambda: [call(block) for block in blocks]

    pml = LpDistance(normalize_embeddings=False, power=2)
    calls: dict[str, tuple[str, Callable[[], object]]] = {
        "scikit-learn rbf_kernel, a class": ("gaussian", each(lambda x: rbf_kernel(x, gamma=0.5))),
        "PML LpDistance, all N x N, then exp": (
            "gaussian",
            lambda: pml(torch.from_numpy(features)).mul_(-0.5).exp_(),
        ),
        "scikit-learn laplacian_kernel, a class": (
            "laplacian",
            each(lambda x: laplacian_kernel(x, gamma=0.1)),
        ),
        "scipy cdist cityblock + exp, a class": (
            "laplacian",
            each(lambda x: np.exp(cdist(x, x, "cityblock") / -10)),
        ),
        "torch.cdist p=1 + exp, a class": (
            "laplacian",
            each(lambda x: torch.cdist(torch.from_numpy(x), torch.from_numpy(x), p=1).div_(-10).exp_()),
        ),
        "scikit-learn cosine_similarity, a class": ("cosine", each(cosine_similarity)),
        "numpy minimum, row by row, a class": (
            "intersection",
            each(lambda x: [np.minimum(row, x).sum(1) / np.maximum(row.sum(), x.sum(1)) for row in x]),
        ),
    }
    functions = {name: call for name, (_, call) in calls.items()}
    functions |= {kernel: ours(kernel) for kernel in KERNELS}
    seconds = paired(functions, repeats=3)
    return [
        [features.shape[1], name, kernel, f"{median_ratio(seconds[name], seconds[kernel]):.2f}"]
        for name, (kernel, _) in calls.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--images", type=int, default=500, help="a class")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[512, 1764])
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--compared", type=int, default=5, help="classes of part 2")
    parser.add_argument(
        "--folder", type=Path, help="where to put features and stores; default: a temporary one"
    )
    sizes = parser.parse_args()

    print(machine_line())
    labels = np.repeat(np.arange(sizes.classes), sizes.images)
    rows, ratios = [], []
    with tempfile.TemporaryDirectory(dir=sizes.folder) as folder:
        for dimension in sizes.dimensions:
            path = Path(folder) / "features.npy"
            features = write_features(path, len(labels), dimension)
            rows += [whole(Path(folder) / "store", features, labels, kernel) for kernel in sizes.kernels]
            ratios += against(np.array(features[: sizes.compared * sizes.images]), sizes.compared)
            path.unlink()
    print(f"\n{sizes.classes} classes of {sizes.images} images, float32 features\n")
    header = [
        "D",
        "kernel",
        "s in all",
        "images/s",
        "features read, GB/s",
        "stored, GB",
        "peak above start, MiB",
        "stored pairs, M/s",
    ]
    print(table(rows, header))
    print(f"\n{sizes.compared} classes of {sizes.images} images, in memory\n")
    print(table(ratios, ["D", "instead", "of our kernel", "its time, as a multiple of ours"]))


if __name__ == "__main__":
    main()
