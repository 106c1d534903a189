import doctest
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from dr_plugin.relevance import MultiLabelRelevance
from dr_plugin.relevance.multi_label import MEASURES

SETS = [{"dog", "grass"}, {"dog"}, set(), {"cat", "sofa", "dog"}, {"cat"}, set(), {"grass", "dog"}]


def by_sets(a, b, measure):
    if not a or not b:
        return 0.0
    if measure == "jaccard":
        return len(a & b) / len(a | b)
    return len(a & b) / (min(len(a), len(b)) if measure == "overlap" else math.sqrt(len(a) * len(b)))


def expected(sets, measure, labels=None):
    count = len(sets)
    values = np.zeros((count, count))
    for i in range(count):
        for j in range(count):
            if i != j and (labels is None or labels[i] == labels[j]):
                values[i, j] = by_sets(sets[i], sets[j], measure)
    return values


def as_array(sets):
    names = sorted(set().union(*sets))
    return np.array([[name in held for name in names] for held in sets])


@pytest.mark.parametrize("labels", [None, [0, 0, 0, 1, 1, 1, 0]])
@pytest.mark.parametrize("measure", MEASURES)
def test_measures_against_sets(measure, labels):
    relevance = MultiLabelRelevance(SETS, measure, labels)
    values = expected(SETS, measure, labels)
    i, j = (part.ravel() for part in np.indices(values.shape))
    np.testing.assert_allclose(relevance.pairs(i, j), values.ravel(), rtol=1e-6)
    np.testing.assert_allclose(relevance.block(np.arange(7)), values, rtol=1e-6)
    np.testing.assert_allclose(relevance.total(np.arange(7)), values.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize(
    "memberships",
    [
        as_array(SETS),
        as_array(SETS).astype(np.float16),
        as_array(SETS).astype(np.int64),
        torch.from_numpy(as_array(SETS)),
        sparse.csr_array(as_array(SETS)),
        sparse.coo_matrix(as_array(SETS)),
        [sorted(held) for held in SETS],
        [frozenset(hash(name) for name in held) for held in SETS],
    ],
    ids=["bool", "float16", "int", "tensor", "csr", "coo matrix", "lists", "numbers"],
)
def test_every_form_of_memberships_is_the_same(memberships):
    values = MultiLabelRelevance(memberships).block(np.arange(7))
    assert np.array_equal(values, MultiLabelRelevance(SETS).block(np.arange(7)))


def test_a_sparse_array_given_is_left_alone():
    held = sparse.coo_array(([1.0, 0.0], ([0, 1], [0, 1])), shape=(2, 2)).tocsr()
    MultiLabelRelevance(held)
    assert held.nnz == 2


@settings(max_examples=50, deadline=None)
@given(
    held=st.lists(st.frozensets(st.integers(0, 6)), min_size=1, max_size=6), measure=st.sampled_from(MEASURES)
)
def test_any_sets_are_symmetric_and_between_0_and_1(held, measure):
    values = MultiLabelRelevance(held, measure).block(np.arange(len(held)))
    assert np.array_equal(values, values.T)
    assert ((values >= 0) & (values <= 1)).all()
    np.testing.assert_allclose(values, expected(held, measure), rtol=1e-6)


def test_no_labels_at_all():
    assert MultiLabelRelevance([set(), set()]).total([0, 1]).tolist() == [0, 0]
    assert MultiLabelRelevance(np.zeros((2, 3), bool)).pairs([0], [1]).tolist() == [0]


def test_fingerprint_tells_memberships_measure_and_labels():
    same = MultiLabelRelevance(as_array(SETS)).fingerprint()
    assert same == MultiLabelRelevance(sparse.csr_array(as_array(SETS).astype(np.int8))).fingerprint()
    changed = as_array(SETS)
    changed[0, 0] = ~changed[0, 0]
    others = [
        MultiLabelRelevance(changed),
        MultiLabelRelevance(as_array(SETS), "cosine"),
        MultiLabelRelevance(as_array(SETS), labels=[0, 0, 0, 1, 1, 1, 0]),
    ]
    assert len({same, *(other.fingerprint() for other in others)}) == 4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ((np.ones(3, bool),), r"got bool of shape \(3,\), expected truth values of shape \(N, L\)"),
        ((np.array([[1, 2]]),), "memberships: got 2, expected truth values, or 0 and 1"),
        ((np.array([[1.0, np.nan]]),), "got nan"),
        ((np.array([["a"]]),), "got <U1"),
        ((np.zeros((0, 3), bool),), "got no images"),
        (([],), "got no images"),
        ((["dog", "cat"],), "image 0: got 'dog', expected a set of labels"),
        (("dog",), "got str, expected an array, or a list of label sets"),
        (({"dog"},), "got set, expected an array, or a list"),
        (([1, 2],), "image 0: got 1"),
        (([[True, False], [False, True]],), "image 0: got truth values .* go in an array"),
        (([[0, 2], [1, 0, 0]],), "image 1: got truth values or a label twice in a list"),
        ((SETS, "jacard"), r"measure: got 'jacard', expected one of .* \(did you mean 'jaccard'\?\)"),
        ((SETS, "jaccard", [0, 1]), r"labels: got int64 of shape \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        MultiLabelRelevance(*arguments)


def test_example_runs():
    results = doctest.testmod(sys.modules[MultiLabelRelevance.__module__])
    assert results.attempted > 0
    assert results.failed == 0
