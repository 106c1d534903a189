"""Metrics and nearest neighbours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr_plugin import metrics

from .entries import Call, Entry
from .small import LABELS, POINTS, TRIPLETS

NEIGHBORS = LABELS[torch.tensor([[1, 2, 3], [0, 2, 4], [4, 5, 0]])]
QUERIES = LABELS[[0, 1, 3]]
RELEVANT = torch.tensor([[True, False, True], [False, False, True], [True, True, True]])
NEAR, FAR = torch.tensor([0.1, 0.2, 0.9, 0.5]), torch.tensor([0.4, 0.3, 0.2, 0.5])
RIGHT, OTHERS = torch.tensor([1.0, 0.5, 0.0, 1.0]), torch.tensor([0.0, 0.5, 1.0, 1.0])
GRADES = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.1, 0.0]])
RANKS = torch.tensor([1, 5, 40, 3])
SEARCHED = {
    "call": Call(
        lambda knn, **inputs: knn(**inputs),
        lambda _: {"query": POINTS[:3], "k": 2, "reference": POINTS, "ref_includes_query": False},
    )
}
RESAMPLED = frozenset({"resamples"})


def _neighbors(_: Path) -> dict[str, Any]:
    return {"neighbor_labels": NEIGHBORS, "query_labels": QUERIES, "k": 2}


def _distances(queries: torch.Tensor) -> torch.Tensor:
    return torch.cdist(POINTS[queries], POINTS)


def _searched(knn: Any) -> Any:
    return knn(POINTS[:3], 2, POINTS)


ENTRIES: Mapping[str, Entry] = {
    "metrics.ApproximateKNN": Entry(
        metrics.ApproximateKNN,
        lambda _: {"kind": "ivf"},
        _searched,
        SEARCHED,
        called={"query": "reference", "reference": "embeddings"},
    ),
    "metrics.ExactKNN": Entry(
        metrics.ExactKNN, lambda _: {}, _searched, SEARCHED, called={"reference": "gallery|query"}
    ),
    "metrics.RankingAccuracyCalculator": Entry(
        metrics.RankingAccuracyCalculator,
        lambda _: {"k": 2, "device": "cpu"},
        lambda made: list(made.get_accuracy(POINTS, LABELS, ref_includes_query=True).values()),
        {
            "get_accuracy": Call(
                # NaN where the reference holds no query's class, as in PML.
                lambda made, **inputs: np.nan_to_num(list(made.get_accuracy(**inputs).values())),
                lambda _: {
                    "query": POINTS[:3],
                    "query_labels": LABELS[:3],
                    "reference": POINTS,
                    "reference_labels": LABELS,
                    "ref_includes_query": False,
                },
            )
        },
        functions=frozenset({"knn_func", "kmeans_func"}),
        called={
            "recall_at": "k",
            "map_at": "k",
            "query_labels": "labels|query",
            "reference_labels": "labels|reference",
            "reference": "gallery|k",
        },
    ),
    "metrics.approximate_recall": Entry(
        metrics.approximate_recall,
        lambda _: {"index": metrics.build_index(POINTS), "embeddings": POINTS, "queries": POINTS[:3], "k": 2},
        called={"embeddings": "gallery|index", "queries": "query"},
    ),
    "metrics.build_index": Entry(
        metrics.build_index, lambda _: {"embeddings": POINTS}, lambda index: index.ntotal
    ),
    "metrics.concordance": Entry(
        lambda distances, relevance: metrics.concordance(distances, relevance).nan_to_num(),
        lambda _: {"distances": GRADES, "relevance": GRADES.flip(1)},
    ),
    "metrics.concordance_score": Entry(
        metrics.concordance_score,
        lambda _: {"distances": GRADES, "relevance": GRADES.flip(1), "radius": torch.tensor([0.5, 0.1])},
    ),
    "metrics.hit_rate_at_k": Entry(metrics.hit_rate_at_k, lambda _: {"relevance": GRADES, "k": 2}),
    "metrics.load_index": Entry(
        metrics.load_index,
        lambda at: {"path": at / "index.faiss"},
        lambda index: index.ntotal,
        called={"path": "index"},
        also=(OSError,),
    ),
    "metrics.mean_average_precision": Entry(
        metrics.mean_average_precision,
        lambda _: {"relevant": RELEVANT, "relevant_count": RELEVANT.sum(1), "ignored": ~RELEVANT},
    ),
    "metrics.nearest": Entry(
        metrics.nearest, lambda _: {"query": POINTS[:3], "gallery": POINTS, "k": 2}, examples=40
    ),
    "metrics.paired_test": Entry(
        metrics.paired_test,
        lambda _: {
            "first_right": RIGHT,
            "second_right": OTHERS,
            "groups": ["a", "b", "a", "c"],
            "resamples": 10,
        },
        lambda found: (found.difference, found.p_value),
        unbounded=RESAMPLED,
    ),
    "metrics.pools_by_group": Entry(
        metrics.pools_by_group,
        lambda _: {"triplets": torch.stack(TRIPLETS, 1), "groups": ["car", "cat"]},
        lambda found: found[1],
        called={"triplets": "groups"},
    ),
    "metrics.precision_at_k": Entry(metrics.precision_at_k, _neighbors),
    "metrics.recall_at_k": Entry(metrics.recall_at_k, _neighbors),
    "metrics.recalls_at_k": Entry(
        metrics.recalls_at_k,
        lambda _: {"neighbor_labels": NEIGHBORS, "query_labels": QUERIES, "ks": (1, 2)},
        lambda found: list(found.values()),
        called={"ks": "k", "neighbor_labels": "k"},
    ),
    "metrics.rerank": Entry(
        metrics.rerank, lambda _: {"indices": torch.tensor([[7, 3, 5, 9]]), "similarities": torch.rand(1, 3)}
    ),
    "metrics.save_index": Entry(
        metrics.save_index,
        lambda at: {"index": metrics.build_index(POINTS), "path": at / "new.faiss"},
        also=(OSError,),
    ),
    "metrics.scaled_k": Entry(metrics.scaled_k, lambda _: {"pool_sizes": torch.tensor([1000, 100])}),
    "metrics.score_at_top_k": Entry(
        metrics.score_at_top_k, lambda _: {"positive_ranks": RANKS, "negative_ranks": RANKS.flip(0), "k": 30}
    ),
    "metrics.search_index": Entry(
        metrics.search_index, lambda _: {"index": metrics.build_index(POINTS), "query": POINTS[:3], "k": 2}
    ),
    "metrics.similarity_precision": Entry(
        metrics.similarity_precision,
        lambda _: {
            "positive_distances": NEAR,
            "negative_distances": FAR,
            "groups": ["a", "b", "a", "c"],
            "resamples": 10,
        },
        float,
        unbounded=RESAMPLED,
        called={"positive_distances": "distances|ties", "negative_distances": "distances|ties"},
    ),
    "metrics.triplet_ranks": Entry(
        metrics.triplet_ranks,
        lambda _: {
            "distances": _distances,
            "triplets": torch.stack(TRIPLETS, 1),
            "pools": (np.array([0, 1]), [np.array([0, 1, 3]), np.array([0, 3, 4])]),
        },
        lambda ranks: ranks.positive,
        functions=frozenset({"distances"}),
        called={"pools": "pool", "triplets": "pool"},
    ),
    "metrics.triplets_right": Entry(
        metrics.triplets_right, lambda _: {"positive_distances": NEAR, "negative_distances": FAR}
    ),
}
