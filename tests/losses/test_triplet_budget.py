"""Triplets that are counted: all of them, or a uniform sample within a budget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from scipy.stats import chi2

from dr_plugin.losses.triplet_budget import JoinedTriplets, LabelTriplets, ListedTriplets, at_most

CPU = torch.device("cpu")
_LABELS = st.lists(st.integers(-1, 2), max_size=6).map(lambda values: torch.tensor(values, dtype=torch.long))


def _rows(triplets):
    return sorted(zip(*(part.tolist() for part in triplets), strict=True))


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(labels=_LABELS, others=_LABELS, own=st.booleans())
def test_label_triplets_are_all_triplets(labels, others, own):
    references = torch.cat([labels, others]) if own else others
    itself = torch.arange(len(labels)) if own else None
    expected = [
        (q, p, n)
        for q in range(len(labels))
        for p in range(len(references))
        for n in range(len(references))
        if references[p] == labels[q] != references[n] and not (own and p == q)
    ]
    source = LabelTriplets(labels, references, itself)
    assert len(source) == len(expected)
    assert _rows(source.at(torch.arange(len(source)))) == expected


@settings(deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=8),
    negatives=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=8),
)
def test_joined_pairs_are_those_of_pml(pairs, negatives):
    four = [torch.tensor([pair[k] for pair in part]).long() for part in (pairs, negatives) for k in (0, 1)]
    source = JoinedTriplets(*four)
    expected = _rows(lmu.convert_to_triplets(four, None))
    assert _rows(at_most(None, [source], _generator(), CPU)) == expected
    assert len(source) == len(expected)


def test_budget_takes_all_where_they_fit_and_leaves_the_generator_alone():
    sources = [LabelTriplets(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 1]), torch.arange(3))]
    generator = _generator()
    before = generator.get_state()
    assert _rows(at_most(2, sources, generator, CPU)) == [(0, 1, 2), (1, 0, 2)]
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("budget", [1, 3, 8])
def test_sample_is_uniform_over_all_sources(budget):
    labels = torch.tensor([0, 0, 0, 1, 1])
    listed = torch.tensor([[9, 9], [1, 2], [3, 4]])
    sources = [LabelTriplets(labels, labels, torch.arange(5)), ListedTriplets(*listed)]
    every = _rows(at_most(None, sources, _generator(), CPU))
    assert len(every) == 3 * 2 * 2 + 2 * 1 * 3 + 2 == len(set(every))
    generator, trials = _generator(1), 1500
    counts = dict.fromkeys(every, 0)
    for _ in range(trials):
        sample = _rows(at_most(budget, sources, generator, CPU))
        assert len(sample) == budget
        for triplet in sample:
            counts[triplet] += 1
    expected = trials * budget / len(every)
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    # The parts make the counts more even than those of independent draws, so only one side is a law.
    assert chi2.sf(statistic, len(every) - 1) > 0.001


def test_sample_gives_each_query_its_share():
    labels = torch.arange(8).repeat_interleave(4)
    source = LabelTriplets(labels, labels, torch.arange(32))
    query, _, _ = at_most(64, [source], _generator(), CPU)
    assert set(query.bincount(minlength=32).tolist()) <= {1, 2, 3}


def test_millions_of_triplets_are_not_enumerated():
    labels, references = torch.arange(64).repeat(4), torch.arange(64).repeat(300)
    source = LabelTriplets(labels, references, None)
    assert len(source) == 256 * 300 * 300 * 63
    query, positive, negative = at_most(1000, [source], _generator(), CPU)
    assert (labels[query] == references[positive]).all()
    assert (labels[query] != references[negative]).all()
