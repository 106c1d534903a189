"""The examples in the docstrings of metrics and features run and give what they say."""

import doctest
import importlib
import sys

import pytest

MODULES = [
    "metrics.calculator",
    "metrics.concordance",
    "metrics.faiss_index",
    "metrics.hit_rate_at_k",
    "metrics.knn",
    "metrics.mean_average_precision",
    "metrics.paired_test",
    "metrics.precision_at_k",
    "metrics.recall_at_k",
    "metrics.rerank",
    "metrics.score_at_top_k",
    "metrics.similarity_precision",
    "metrics.triplet_ranks",
]


@pytest.mark.parametrize("name", [f"dr_plugin.{module}" for module in MODULES])
def test_examples_run(name):
    importlib.import_module(name)
    results = doctest.testmod(sys.modules[name])
    assert results.attempted > 0
    assert results.failed == 0


def test_public_names():
    metrics = importlib.import_module("dr_plugin.metrics")
    assert metrics.__all__ == [
        "ApproximateKNN",
        "ExactKNN",
        "PairedTest",
        "RankingAccuracyCalculator",
        "ScoreAtTopK",
        "SimilarityPrecision",
        "TripletRanks",
        "approximate_recall",
        "build_index",
        "concordance",
        "concordance_score",
        "hit_rate_at_k",
        "load_index",
        "mean_average_precision",
        "nearest",
        "paired_test",
        "pools_by_group",
        "precision_at_k",
        "recall_at_k",
        "recalls_at_k",
        "rerank",
        "save_index",
        "scaled_k",
        "score_at_top_k",
        "search_index",
        "similarity_precision",
        "triplet_ranks",
        "triplets_right",
    ]
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
