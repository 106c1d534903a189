"""How well distances agree with rated triplets: the two metrics of section 6.3, made honest on small pools."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin.metrics import (
    pools_by_group,
    scaled_k,
    similarity_precision,
    triplet_ranks,
    triplets_right,
)
from dr_plugin.relevance.distances import feature_distances, triplet_distances

from .data import RatedData

Array = npt.NDArray[Any]

POOL_SHARE = 0.03  # the paper's 30 of 1,000
_MOST_BYTES = 2**30  # of distances that are held
_QUERIES = 256  # whose distances are computed at once


class TripletDistances(Protocol):
    """Distances among N images, as rated triplets need them."""

    def of_triplets(self) -> tuple[Array, Array]:
        """Query to positive and query to negative, (T,) each."""

    def of_queries(self, queries: Tensor) -> Tensor:
        """Of these images (q,) to all: (q, N)."""


@dataclass(frozen=True)
class FeatureDistances:
    """The distances of one feature or embedding.

    Attributes:
        how: As of `feature_distances`.
        features: (N, F).
        triplets: (T, 3).
    """

    how: Any
    features: Array
    triplets: Tensor

    def of_triplets(self) -> tuple[Array, Array]:
        """Query to positive and query to negative, (T,) each."""
        return triplet_distances(self.how, self.features, self.triplets.numpy())

    def of_queries(self, queries: Tensor) -> Tensor:
        """Of these images (q,) to all: (q, N)."""
        return torch.from_numpy(feature_distances(self.how, self.features[queries.numpy()], self.features))


class HeldDistances:
    """The distances of the triplets' queries to all images, computed once where 1 GiB holds them.

    Args:
        distances: Those to hold.
        triplets: (T, 3); distances of other images than their queries are computed when asked for.
        count: N images.
    """

    def __init__(self, distances: TripletDistances, triplets: Tensor, count: int) -> None:
        self._distances, self._queries = distances, triplets[:, 0].unique()
        self._held: Tensor | None = None
        self._fits = 4 * len(self._queries) * count <= _MOST_BYTES

    def of_triplets(self) -> tuple[Array, Array]:
        """Query to positive and query to negative, (T,) each."""
        return self._distances.of_triplets()

    def of_queries(self, queries: Tensor) -> Tensor:
        """Of these images (q,) to all: (q, N)."""
        if not self._fits or not torch.isin(queries, self._queries).all():
            return self._distances.of_queries(queries)
        if self._held is None:
            parts = [self._distances.of_queries(part) for part in self._queries.split(_QUERIES)]
            self._held = torch.cat(parts)
        return self._held[torch.searchsorted(self._queries, queries)]


@dataclass(frozen=True)
class Judged:
    """A model's figures on rated triplets.

    Attributes:
        figures: Plain numbers, for JSON.
        right: (T,) 1 for a triplet ranked right, 1/2 for a tie, else 0: what a paired test compares.
    """

    figures: dict[str, Any]
    right: Tensor


def judge(
    distances: TripletDistances,
    data: RatedData,
    *,
    k: int = 30,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Judged:
    """Similarity precision and the scores at top K of distances on rated triplets.

    - Ties are half right.
    - The interval resamples groups of triplets that share a text query or an image.
    - The paper's score has pools of 1,000 images for each text query, which were never published. Three scores stand
      for it: the K nearest among the images of the query's own text query; the same with K as the paper's share of the
      pool, 3%; and the K nearest of all images.

    Args:
        distances: Of the data's images.
        data: The triplets.
        k: K.
        confidence: Of the interval.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    Raises:
        ValueError: from the metrics, if distances are not finite or k is none.
    """
    positive, negative = distances.of_triplets()
    distances = HeldDistances(distances, data.triplets, len(data.images))

    def precision(keep: np.ndarray[Any, Any] | slice) -> dict[str, Any]:
        found = similarity_precision(
            positive[keep],
            negative[keep],
            groups=data.groups[keep],
            confidence=confidence,
            resamples=resamples,
            seed=seed,
        )
        return plain(found)

    whole = np.setdiff1d(np.arange(len(positive)), data.degenerate.numpy())
    figures: dict[str, Any] = {"similarity_precision": precision(slice(None))}
    if 0 < len(whole) < len(positive):
        figures["similarity_precision_without_degenerate"] = precision(whole)
    pools = pools_by_group(data.triplets, data.text_queries)
    own = triplet_ranks(distances.of_queries, data.triplets, pools)
    one = triplet_ranks(distances.of_queries, data.triplets)
    figures[f"score_at_top_{k}"] = plain(own.score(k))
    figures["score_at_top_share"] = {
        "share": POOL_SHARE,
        **plain(own.score(scaled_k(own.pool_size, POOL_SHARE))),
    }
    figures[f"score_at_top_{k}_of_all"] = plain(one.score(k))
    return Judged(figures, triplets_right(positive, negative))


def plain(result: Any) -> dict[str, Any]:
    """A metric's result as JSON has it: lists for tuples, null for an end of an interval that there is not."""

    def value(given: Any) -> Any:
        if isinstance(given, tuple):
            return list(given)
        return None if isinstance(given, float) and math.isnan(given) else given

    return {name: value(given) for name, given in asdict(result).items()}
