"""A TripletStream of ten times its byte budget: it trains, within its memory, as fast as WebDataset reads.

    python benchmarks/stream.py
    python benchmarks/stream.py --images 60000 --size 64

Three things are measured on images that it makes in a temporary folder:

- the peak memory that a fresh process adds when it reads a stream of 10 x its byte budget, and then when it trains a
  small network on it; and the same on a tenth of that stream, which shows what the stream's length costs;
- whether that training learns: precision at 10 on held-out images before and after;
- images per second of the stream against a plain WebDataset pipeline (shuffle buffer of as many images, decoded,
  batched), both reading the same shards in one process.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import webdataset
from _harness import machine_line, median_ratio, paired, peak_memory, table
from pytorch_metric_learning.miners import EmbeddingsAlreadyPackagedAsTriplets

from dr_plugin.datasets import TripletStream, write_shards
from dr_plugin.datasets.image_buffers import OVERHEAD
from dr_plugin.datasets.shard_reader import find_shards, read_shard
from dr_plugin.losses import DeepRankingLoss
from dr_plugin.metrics import precision_at_k
from dr_plugin.metrics.knn import nearest
from dr_plugin.trunks import SmallConvNet

CLASSES = 20


def make_images(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, size, size) of stripes under noise, whose direction is the class's; labels (N,)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, count)
    rows, columns = np.mgrid[:size, :size] / size
    images = np.empty((count, 3, size, size), np.uint8)
    for index, label in enumerate(labels):
        turn = np.pi * label / CLASSES
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


def write(folder: Path, count: int, args: argparse.Namespace) -> None:
    """So many images, as 12 shards."""
    images, labels = make_images(count, args.size, seed=0)
    write_shards(images, labels, folder, relevance=RandomTotals(count), images_per_shard=-(-count // 12))


def train(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """One epoch of the stream alone and two of training; peak memory is what each adds to the process."""
    torch.manual_seed(0)
    trunk = torch.nn.Sequential(SmallConvNet(), torch.nn.LazyLinear(32))
    images, labels = (torch.from_numpy(array) for array in make_images(1000, args.size, seed=1))
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

    alone = _stream(folder, args)
    peak_alone = peak_memory(lambda: sum(len(classes) for _, classes in alone))
    before = precision()
    stream = _stream(folder, args)

    def run() -> None:
        for _ in range(2):
            for batch, classes in stream:
                step(batch, classes)

    peak = peak_memory(run)
    return {"alone": peak_alone, "peak": peak, "before": before, "after": precision(), **stream.counters}


def _stream(folder: Path, args: argparse.Namespace) -> TripletStream:
    return TripletStream(folder, batch_size=args.batch_size, byte_budget=args.budget, seed=1)


def in_a_fresh_process(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """`train`, where nothing was allocated before."""
    options = [f"--size={args.size}", f"--batch-size={args.batch_size}", f"--budget={args.budget}"]
    command = [sys.executable, __file__, f"--train={folder}", *options]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    result: dict[str, float] = json.loads(output)
    return result


def webdataset_pass(folder: Path, args: argparse.Namespace, held: int) -> int:
    """Images that a plain pipeline with a shuffle buffer gives in one pass."""
    shards = [str(shard) for shard in find_shards(folder)]
    pipeline = (
        webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
        .shuffle(held, initial=held)
        .decode("rgb8")
        .to_tuple("png", "cls")
        .batched(args.batch_size)
    )
    return sum(len(labels) for _, labels in pipeline)


def compare_speed(folder: Path, args: argparse.Namespace, held: int) -> str:
    """Both sides read every image about once, and decode as many."""
    stream = _stream(folder, args)
    sides = {
        "TripletStream": lambda: sum(len(labels) for _, labels in stream),
        f"WebDataset, shuffle buffer of {held} images": lambda: webdataset_pass(folder, args, held),
    }
    seconds = paired(sides, repeats=args.repeats, warmup=0)
    taken = list(seconds.values())
    rows = []
    for name, times in seconds.items():
        rate = args.images / statistics.median(times)
        rows.append((name, f"{rate:,.0f}", f"{median_ratio(taken[1], times):.2f}"))
    return table(rows, ["one process, one thread", "images/s", "ratio"])


def compare_memory(long: Path, short: Path, args: argparse.Namespace) -> str:
    rows = []
    for name, folder in ((f"{args.images} images, 10 x the budget", long), ("a tenth of them", short)):
        result = in_a_fresh_process(folder, args)
        rows.append(
            (
                name,
                f"{args.budget / 2**20:.1f}",
                f"{result['alone'] / 2**20:.1f}",
                f"{result['peak'] / 2**20:.1f}",
                f"{result['before']:.3f} -> {result['after']:.3f}",
                f"{result['inexact'] / result['accepted']:.0%}",
            )
        )
    memory = ["budget, MiB", "reading adds, MiB", "training adds, MiB"]
    header = ["stream", *memory, "precision at 10", "inexact"]
    return table(rows, header)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=12_000, help="of the long stream")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.train is not None:
        print(json.dumps(train(args.train, args)))
        return
    with tempfile.TemporaryDirectory() as root:
        long, short = Path(root) / "long", Path(root) / "short"
        write(long, args.images, args)
        write(short, args.images // 10, args)
        sizes = [len(sample.image) for shard in find_shards(long) for sample in read_shard(shard)]
        args.budget = sum(sizes) // 10
        print(machine_line())
        print(f"{len(sizes)} images of {args.size} px, {np.mean(sizes):.0f} bytes each; {CLASSES} classes\n")
        print(compare_memory(long, short, args), "\n")
        print(compare_speed(long, args, held=args.budget // int(np.mean(sizes) + OVERHEAD)))


if __name__ == "__main__":
    main()
