"""ReservoirTripletMiner: its laws, its buffers, its corner cases, its state, and its life inside PML."""

import copy
import io
import itertools
import pickle
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses, trainers
from pytorch_metric_learning.utils import distributed
from scipy.stats import chi2
from torch.utils.data import TensorDataset

from dr_plugin.losses import DeepRankingLoss, ReservoirMemory
from dr_plugin.miners import ReservoirTripletMiner, UniformTripletMiner
from dr_plugin.miners.batch_buffers import fill_buffers
from dr_plugin.triplets import RANDOM_BITS, ClassLayout, TableRelevance


class Table:
    """A relevance that counts on being asked for pairs of different images only."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=np.float32)

    def __len__(self):
        return len(self.table)

    def pairs(self, i, j):
        assert (i != j).all()
        return self.table[i, j]

    def total(self, i):
        raise NotImplementedError


def _table(count, seed=0):
    """Symmetric, and with a diagonal that would be noticed."""
    table = np.random.default_rng(seed).random((count, count)) + 0.05
    return Table((table + table.T) / 2 + 1000 * np.eye(count))


def _mine(miner, labels, indices=None, ref_labels=None, ref_indices=None):
    labels = torch.as_tensor(labels, dtype=torch.long)
    if indices is not None:
        miner.observe(indices, ref_indices)
    if ref_labels is None:
        return miner(torch.zeros(len(labels), 2), labels)
    ref_labels = torch.as_tensor(ref_labels, dtype=torch.long)
    return miner(torch.zeros(len(labels), 2), labels, torch.zeros(len(ref_labels), 2), ref_labels)


def _rows(mined):
    return list(zip(*(part.tolist() for part in mined), strict=True))


def _equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _law(labels, ref_labels, relevance, ratio, threshold=np.inf, margin=0.0, trials=100):
    """Probability of each triplet by (6) to (8), with explicit loops; relevance(q, x) is 0 for the image itself."""
    queries = range(len(labels))
    same = {q: [x for x, label in enumerate(ref_labels) if label == labels[q]] for q in queries}
    others = {q: [x for x, label in enumerate(ref_labels) if label != labels[q]] for q in queries}
    r = {(q, x): relevance(q, x) for q in queries for x in same[q]}
    law = defaultdict(float)
    inside, total = defaultdict(float), 0.0
    for q in queries:
        total_q = sum(r[q, x] for x in same[q])
        weight = {x: min(threshold, r[q, x]) for x in same[q]}
        for p in same[q]:
            if weight[p] == 0:
                continue
            begun = total_q * weight[p] / sum(weight.values())
            if ratio > 0 and others[q]:
                total += begun
                for n in others[q]:
                    law[q, p, n] += begun / len(others[q])
            good = {
                n: weight[n]
                for n in same[q]
                if n != p and weight[n] > 0 and r[q, p] > r[q, n] and r[q, p] - r[q, n] >= margin
            }
            success = sum(good.values()) / max(sum(weight.values()) - weight[p], 1e-300)
            for n, part in good.items():
                inside[q, p, n] += begun * part / sum(good.values()) * (1 - (1 - success) ** trials)
    law = {triplet: ratio * part / total for triplet, part in law.items()}
    # Of in-class triplets only queries that can be finished are begun, so each query's share is as if alone.
    for triplet, part in inside.items():
        law[triplet] = (1 - ratio) * part / sum(inside.values())
    return {triplet: part for triplet, part in law.items() if part > 0}


def _assert_law(mined, law):
    counts = Counter(_rows(mined))
    assert set(counts) <= set(law)
    number = sum(counts.values())
    assert number > 20 * len(law)
    rare = [triplet for triplet in law if law[triplet] * number < 8]
    cells = [(counts[triplet], law[triplet] * number) for triplet in law if triplet not in rare]
    if rare:
        cells.append((sum(counts[t] for t in rare), sum(law[t] for t in rare) * number))
    statistic = sum((got - expected) ** 2 / expected for got, expected in cells)
    # Two-sided: draws that are too even are wrong too.
    assert 0.0005 < chi2.sf(statistic, len(cells) - 1) < 0.9995


LABELS = [0, 1, 0, 2, 1, 1, 0, 0]


@pytest.mark.parametrize(
    ("ratio", "threshold", "margin"),
    [(None, None, 0.0), (1.0, None, 0.0), (0.0, 0.5, 0.0), (0.5, 0.4, 0.1)],
)
def test_external_relevance_follows_the_papers_law(ratio, threshold, margin):
    table, indices = _table(20), [7, 3, 19, 0, 4, 11, 2, 5]
    miner = ReservoirTripletMiner(None, table, ratio, threshold, margin, triplets_per_query=4000, seed=1)
    mined = _mine(miner, LABELS, indices)
    assert len(mined[0]) == 7 * 4000
    law = _law(
        LABELS,
        LABELS,
        lambda q, x: float(table.table[indices[q], indices[x]]) if q != x else 0.0,
        0.2 if ratio is None else ratio,
        threshold or np.inf,
        margin,
    )
    _assert_law(mined, law)


def _kernel(unit, others, bandwidth):
    return lambda q, x: float(torch.exp(-(unit[q] - others[x]).square().sum() / (2 * bandwidth**2)))


@pytest.mark.parametrize("bandwidth", [0.6, None])
def test_embeddings_give_the_relevance_without_an_external_one(bandwidth):
    embeddings = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    unit = embeddings / embeddings.norm(dim=1, keepdim=True)
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j and LABELS[i] == LABELS[j]]
    median = sorted(float((unit[i] - unit[j]).norm()) for i, j in pairs)[(len(pairs) - 1) // 2]
    kernel = _kernel(unit, unit, bandwidth or median)
    miner = ReservoirTripletMiner(triplets_per_query=4000, bandwidth=bandwidth, seed=2)
    law = _law(LABELS, LABELS, lambda q, x: kernel(q, x) if q != x else 0.0, 1.0)
    _assert_law(miner(embeddings, torch.tensor(LABELS)), law)


def test_references_are_the_stream_and_the_image_itself_is_found_among_them():
    generator = torch.Generator().manual_seed(0)
    embeddings, more = torch.randn(4, 3, generator=generator), torch.randn(5, 3, generator=generator)
    labels, more_labels = [0, 1, 1, 2], [1, 0, 0, 2, 9]
    references = torch.cat([more[:2], embeddings, more[2:]])
    ref_labels = more_labels[:2] + labels + more_labels[2:]
    unit, others = (x / x.norm(dim=1, keepdim=True) for x in (embeddings, references))
    kernel = _kernel(unit, others, 0.8)
    miner = ReservoirTripletMiner(triplets_per_query=5000, bandwidth=0.8)
    mined = miner(embeddings, torch.tensor(labels), references, torch.tensor(ref_labels))
    _assert_law(mined, _law(labels, ref_labels, lambda q, x: kernel(q, x) if x != q + 2 else 0.0, 1.0))


def test_external_relevance_of_references():
    table, images, others = _table(9), [3, 8, 0], [1, 3, 7, 0, 2, 6]
    labels, ref_labels = [0, 1, 0], [0, 0, 0, 0, 1, 1]
    miner = ReservoirTripletMiner(None, table, triplets_per_query=5000)
    law = _law(
        labels,
        ref_labels,
        lambda q, x: float(table.table[images[q], others[x]]) if images[q] != others[x] else 0.0,
        0.2,
    )
    _assert_law(_mine(miner, labels, images, ref_labels, others), law)


def test_equal_relevances_are_uniform_sampling():
    miner = ReservoirTripletMiner(None, Table(np.ones((8, 8))), 1.0, triplets_per_query=4000)
    mined = _mine(miner, LABELS[:3] + LABELS[3:4] + [9], range(5))
    assert set(_rows(mined)) == set(_rows(_mine(UniformTripletMiner(1000), [0, 1, 0, 2, 9])))


def test_uniform_weighting_leaves_relevance_to_the_order():
    table = _table(8)
    miner = ReservoirTripletMiner(None, table, 1.0, weighting="uniform", triplets_per_query=4000)
    law = _law(LABELS, LABELS, lambda q, x: float(q != x) / (LABELS.count(LABELS[q]) - 1 or 1), 1.0)
    _assert_law(_mine(miner, LABELS, range(8)), law)
    ordered = ReservoirTripletMiner(None, table, 0.0, weighting="uniform", triplets_per_query=100)
    query, positive, negative = _mine(ordered, LABELS, range(8))
    assert (table.table[query, positive] > table.table[query, negative]).all()


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(-2, 2), max_size=9),
    references=st.none() | st.lists(st.integers(-2, 2), max_size=9),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
    margin=st.sampled_from([0.0, 0.2]),
    buffer_size=st.sampled_from([None, 1, 2, 3]),
    seed=st.integers(0, 1000),
)
@example(labels=[1], references=[0, 0, 0, 0, 1], ratio=0.3, margin=0.0, buffer_size=1, seed=0)
def test_every_triplet_is_allowed(labels, references, ratio, margin, buffer_size, seed):
    table = _table(20, seed)
    images = torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    first, second = images[: len(labels)], images[len(labels) : len(labels) + len(references or [])]
    miner = ReservoirTripletMiner(buffer_size, table, ratio, None, margin, triplets_per_query=5, seed=seed)
    mined = _mine(miner, labels, first, references, None if references is None else second)
    assert [indices.dtype for indices in mined] == [torch.long] * 3
    others, other_labels = (first, labels) if references is None else (second, references)
    inside = 0
    for q, p, n in _rows(mined):
        assert labels[q] == other_labels[p]
        assert references is not None or q != p
        if other_labels[n] == labels[q]:
            inside += 1
            assert len({q, p, n} if references is None else {p, n}) == (3 if references is None else 2)
            relevant = table.table[first[q], others[p]]
            less = table.table[first[q], others[n]]
            assert relevant > less
            assert np.float64(relevant) - np.float64(less) >= margin
    if buffer_size is not None:
        held = defaultdict(set)
        for q, p, n in _rows(mined):
            for x in (p, n, q) if references is None else (p, n):
                held[other_labels[x]].add(x)
        assert all(len(members) <= buffer_size for members in held.values())
    assert miner.num_triplets == len(mined[0]) == miner.counters["accepted"]
    assert miner.in_class == inside == miner.counters["in_class"]
    assert miner.counters["out_of_class"] == len(mined[0]) - inside
    assert (inside == 0) if ratio == 1 else (ratio > 0 or inside == len(mined[0]))


def _bits(shape):
    return torch.randint(1 << RANDOM_BITS, shape, generator=torch.Generator().manual_seed(5))


def _successive(weights, size):
    """Probability of each set kept by A-Res: successive draws without replacement."""
    law = defaultdict(float)
    for order in itertools.permutations(range(len(weights)), size):
        left, probability = sum(weights), 1.0
        for item in order:
            probability *= weights[item] / left
            left -= weights[item]
        law[tuple(sorted(order))] += probability
    return law


@pytest.mark.parametrize("weighted", [True, False])
def test_buffers_hold_what_a_res_keeps(weighted):
    classes, images = 2000, 4
    values = np.array([[0, 1, 2, 1], [1, 0, 5, 1], [2, 5, 0, 0.5], [1, 1, 0.5, 0]])
    labels = torch.arange(classes).repeat_interleave(images)
    layout = ClassLayout(labels)
    entries = torch.tensor(values).float().flatten().repeat(classes)
    buffers = fill_buffers(labels, None, layout, entries, 2, weighted=weighted, random_bits=_bits)
    kept = buffers.kept.view(classes, 2) % images
    counts = Counter(map(tuple, kept.tolist()))
    law = _successive(values.sum(0) if weighted else np.ones(4), 2)
    statistic = sum((counts[pair] - law[pair] * classes) ** 2 / (law[pair] * classes) for pair in law)
    assert 0.001 < chi2.sf(statistic, len(law) - 1) < 0.999
    # What the draws get: the kept pairs' relevance, queries alike, candidates by 1 / r_j.
    first = kept[0].tolist()
    assert buffers.values[:4].tolist() == values[np.ix_(first, first)].flatten().tolist()
    if weighted:
        assert buffers.query_weights.tolist() == pytest.approx([values.sum() / 2] * 2 * classes)
        assert buffers.candidate_weights[:2].tolist() == pytest.approx((1 / values.sum(0)[first]).tolist())
    else:
        assert set(buffers.candidate_weights.tolist()) == {1.0}


def test_classes_that_fit_the_buffers_are_whole_and_exact():
    table = _table(8)
    first, second = (
        _mine(ReservoirTripletMiner(size, table, seed=3), LABELS, range(8)) for size in (None, 4)
    )
    assert _equal(first, second)


def test_buffer_beside_a_whole_class_leaves_that_as_it_is():
    table, labels = _table(7), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    layout = ClassLayout(labels)
    i, j = layout.pairs()
    values = torch.tensor(table.table)[i, j].masked_fill(i == j, 0)
    buffers = fill_buffers(labels, None, layout, values, 3, weighted=True, random_bits=_bits)
    totals = torch.zeros(7).index_add_(0, i, values)
    assert buffers.kept.tolist()[-3:] == [4, 5, 6]
    assert buffers.candidate_weights[-3:].tolist() == [1, 1, 1]
    assert buffers.query_weights[-3:].tolist() == pytest.approx(totals[4:].tolist())
    assert buffers.query_weights[:3].sum().item() == pytest.approx(totals[:4].sum().item())


def test_buffers_are_filled_anew_for_each_batch():
    miner = ReservoirTripletMiner(2, _table(20), triplets_per_query=1)
    labels = [0] * 10 + [1] * 10
    kept = {tuple(sorted(set(_mine(miner, labels, range(20))[0].tolist()))) for _ in range(10)}
    assert len(kept) > 5


@pytest.mark.parametrize("external", [True, False])
@pytest.mark.parametrize("labels", [[], [4], [0, 1, 2]], ids=["empty", "one image", "singletons"])
def test_no_triplets_where_there_are_none(labels, external):
    miner = ReservoirTripletMiner(None, _table(3)) if external else ReservoirTripletMiner(1)
    mined = _mine(miner, labels, range(len(labels)) if external else None)
    assert [(tuple(part.shape), part.dtype) for part in mined] == [((0,), torch.long)] * 3
    assert miner.num_triplets == miner.discarded == 0


def test_one_class_has_in_class_triplets_only():
    miner = ReservoirTripletMiner(None, _table(5), triplets_per_query=400)
    query, _, _ = _mine(miner, [7] * 5, range(5))
    assert len(query) == pytest.approx(0.8 * 2000, abs=5 * (0.16 * 2000) ** 0.5)
    assert miner.in_class == len(query)
    assert miner.discarded >= 2000 - len(query)
    assert len(_mine(ReservoirTripletMiner(), [7] * 5)[0]) == 0


@pytest.mark.parametrize(
    ("table", "labels"),
    [(np.ones((6, 6)), [0, 0, 0, 1, 1, 1]), (np.random.default_rng(0).random((6, 6)), [0, 0, 1, 1, 2, 2])],
    ids=["equal relevances", "classes of two"],
)
def test_without_in_class_negatives_their_share_is_left_out(table, labels):
    miner = ReservoirTripletMiner(None, Table(table), 0.25, triplets_per_query=400)
    query, _, _ = _mine(miner, labels, range(6))
    assert len(query) == pytest.approx(0.25 * 2400, abs=5 * (0.19 * 2400) ** 0.5)
    assert (miner.in_class, miner.discarded) == (0, 2400 - len(query))
    assert miner.counters["discarded"] == miner.discarded
    only = ReservoirTripletMiner(None, Table(table), 0.0, triplets_per_query=400)
    assert len(_mine(only, labels, range(6))[0]) == 0


def test_order_that_hardly_ever_holds_does_not_end_the_training():
    # Of three near copies and one stranger only the stranger would do, and it is drawn once in a thousand million.
    table = np.ones((5, 5))
    table[:4, 3] = table[3, :4] = 1e-12
    miner = ReservoirTripletMiner(None, Table(table), 0.5, max_trials=1, triplets_per_query=20)
    query, _, negative = _mine(miner, [0, 0, 0, 0, 1], range(5))
    assert 0 < len(query) < 80
    assert miner.discarded >= 80 - len(query)
    assert miner.in_class == 0
    assert (negative == 4).all()


def test_classes_of_two_and_more_share_by_the_ratio():
    labels, table = [0, 0, 1, 1, 1, 1, 2, 2, 2], _table(9)
    miner = ReservoirTripletMiner(None, table, 0.3, triplets_per_query=1000)
    _mine(miner, labels, range(9))
    assert miner.num_triplets == 9000
    assert miner.in_class == pytest.approx(6300, abs=5 * (0.21 * 9000) ** 0.5)
    assert miner.rejected > 0


def test_images_that_come_twice_in_a_batch_are_not_their_own_positives():
    table = _table(4)
    query, positive, _ = _mine(ReservoirTripletMiner(None, table, 1.0), [0, 0, 0, 1], [2, 2, 1, 0])
    images = torch.tensor([2, 2, 1, 0])
    assert len(query) == 30
    assert (images[query] != images[positive]).all()


def test_memory_gives_no_image_to_itself():
    labels = torch.tensor([0, 0, 1, 1])
    embeddings = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    references, ref_labels = torch.cat([embeddings, embeddings + 1]), labels.repeat(2)
    for dtype in (torch.float32, torch.bfloat16):
        query, positive, _ = ReservoirTripletMiner(triplets_per_query=100)(
            embeddings.to(dtype), labels, references.to(dtype), ref_labels
        )
        assert len(query) == 400
        assert (query != positive).all()
        assert (positive == query + 4).any()


def test_reservoir_memory_loses_no_triplets_to_copies():
    memory = ReservoirMemory(DeepRankingLoss(), 3, 4, ReservoirTripletMiner(triplets_per_query=3))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        embeddings = torch.randn(6, 3, generator=generator, requires_grad=True)
        seen = []
        hook = memory.loss.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[2]))
        memory(embeddings, torch.tensor([0, 0, 1, 1, 2, 2])).backward()
        hook.remove()
        assert len(seen[0][0]) == 18
        assert embeddings.grad.isfinite().all()


def test_references_without_their_labels_or_under_other_ones_are_refused():
    embeddings, labels = torch.randn(3, 2), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="no labels or ref_labels"):
        ReservoirTripletMiner()(embeddings, labels, torch.randn(3, 2))
    with pytest.raises(ValueError, match="ref_emb is the batch itself"):
        ReservoirTripletMiner()(embeddings, labels, embeddings, labels + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_embeddings_of_any_dtype_are_taken_as_float32(dtype):
    embeddings = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    labels = torch.tensor(LABELS)
    mined = ReservoirTripletMiner(seed=1)(embeddings, labels)
    assert len(mined[0]) == 70
    assert _equal(mined, ReservoirTripletMiner(seed=1)(embeddings.float(), labels))


@pytest.mark.parametrize("kernel", ["gaussian", "laplacian", "cosine"])
def test_nearer_images_are_drawn_more_often(kernel):
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 2.0], [-1.0, 0.5]])
    miner = ReservoirTripletMiner(kernel=kernel, triplets_per_query=2000)
    query, positive, _ = miner(embeddings, torch.tensor([0, 0, 0, 1]))
    drawn = positive[query == 0].bincount(minlength=3)
    assert drawn[1] > 1.2 * drawn[2] > 0


def test_embeddings_that_are_not_finite_are_no_queries():
    embeddings = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    embeddings[1] = torch.nan
    query, positive, _ = ReservoirTripletMiner(bandwidth=1.0)(embeddings, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert len(query) == 60
    assert 1 not in query
    assert 1 not in positive


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        (None, "not observed"),
        (([0, 1],), "got 2 indices and None ref_indices, expected 3 and None"),
        (([0, 1, 2], [1, 2]), "got 3 indices and 2 ref_indices, expected 3 and None"),
    ],
)
def test_batch_that_was_not_observed_as_it_is_is_refused(observed, message):
    miner = ReservoirTripletMiner(None, _table(3))
    if observed:
        miner.observe(*observed)
    with pytest.raises(ValueError, match=message):
        _mine(miner, [0, 0, 1])


def test_observation_serves_one_batch():
    miner = ReservoirTripletMiner(None, _table(3))
    _mine(miner, [0, 0, 1], [0, 1, 2])
    with pytest.raises(ValueError, match="not observed"):
        _mine(miner, [0, 0, 1])


def test_references_are_observed_too():
    miner = ReservoirTripletMiner(None, _table(5))
    with pytest.raises(ValueError, match="got 2 indices and None ref_indices, expected 2 and 3"):
        _mine(miner, [0, 1], [0, 1], [0, 1, 1])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0.0, 1.0], "indices: got torch.float32 of shape"),
        ([[0, 1]], r"of shape \(1, 2\), expected whole numbers of shape \(B,\)"),
        ([0, 3], "indices: got 0 to 3, expected indices of the 3 images"),
        ([-1, 2], "indices: got -1 to 2"),
        ([True, False], "indices: got torch.bool"),
    ],
)
def test_bad_indices_are_refused(indices, message):
    with pytest.raises(ValueError, match=message):
        ReservoirTripletMiner(None, _table(3)).observe(indices)


def test_observe_without_a_relevance_is_refused():
    with pytest.raises(ValueError, match="no relevance was given"):
        ReservoirTripletMiner().observe([0])


@pytest.mark.parametrize("buffer_size", [None, 1])
@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_relevance_that_is_none_is_refused(wrong, buffer_size):
    table = np.ones((3, 3))
    table[0, 1] = table[1, 0] = wrong
    with pytest.raises(ValueError, match="expected every r"):
        _mine(ReservoirTripletMiner(buffer_size, Table(table)), [0, 0, 1], range(3))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"buffer_size": 0}, "buffer_size: got 0, expected a whole number, at least 1, or None"),
        ({"buffer_size": 2.0}, "buffer_size: got 2.0"),
        ({"out_of_class_ratio": 0.2}, "out_of_class_ratio: got 0.2 without a relevance, expected 1.0"),
        ({"out_of_class_ratio": 1.5}, "out_of_class_ratio: got 1.5"),
        ({"relevance": _table(3), "out_of_class_ratio": -0.1}, "out_of_class_ratio: got -0.1"),
        ({"relevance_threshold": 0}, "relevance_threshold: got 0"),
        ({"relevance_margin": -1}, "relevance_margin: got -1"),
        ({"weighting": "none"}, "weighting: got 'none'"),
        ({"max_trials": 0}, "max_trials: got 0"),
        ({"kernel": "intersection"}, "embeddings are no histograms"),
        ({"bandwidth": -1}, "bandwidth: got -1"),
        ({"triplets_per_query": 0}, "triplets_per_query: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 1, "generator": torch.Generator()}, "both seed and generator"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ReservoirTripletMiner(**arguments)


def test_ratio_by_default():
    assert ReservoirTripletMiner().out_of_class_ratio == 1.0
    assert ReservoirTripletMiner(relevance=_table(3)).out_of_class_ratio == 0.2


def test_array_will_do_as_relevance():
    table = _table(8)
    mined = _mine(ReservoirTripletMiner(None, table.table, seed=1), LABELS, range(8))
    assert _equal(mined, _mine(ReservoirTripletMiner(None, table, seed=1), LABELS, range(8)))


def test_seed_decides_the_triplets_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    miner = ReservoirTripletMiner(2, _table(8), seed=5)
    first = _mine(miner, LABELS, range(8))
    assert torch.equal(torch.get_rng_state(), before)
    assert not _equal(first, _mine(miner, LABELS, range(8)))
    assert _equal(first, _mine(ReservoirTripletMiner(2, _table(8), seed=5), LABELS, range(8)))
    assert not _equal(first, _mine(ReservoirTripletMiner(2, _table(8), seed=6), LABELS, range(8)))


def test_saved_state_continues_the_same_draws_and_counts():
    miner = ReservoirTripletMiner(3, _table(8), seed=5)
    _mine(miner, LABELS, range(8))
    file = io.BytesIO()
    torch.save(miner.state_dict(), file)
    expected = [_mine(miner, LABELS, range(8)) for _ in range(2)]
    file.seek(0)
    resumed = ReservoirTripletMiner(3, _table(8), seed=0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(_equal(_mine(resumed, LABELS, range(8)), triplets) for triplets in expected)
    assert resumed.counters == miner.counters
    assert resumed.counters["accepted"] == 3 * 70


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda miner: pickle.loads(pickle.dumps(miner))])
def test_copy_draws_the_same_and_is_independent(duplicate):
    miner = ReservoirTripletMiner(None, _table(8))
    copied = duplicate(miner)
    expected = _mine(copied, LABELS, range(8))
    _mine(copied, LABELS, range(8))
    assert _equal(_mine(miner, LABELS, range(8)), expected)
    assert miner.counters["accepted"] == 70


def test_stats_are_recorded_where_asked_for():
    miner = ReservoirTripletMiner(None, _table(8), collect_stats=True)
    assert {"num_triplets", "in_class", "rejected", "discarded"} <= set(miner._record_these_stats)
    _mine(miner, LABELS, range(8))
    assert miner.in_class > 0
    _mine(miner, [0, 1], range(2))
    assert miner.in_class == 0


@pytest.mark.parametrize("efficient", [False, True])
def test_distributed_wrapper(efficient, monkeypatch):
    """Two ranks in one process: what the other rank has is a fixed batch."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(4, 3, generator=generator), torch.randn(4, 3, generator=generator)
    labels, others = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 2, 2, 0])
    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "all_gather", lambda x: others if x.ndim == 1 else second)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    miner = ReservoirTripletMiner(triplets_per_query=50)
    query, positive, negative = distributed.DistributedMinerWrapper(miner, efficient)(first, labels)
    every = torch.cat([labels, others])
    assert len(query) == 50 * (4 if efficient else 8)
    assert (query < 4).all() == efficient
    assert (query != positive).all()
    assert (every[query] == every[positive]).all()
    assert (every[query] != every[negative]).all()
    assert (positive >= 4).any()


