"""Search through indexes against exact search: time of a query, recall, and time to build.

Embeddings are random around 1,000 centres, of unit norm: clustered as a trained model's are. "One by one" are a user's
searches, each a call of its own; "in a batch" is an evaluation.
"""

import argparse
import statistics
import time

import torch
from _harness import machine_line, median_ratio, paired, table
from torch import Tensor

from dr_plugin.metrics import approximate_recall, build_index, nearest, search_index

CENTRES = 1000


def clustered(rows: int, dimension: int, spread: float, seed: int) -> Tensor:
    centres = torch.randn(CENTRES, dimension, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(CENTRES, (rows,), generator=generator)
    embeddings = torch.randn(rows, dimension, generator=generator).mul_(spread).add_(centres[which])
    return embeddings.div_(torch.linalg.vector_norm(embeddings, dim=1, keepdim=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--gallery", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--alone", type=int, default=20, help="queries searched one by one")
    parser.add_argument("--k", type=int, default=30)
    parser.add_argument("--spread", type=float, default=0.8, help="of the embeddings around their centre")
    parser.add_argument("--repeats", type=int, default=5)
    sizes = parser.parse_args()

    gallery = clustered(sizes.gallery, sizes.dimension, sizes.spread, 0)
    query = clustered(sizes.queries, sizes.dimension, sizes.spread, 1)
    some = query[: sizes.alone].split(1)
    indexes, built = {}, {}
    for kind in ("flat", "ivf", "hnsw"):
        start = time.perf_counter()
        indexes[kind] = build_index(gallery, kind)
        built[kind] = time.perf_counter() - start
    searches = {"exact": lambda rows: nearest(rows, gallery, sizes.k)}
    for kind in indexes:
        searches[kind] = lambda rows, index=indexes[kind]: search_index(index, rows, sizes.k)
    batch = paired({name: lambda f=f: f(query) for name, f in searches.items()}, repeats=sizes.repeats)
    alone = paired(
        {name: lambda f=f: [f(one) for one in some] for name, f in searches.items()}, repeats=sizes.repeats
    )

    print(machine_line())
    print(
        f"\n{sizes.gallery:,} x {sizes.dimension}, k = {sizes.k}; {sizes.queries} queries in a batch, "
        f"{sizes.alone} one by one; nearest (torch) is 1\n"
    )
    rows = []
    for name in searches:
        recall = 1.0 if name == "exact" else approximate_recall(indexes[name], gallery, query, sizes.k)
        rows.append(
            [
                {"exact": "nearest, torch", "flat": "index, flat"}.get(name, f"index, {name}, defaults"),
                f"{recall:.3f}",
                f"{median_ratio(batch[name], batch['exact']):.3f}",
                f"{median_ratio(alone[name], alone['exact']):.3f}",
                f"{1000 * statistics.median(alone[name]) / len(some):.2f}",
                f"{built[name]:.1f}" if name in built else "-",
            ]
        )
    header = [
        "search",
        "recall",
        "time, in a batch",
        "time, one by one",
        "ms a query, one by one",
        "s to build",
    ]
    print(table(rows, header))


if __name__ == "__main__":
    main()
