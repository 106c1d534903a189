"""A TripletStream of ten times its byte budget: it trains, within its memory, as fast as WebDataset reads.

    python benchmarks/stream.py
    python benchmarks/stream.py --images 60000 --size 64

Three things are measured on images that it makes in a temporary folder:

- images per second of the stream against a plain WebDataset pipeline (shuffle buffer of as many images, decoded,
  batched), both reading the same shards in one process and thread, every image about once;
- the peak memory that a fresh process adds when it reads a stream of 10 x its byte budget, and then when it trains a
  small network on it; and the same on a tenth of that stream, which shows what the stream's length costs;
- whether that training learns: precision at 10 on held-out images before and after.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from _cases import Case, Sides
from _harness import peak_memory, scratch_folder, table
from _tables import alone
from pytorch_metric_learning.miners import EmbeddingsAlreadyPackagedAsTriplets

from dr_plugin.datasets import TripletStream, write_shards
from dr_plugin.datasets.image_buffers import OVERHEAD
from dr_plugin.datasets.shard_reader import find_shards, read_shard
from dr_plugin.losses import DeepRankingLoss
from dr_plugin.metrics import precision_at_k
from dr_plugin.metrics.knn import nearest
from dr_plugin.trunks import SmallConvNet

FULL = {
    "images": 6000,
    "classes": 20,
    "size": 48,
    "batch_size": 150,
    "image_curve": [1500, 3000, 6000],
    "class_curve": [5, 10, 20],
    "batch_curve": [30, 90, 300],
}
QUICK = {
    "images": 240,
    "classes": 4,
    "size": 24,
    "batch_size": 12,
    "image_curve": [240, 320, 400],
    "class_curve": [2, 3, 4],
    "batch_curve": [6, 12, 24],
}


def make_images(count: int, classes: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, size, size) of stripes under noise, whose direction is the class's; labels (N,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    rows, columns = np.mgrid[:size, :size] / size
    images = np.empty((count, 3, size, size), np.uint8)
    for index, label in enumerate(labels):
        turn = np.pi * label / classes
        along = rows * np.sin(turn) + columns * np.cos(turn)
        stripes = np.sin(2 * np.pi * (size / 8 * along + random.random()))
        noise = random.normal(0, 70, (3, size, size))
        images[index] = (128 + 25 * stripes + noise).clip(0, 255)
    return images, labels


class RandomTotals:
    """Stands for a relevance of which only the totals are asked for."""

    def __init__(self, count: int) -> None:
        self._totals = np.random.default_rng(0).uniform(0.1, 2.0, count)

    def __len__(self) -> int:
        return len(self._totals)

    def pairs(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Not needed where there are no in-class negatives."""
        raise NotImplementedError

    def total(self, i: np.ndarray) -> np.ndarray:
        """Some number above 0 for each image."""
        return self._totals[i]


class Shards(NamedTuple):
    """Images written as shards, and what a stream of them needs to know."""

    folder: Path
    classes: int
    size: int
    batch_size: int
    budget: int
    held: int

    def stream(self) -> TripletStream:
        """A stream within the budget."""
        return TripletStream(self.folder, batch_size=self.batch_size, byte_budget=self.budget, seed=1)