@pytest.mark.parametrize(
    "loss_func",
    [losses.TripletMarginLoss(), losses.MarginLoss(), losses.ContrastiveLoss(), DeepRankingLoss()],
    ids=lambda loss_func: type(loss_func).__name__,
)
def test_losses_take_the_triplets(loss_func):
    miner, labels = ReservoirTripletMiner(None, _table(6)), torch.tensor([0, 0, 0, 1, 1, 1])
    embeddings = torch.randn(6, 4, requires_grad=True)
    miner.observe(torch.arange(6))
    loss_func(embeddings, labels, miner(embeddings, labels)).backward()
    assert embeddings.grad.isfinite().all()


def _trainer(name, miner, getter=None):
    torch.manual_seed(0)
    labels, trunk = torch.arange(3).repeat(8), torch.nn.Linear(5, 4)
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1)
    arguments = {
        "models": {"trunk": trunk},
        "optimizers": {"trunk_optimizer": optimizer},
        "batch_size": 12,
        "loss_funcs": {"metric_loss": losses.TripletMarginLoss(margin=1.0)},
        "mining_funcs": {"tuple_miner": miner},
        "dataset": TensorDataset(torch.randn(24, 5), labels, torch.arange(24)),
        "dataloader_num_workers": 0,
        "data_device": "cpu",
        "data_and_label_getter": getter or (lambda batch: batch[:2]),
    }
    if name == "TrainWithClassifier":
        arguments["models"]["classifier"] = torch.nn.Linear(4, 3)
        arguments["loss_funcs"]["classifier_loss"] = torch.nn.CrossEntropyLoss()
    if name == "CascadedEmbeddings":
        arguments["embedding_sizes"] = [2, 2]
        for kind in ("loss_funcs", "mining_funcs"):
            ((key, value),) = arguments[kind].items()
            arguments[kind] = {f"{key}_0": value, f"{key}_1": copy.deepcopy(value)}
        arguments["optimizers"] = {"trunk_optimizer": optimizer}
    return getattr(trainers, name)(**arguments), trunk


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
@pytest.mark.parametrize("name", ["MetricLossOnly", "TrainWithClassifier", "CascadedEmbeddings"])
def test_pml_trainers_train_with_it(name):
    trainer, trunk = _trainer(name, ReservoirTripletMiner(triplets_per_query=2))
    before = trunk.weight.detach().clone()
    trainer.train(num_epochs=1)
    assert not torch.equal(trunk.weight, before)


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")
def test_pml_trainer_tells_the_indices_in_its_getter():
    miner = ReservoirTripletMiner(None, _table(24))

    def getter(batch):
        data, labels, indices = batch
        miner.observe(indices)
        return data, labels

    trainer, trunk = _trainer("MetricLossOnly", miner, getter)
    before = trunk.weight.detach().clone()
    trainer.train(num_epochs=1)
    assert not torch.equal(trunk.weight, before)
    assert miner.counters["in_class"] > 0


def test_observed_images_of_other_classes_than_the_labels_are_refused():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    table = torch.rand(6, 6)
    miner = ReservoirTripletMiner(relevance=TableRelevance((table + table.T).numpy(), labels.numpy()))
    miner.observe([0, 3, 1, 4, 2, 5])
    with pytest.raises(ValueError, match="observe: got images of other classes than the batch's labels"):
        miner(torch.randn(6, 4), labels)
    miner.observe([3, 4, 5, 0, 1, 2])  # other names for the same classes
    assert len(miner(torch.randn(6, 4), labels)[0])
