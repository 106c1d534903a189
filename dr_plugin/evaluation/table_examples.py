"""The picture of Fig. 7: what some rows of a table rank first, side by side."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dr_plugin.atomic import replacing
from dr_plugin.datasets import SimilarityTriplets

from .data import RatedData
from .ingredients import Ingredient
from .ranking_examples import ranking_examples
from .table_schema import Examples


def write_examples(
    file: Path,
    settings: Examples,
    source: SimilarityTriplets,
    data: RatedData,
    rows: Mapping[str, Ingredient],
    *,
    seed: int,
) -> None:
    """Write the picture: some queries drawn from the seed, and of all images those that each row ranks first.

    Args:
        file: The PNG to write.
        settings: Which rows, how many queries and images.
        source: Has the images' files, which are shown whole.
        data: The rated triplets.
        rows: By name.
        seed: Of the choice of queries.
    """
    queries = _queries(data, settings.queries, seed)
    ranked = [(name, rows[name].distances.of_queries(torch.from_numpy(queries))) for name in settings.rows]
    picture = ranking_examples(ranked, source.paths, queries.tolist(), settings.top)
    with replacing(file) as stream:
        stream.write(picture)


def _queries(data: RatedData, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Query images of different text queries."""
    texts = np.asarray(data.text_queries)
    first = np.unique(texts, return_index=True)[1]  # the first triplet of each text query
    chosen = np.random.default_rng(seed).permutation(first)[:count]
    queries: npt.NDArray[np.int64] = data.triplets[np.sort(chosen), 0].numpy()
    return np.unique(queries)
