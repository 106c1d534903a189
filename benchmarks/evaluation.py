"""Exact nearest neighbours and P@30 against the bare matrix product, faiss and PML's AccuracyCalculator.

The whole of Tiny ImageNet's protocol is `--full`: 10,000 x 100,000 x 4096, about 10 minutes on 2 cores and
6 GB of memory. Embeddings are random and of unit norm.
"""

import argparse

import faiss
import torch
from _harness import machine_line, median_ratio, paired, table
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import FaissKNN
from torch import Tensor

from dr_plugin.metrics import RankingAccuracyCalculator, nearest
from dr_plugin.metrics.tiles import chunk_rows

CLASSES = 200


def unit_norm(rows: int, dimension: int, seed: int) -> Tensor:
    embeddings = torch.empty(rows, dimension).normal_(generator=torch.Generator().manual_seed(seed))
    return embeddings.div_(torch.linalg.vector_norm(embeddings, dim=1, keepdim=True))


def matrix_product(query: Tensor, gallery: Tensor) -> None:
    """What no exact search gets below: all products, in the tiles that ``nearest`` takes by default."""
    chunk = chunk_rows(query.shape[1])
    tile = torch.empty(min(chunk, len(query)), min(chunk, len(gallery)))
    for start in range(0, len(gallery), chunk):
        block = gallery[start : start + chunk]
        for first in range(0, len(query), chunk):
            part = query[first : first + chunk]
            torch.mm(part, block.T, out=tile[: len(part), : len(block)])


def flat_faiss(query: Tensor, gallery: Tensor, k: int) -> tuple[object, object]:
    index = faiss.IndexFlatL2(query.shape[1])
    index.add(gallery.numpy())
    distances, indices = index.search(query.numpy(), k)
    return distances, torch.from_numpy(indices)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--gallery", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=2048)
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="10,000 x 100,000 x 4096, one repeat, no warm-up")
    sizes = parser.parse_args()
    if sizes.full:
        sizes.queries, sizes.gallery, sizes.dimension, sizes.repeats = 10_000, 100_000, 4096, 1

    query = unit_norm(sizes.queries, sizes.dimension, 0)
    gallery = unit_norm(sizes.gallery, sizes.dimension, 1)
    labels = torch.arange(sizes.queries) % CLASSES, torch.arange(sizes.gallery) % CLASSES
    split = query, labels[0], gallery, labels[1]
    device = torch.device("cpu")
    theirs = AccuracyCalculator(include=("precision_at_1",), k=sizes.k, device=device, knn_func=FaissKNN())
    ours = RankingAccuracyCalculator(k=sizes.k, device=device)
    found: dict[str, tuple[object, object]] = {}
    seconds = paired(
        {
            "product": lambda: matrix_product(query, gallery),
            "nearest": lambda: found.update(nearest=nearest(query, gallery, sizes.k)),
            "faiss": lambda: found.update(faiss=flat_faiss(query, gallery, sizes.k)),
            "PML": lambda: theirs.get_accuracy(*split),
            "ours": lambda: ours.get_accuracy(*split),
        },
        repeats=sizes.repeats,
        warmup=0 if sizes.full else 1,
    )
    same = (found["nearest"][1] == found["faiss"][1]).float().mean().item()

    print(machine_line())
    print(
        f"\n{sizes.queries:,} queries x {sizes.gallery:,} gallery x {sizes.dimension}, k = {sizes.k}; "
        f"matrix product alone {min(seconds['product']):.2f} s\n"
    )

    def ratio(what: str, against: str) -> str:
        return f"{median_ratio(seconds[what], seconds[against]):.2f}"

    rows = [
        ["nearest, torch", "matrix product alone", ratio("nearest", "product")],
        ["faiss IndexFlatL2", "matrix product alone", ratio("faiss", "product")],
        [
            f"PML AccuracyCalculator, FaissKNN, precision_at_1, k = {sizes.k}",
            f"RankingAccuracyCalculator, precision_at_{sizes.k}",
            ratio("PML", "ours"),
        ],
    ]
    print(table(rows, ["what", "against", "time, as a multiple"]))
    print(f"\nSame neighbour in the same place as faiss: {same:.2%}.")


if __name__ == "__main__":
    main()
