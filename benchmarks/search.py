"""`dr search` on a large gallery: loading what is kept beside the run, and the search, against exact torch.

Embeddings are random and of unit norm; a query is an embedding near one of the gallery's.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from _harness import machine_line, median_ratio, paired, table
from torch import Tensor

from dr_plugin.evaluation.search_gallery import Gallery
from dr_plugin.evaluation.search_index import GalleryIndex
from dr_plugin.metrics import nearest


class Given:
    """A model whose embeddings are given."""

    name, fingerprint, distance, image_size, recipe = "given", "1", "euclidean", 1, None

    def __init__(self, embeddings: Tensor) -> None:
        self.embeddings = embeddings

    def fit(self, images: object, *, progress: object = None) -> None:
        """Nothing."""

    def embed(self, images: object, *, progress: object = None) -> Tensor:
        """All of them."""
        return self.embeddings


def matrix_product(query: Tensor, gallery: Tensor, k: int) -> Tensor:
    """The least that an exact search does: all products, and the k largest."""
    return (query @ gallery.T).topk(k, dim=1).indices


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--gallery", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--queries", type=int, default=64, help="in the batch")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=7)
    sizes = parser.parse_args()

    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(
        torch.randn(sizes.gallery, sizes.dimension, generator=generator)
    )
    near = torch.randperm(sizes.gallery, generator=generator)[: sizes.queries]
    query = torch.nn.functional.normalize(
        embeddings[near] + 0.02 * torch.randn(sizes.queries, sizes.dimension, generator=generator)
    )
    names = [f"class {i % 200}/image {i}.jpg" for i in range(sizes.gallery)]
    gallery = Gallery("benchmark", "1", names, range(sizes.gallery), (1, 1))  # type: ignore[arg-type]

    print(machine_line())
    with tempfile.TemporaryDirectory() as folder:
        model, started = Given(embeddings), time.perf_counter()
        index = GalleryIndex.build(model, gallery, Path(folder))
        made, loaded = time.perf_counter() - started, []
        for _ in range(3):
            started = time.perf_counter()
            index = GalleryIndex.build(model, gallery, Path(folder))
            loaded.append(time.perf_counter() - started)
        rows = []
        for what, asked in (("one query", query[:1]), (f"{sizes.queries} queries at once", query)):
            seconds = paired(
                {
                    "search": lambda asked=asked: index.search(asked, sizes.k),
                    "product": lambda asked=asked: matrix_product(asked, embeddings, sizes.k),
                    "nearest": lambda asked=asked: nearest(asked, embeddings, sizes.k),
                },
                repeats=sizes.repeats,
            )
            each = statistics.median(seconds["search"]) / len(asked)
            against = [
                f"{median_ratio(seconds['search'], seconds[name]):.2f}" for name in ("product", "nearest")
            ]
            rows.append([what, f"{1000 * each:.2f} ms", *against])
        same = (
            (index.search(query, sizes.k)[1] == nearest(query, embeddings, sizes.k)[1]).float().mean().item()
        )

    print(
        f"\n{sizes.gallery:,} images x {sizes.dimension}, k = {sizes.k}; index made and written in {made:.1f} s, "
        f"loaded in {statistics.median(loaded):.2f} s (embedding apart)\n"
    )
    print(
        table(
            rows,
            [
                "GalleryIndex.search",
                "a query",
                "time, as a multiple of torch's product and topk",
                "of `nearest`, exact torch",
            ],
        )
    )
    print(f"\nSame neighbour in the same place as exact torch: {same:.2%}.")


if __name__ == "__main__":
    main()
