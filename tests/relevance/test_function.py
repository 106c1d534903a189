import doctest
import pickle
import sys

import numpy as np
import pytest

from dr_plugin.relevance import FunctionRelevance


def nearness(i, j):
    return 1.0 / (1 + abs(i - j) + (i > j))  # not symmetric


@pytest.mark.parametrize("labels", [[0, 0, 1, 0, 1], None])
def test_function_within_classes_by_loops(labels):
    relevance = FunctionRelevance(nearness, labels, count=5)
    i, j = (part.ravel() for part in np.indices((5, 5)))
    expected = [
        nearness(a, b) if a != b and (labels is None or labels[a] == labels[b]) else 0
        for a, b in zip(i.tolist(), j.tolist(), strict=True)
    ]
    np.testing.assert_allclose(relevance.pairs(i, j), expected, rtol=1e-6)
    np.testing.assert_allclose(relevance.block(np.arange(5)).ravel(), expected, rtol=1e-6)
    totals = np.reshape(expected, (5, 5)).sum(axis=1)
    np.testing.assert_allclose(relevance.total(np.arange(5)), totals, rtol=1e-6)
    assert relevance.fingerprint() is None


def test_as_many_images_as_labels():
    assert len(FunctionRelevance(nearness, [1, 1, 2])) == 3


def test_the_function_may_give_any_numbers():
    for given in (np.float16, np.int64, bool):
        relevance = FunctionRelevance(lambda i, j, given=given: np.ones(len(i), given), [0, 0])
        assert relevance.pairs([0], [1]).tolist() == [1]
    assert FunctionRelevance(lambda i, j: [3] * len(i), [0, 0]).total([1]).tolist() == [3]


@pytest.mark.parametrize(
    ("function", "match"),
    [
        (lambda i, j: 1.0, r"function\(i, j\): got float64 of shape \(\), expected numbers \(6,\)"),
        (lambda i, j: np.ones((len(i), 1)), r"shape \(6, 1\)"),
        (lambda i, j: -1.0 * i, "got -1.0, expected every relevance"),
        (lambda i, j: np.full(len(i), np.nan), "got nan"),
        (lambda i, j: None, "got object"),
    ],
)
@pytest.mark.parametrize(
    "ask", [lambda r: r.pairs([0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]), lambda r: r.block([0, 1, 2])]
)
def test_bad_results_are_refused(function, match, ask):
    with pytest.raises(ValueError, match=match):
        ask(FunctionRelevance(function, [0, 0, 0]))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"function": nearness}, "got neither labels nor count"),
        ({"function": 3, "count": 2}, "function: got 3, expected a function of two index arrays"),
        ({"function": nearness, "labels": [0, 1], "count": 3}, r"labels: got int64 of shape \(2,\)"),
        ({"function": nearness, "count": 0}, "got no images"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        FunctionRelevance(**arguments)


def test_pickles_with_its_function():
    relevance = FunctionRelevance(np.maximum, [0, 0, 0])
    assert pickle.loads(pickle.dumps(relevance)).pairs([0], [2]).tolist() == [2]


def test_example_runs():
    results = doctest.testmod(sys.modules[FunctionRelevance.__module__])
    assert results.attempted > 0
    assert results.failed == 0