@cache
def written(count: int, classes: int, size: int) -> Path:
    """So many images as 12 shards."""
    folder, (images, labels) = scratch_folder(), make_images(count, classes, size, seed=0)
    write_shards(images, labels, folder, relevance=RandomTotals(count), images_per_shard=-(-count // 12))
    return folder


def shards(count: int, classes: int, size: int, batch_size: int) -> Shards:
    """So many images, with a byte budget of a tenth of them."""
    folder = written(count, classes, size)
    bytes_ = [len(sample.image) for shard in find_shards(folder) for sample in read_shard(shard)]
    budget = sum(bytes_) // 10
    held = max(1, budget // int(np.mean(bytes_) + OVERHEAD))
    return Shards(folder, classes, size, batch_size, budget, held)


def train(long: Shards) -> dict[str, float]:
    """One epoch of the stream alone and two of training; peak memory is what each adds to the process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(SmallConvNet(), torch.nn.LazyLinear(32))
    images, labels = (torch.from_numpy(array) for array in make_images(1000, long.classes, long.size, seed=1))
    with torch.no_grad():
        trunk(images[:2] / 255)
    optimizer = torch.optim.Adam(trunk.parameters(), lr=1e-3)
    loss, miner = DeepRankingLoss(gap=0.2), EmbeddingsAlreadyPackagedAsTriplets()

    def embed(batch: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(trunk(batch / 255 - 0.5))

    def step(batch: torch.Tensor, classes: torch.Tensor) -> None:
        optimizer.zero_grad()
        embeddings = embed(batch)
        loss(embeddings, classes, miner(embeddings, classes)).backward()
        optimizer.step()

    @torch.no_grad()
    def precision() -> float:
        trunk.eval()
        embeddings = torch.cat([embed(part) for part in images.split(100)])
        trunk.train()
        _, found = nearest(embeddings, embeddings, 10, exclude_self=True)
        return float(precision_at_k(labels[found], labels, 10))

    reading = long.stream()
    peak_alone = peak_memory(lambda: sum(len(classes) for _, classes in reading))
    before = precision()
    stream = long.stream()

    def run() -> None:
        for _ in range(2):
            for batch, classes in stream:
                step(batch, classes)

    peak = peak_memory(run)
    return {"alone": peak_alone, "peak": peak, "before": before, "after": precision(), **stream.counters}


def webdataset_pass(long: Shards) -> int:
    """Images that a plain pipeline with a shuffle buffer gives in one pass."""
    pipeline = (
        webdataset.WebDataset(
            [str(shard) for shard in find_shards(long.folder)], shardshuffle=False, empty_check=False
        )
        .shuffle(long.held, initial=long.held)
        .decode("rgb8")
        .to_tuple("png", "cls")
        .batched(long.batch_size)
    )
    return sum(len(labels) for _, labels in pipeline)


def sides(*, N: int, C: int, px: int, B: int, device: torch.device) -> Sides:
    """Both sides read every image about once, and decode as many."""
    long = shards(N, C, px, B)
    stream = long.stream()
    return Sides(lambda: sum(len(labels) for _, labels in stream), lambda: webdataset_pass(long), (N, N))


def cases(
    *,
    images: int,
    classes: int,
    size: int,
    batch_size: int,
    image_curve: list[int],
    class_curve: list[int],
    batch_curve: list[int],
) -> list[Case]:
    against = "WebDataset, shuffle buffer of as many images"
    sizes = {"N": images, "C": classes, "px": size, "B": batch_size}
    stream = Case("data pipeline", "TripletStream", against, sides, sizes, unit="image", threads=1)
    few = replace(stream, sizes={**sizes, "N": min(image_curve, default=images)})
    curves = few.curve("C", class_curve) + few.curve("B", batch_curve)
    return [stream, *stream.curve("N", image_curve), *curves]


def extras(sizes: dict[str, Any]) -> None:
    """Memory and learning, each row in a fresh process, where nothing was allocated before."""
    count, rest = sizes["images"], (sizes["classes"], sizes["size"], sizes["batch_size"])
    long = shards(count, *rest)
    rows = []
    for name, part in (
        (f"{count:,} images, 10 x the budget", long),
        ("a tenth of them", shards(count // 10, *rest)._replace(budget=long.budget)),
    ):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            result = fresh.submit(train, part).result()
        mebibytes = (f"{number / 2**20:.1f}" for number in (part.budget, result["alone"], result["peak"]))
        learned = f"{result['before']:.3f} -> {result['after']:.3f}"
        rows.append((name, *mebibytes, learned, f"{result['inexact'] / result['accepted']:.0%}"))
    memory = ["budget, MiB", "reading adds, MiB", "training adds, MiB"]
    print("\n" + table(rows, ["stream", *memory, "precision at 10", "inexact"]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    extras(alone(__doc__, cases, FULL, QUICK))
