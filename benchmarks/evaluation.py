"""Exact nearest neighbours and P@k against the bare matrix product, faiss and PML's AccuracyCalculator: time and
peak memory. On a GPU, for which the usual faiss is not made, PML's CustomKNN stands in the place of faiss.

Q queries, N images of the gallery, embeddings of D numbers, random and of unit norm. The whole of Tiny ImageNet's
protocol is

    python benchmarks/evaluation.py --queries 10000 --gallery 100000 --dimension 4096 --gallery-curve \
        --repeats 1 --no-peak

where each of 18 calls takes a minute or two on 2 cores, and 6 GB of memory.
"""

from collections.abc import Callable
from functools import partial

import faiss
import torch
from _cases import Case, Sides
from _tables import alone
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN, FaissKNN
from torch import Tensor

from dr_plugin.metrics import RankingAccuracyCalculator, nearest
from dr_plugin.metrics.tiles import chunk_rows

CLASSES = 200
AGAINST = {
    "product": "the matrix product alone",
    "faiss": "faiss IndexFlatL2",
    "custom": "PML CustomKNN(LpDistance())",
}

FULL = {
    "queries": 2000,
    "gallery": 50_000,
    "dimension": 512,
    "k": 30,
    "gallery_curve": [6_250, 12_500, 25_000, 50_000],
}
QUICK = {"queries": 8, "gallery": 64, "dimension": 8, "k": 3, "gallery_curve": [16, 32, 64]}


def unit_norm(rows: int, dimension: int, seed: int) -> Tensor:
    embeddings = torch.empty(rows, dimension).normal_(generator=torch.Generator().manual_seed(seed))
    return embeddings.div_(torch.linalg.vector_norm(embeddings, dim=1, keepdim=True))


def matrix_product(query: Tensor, gallery: Tensor) -> None:
    """What no exact search gets below: all products, in the tiles that ``nearest`` takes by default."""
    chunk = chunk_rows(query.shape[1])
    tile = torch.empty(min(chunk, len(query)), min(chunk, len(gallery)), device=query.device)
    for start in range(0, len(gallery), chunk):
        block = gallery[start : start + chunk]
        for first in range(0, len(query), chunk):
            part = query[first : first + chunk]
            torch.mm(part, block.T, out=tile[: len(part), : len(block)])


def flat_faiss(query: Tensor, gallery: Tensor, k: int) -> tuple[object, object]:
    index = faiss.IndexFlatL2(query.shape[1])
    index.add(gallery.cpu().numpy())
    distances, indices = index.search(query.cpu().numpy(), k)
    return distances, torch.from_numpy(indices)


def custom_knn() -> CustomKNN:
    """All distances at once, on any device."""
    return CustomKNN(LpDistance())


def search_sides(
    backend: str, against: str, *, Q: int, N: int, D: int, k: int, device: torch.device
) -> Sides:
    query, gallery = unit_norm(Q, D, 0).to(device), unit_norm(N, D, 1).to(device)
    theirs: Callable[[], object] = partial(matrix_product, query, gallery)
    if against == "faiss":
        theirs = partial(flat_faiss, query, gallery, k)
    if against == "custom":
        theirs = partial(custom_knn(), query, k, gallery)
    return Sides(partial(nearest, query, gallery, k, backend=backend), theirs)


def calculator_sides(
    knn: Callable[[], object], *, Q: int, N: int, D: int, k: int, device: torch.device
) -> Sides:
    """P@k, and PML's P@1 from as many neighbours: it has no P@k."""
    query, gallery = unit_norm(Q, D, 0).to(device), unit_norm(N, D, 1).to(device)
    split = query, torch.arange(Q) % CLASSES, gallery, torch.arange(N) % CLASSES
    ours = RankingAccuracyCalculator(k=k, device=device)
    theirs = AccuracyCalculator(include=("precision_at_1",), k=k, device=device, knn_func=knn())
    return Sides(partial(ours.get_accuracy, *split), partial(theirs.get_accuracy, *split))


def cases(*, queries: int, gallery: int, dimension: int, k: int, gallery_curve: list[int]) -> list[Case]:
    sizes = {"Q": queries, "N": gallery, "D": dimension, "k": k}

    def case(what: str, against: str, make: Callable[..., Sides], on: str | None = None) -> Case:
        return Case("evaluation", what, against, make, sizes, peak=True, on=on)

    def search(what: str, backend: str, against: str, on: str | None = None) -> Case:
        return case(what, AGAINST[against], partial(search_sides, backend, against), on)

    def calculator(name: str, knn: Callable[[], object], on: str) -> Case:
        against = f"PML AccuracyCalculator, {name}, P@1"
        return case("RankingAccuracyCalculator, P@k", against, partial(calculator_sides, knn), on)

    ours = search("nearest", "torch", "product")
    calculators = [calculator("FaissKNN", FaissKNN, "cpu"), calculator("CustomKNN", custom_knn, "cuda")]
    found = [
        ours,
        search("nearest", "torch", "faiss", "cpu"),
        search("nearest", "torch", "custom", "cuda"),
        search("nearest(backend='faiss')", "faiss", "product", "cpu"),
        *calculators,
    ]
    for growing in (ours, *calculators):
        found += growing.curve("N", gallery_curve)
    return found


def same_as_faiss(queries: int, gallery: int, dimension: int, k: int) -> float:
    """The share of neighbours that stand in the same place in both."""
    embeddings = unit_norm(queries, dimension, 0), unit_norm(gallery, dimension, 1)
    return (nearest(*embeddings, k)[1] == flat_faiss(*embeddings, k)[1]).float().mean().item()


if __name__ == "__main__":
    sizes = alone(__doc__, cases, FULL, QUICK)
    del sizes["gallery_curve"]
    print(f"\nSame neighbour in the same place as faiss: {same_as_faiss(**sizes):.2%}.")
