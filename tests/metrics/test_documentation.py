"""The examples in the docstrings of metrics and features run and give what they say."""

import doctest
import importlib
import sys

import pytest

MODULES = [
    "metrics.concordance",
    "metrics.knn",
    "metrics.precision_at_k",
    "metrics.recall_at_k",
    "metrics.calculator",
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
        "ExactKNN",
        "RankingAccuracyCalculator",
        "concordance",
        "concordance_score",
        "nearest",
        "precision_at_k",
        "recall_at_k",
    ]
    assert all(callable(getattr(metrics, name)) for name in metrics.__all__)
