"""Approximate nearest neighbours for metrics, with their recall against exact search."""

from typing import Any

import torch
from torch import Tensor

from dr_plugin.checks import check_flag, check_whole
from dr_plugin.metrics.faiss_index import Embeddings, Kind, build_index, search_index
from dr_plugin.metrics.index_settings import index_settings
from dr_plugin.metrics.knn import nearest
from dr_plugin.metrics.matches import check_k


def approximate_recall(
    index: Any,
    embeddings: Embeddings,
    queries: Embeddings,
    k: int,
    *,
    sample: int = 200,
    seed: int = 0,
    effort: int | None = None,
) -> float:
    """Share of the k nearest images that the index finds, over a sample of the queries.

    1/S sum_q |found(q) and nearest(q)| / k. An image that is as near as the k-th nearest counts as found too.

    Args:
        index: From ``build_index(embeddings)``.
        embeddings: The gallery, for the exact search.
        queries: What to search for. Images of the gallery find themselves, which is easy: leave them out of it.
        k: Neighbours for each query.
        sample: Queries at most, drawn without replacement.
        seed: Of the draw.
        effort: As in ``search_index``.
    Shape:
        embeddings (N, D), queries (Q, D) -> float in 0..1.
    Raises:
        ValueError: as ``search_index``; if the index holds another number of images than the embeddings.
    """
    sample = check_whole("sample", sample, minimum=1)
    seed = check_whole("seed", seed, minimum=0)
    gallery, query = torch.as_tensor(embeddings), torch.as_tensor(queries)
    count = getattr(index, "ntotal", "no")
    if count != len(gallery):
        raise ValueError(f"got an index of {count} images and {len(gallery)} embeddings, expected as many")
    rows = query[_sample(len(query), sample, seed).to(query.device)]
    return _share_found(search_index(index, rows, k, effort=effort), nearest(rows, gallery, k))


class ApproximateKNN:
    """An index behind the signature of ``ExactKNN``, for ``RankingAccuracyCalculator(knn_func=...)``.

    Every call builds the index of its reference, searches it, and measures ``recall_`` against exact search.

    - Figures of an approximate search are those of another ranking: give ``recall_`` beside them.

    Args:
        kind: As in ``build_index``.
        sample: Queries whose neighbours are compared with the exact ones.
        seed: Of the index and of the sample.
        settings: As in ``build_index``.
    Attributes:
        recall_: Share of the true neighbours that the last call found, over its sample; None before the first.
    Shape:
        query (Q, D), reference (N, D) -> distances (Q, k) float32, indices (Q, k) long.
    Raises:
        ValueError: if the kind or a setting is unknown; at the call as ``build_index`` and ``search_index``.
        ImportError: at the call, if faiss is not installed.
    """

    def __init__(self, kind: Kind = "ivf", *, sample: int = 200, seed: int = 0, **settings: int) -> None:
        index_settings(kind, 2**62, seed, settings)  # whether they fit the gallery is seen at the call
        self.kind: Kind = kind
        self.sample = check_whole("sample", sample, minimum=1)
        self.seed = int(seed)
        self.settings: dict[str, Any] = settings
        self.recall_: float | None = None

    def __call__(
        self, query: Tensor, k: int, reference: Tensor, ref_includes_query: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The k nearest of reference to each query, as far as the index finds them."""
        own = int(check_flag("ref_includes_query", ref_includes_query))
        less = ", the query's own left out" if own else ""
        k = check_k(k, len(reference) - own, f"the rows of the reference{less}")
        if own and not torch.equal(query, reference[: len(query)]):
            raise ValueError("got ref_includes_query=True, expected reference[:len(query)] to be the query")
        index = build_index(reference, self.kind, seed=self.seed, **self.settings)
        found = search_index(index, query, k + own)
        rows = _sample(len(query), self.sample, self.seed).to(query.device)
        exact = nearest(query[rows], reference, k + own)
        if own:
            found = _without(*found, torch.arange(len(query), device=query.device))
            exact = _without(*exact, rows)
        self.recall_ = _share_found((found[0][rows], found[1][rows]), exact)
        return found


def _sample(number: int, sample: int, seed: int) -> Tensor:
    order = torch.randperm(number, generator=torch.Generator().manual_seed(seed))
    return order[:sample].sort().values


def _share_found(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    same = (found[1][:, :, None] == exact[1].to(found[1].device)[:, None, :]).any(2)
    as_near = found[0] <= exact[0][:, -1:].to(found[0].device)
    return float((same | as_near).double().mean())


def _without(distances: Tensor, indices: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """One neighbour less for each query: its own row, or the last where that was not found."""
    is_own = indices == own[:, None]
    is_own[~is_own.any(1), -1] = True
    shape = len(indices), indices.shape[1] - 1
    return distances[~is_own].view(shape), indices[~is_own].view(shape)
