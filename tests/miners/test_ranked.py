"""RankedNegativeMiner, against explicit loops; its corner cases, and its life inside PML."""

import io
import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses
from scipy.stats import chi2

from dr_plugin.losses import CrossBatchMemory, LRMLLoss
from dr_plugin.miners import RankedNegativeMiner

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 3])


def _embeddings(count=8, size=4, seed=0, dtype=torch.float64):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _line(*points):
    """Points on a line, which `PLAIN` compares without rounding: ties are ties."""
    return torch.tensor(points, dtype=torch.float64).unsqueeze(1)


PLAIN = distances.LpDistance(normalize_embeddings=False, p=1)


def _by_loops(points, labels, references=None, ref_labels=None, *, negatives, choose, positive, per_class):
    """Triplets of points on a line, one after the other."""
    own = references is None
    others, other_labels = (points, labels) if own else (references, ref_labels)
    triplets = []
    for q, (point, label) in enumerate(zip(points, labels, strict=True)):
        ranked = sorted((abs(point - other), j) for j, other in enumerate(others))
        itself = {j for j, other in enumerate(others) if (j == q if own else other == point)}
        positives = [(d, j) for d, j in ranked if other_labels[j] == label and j not in itself]
        apart = [(d, j) for d, j in ranked if other_labels[j] != label]
        if per_class:
            nearest = {}
            for d, j in apart:
                nearest.setdefault(other_labels[j], (d, j))
            apart = sorted(nearest.values())
        if choose == "least_similar":
            apart = sorted(sorted(apart, key=lambda entry: (-entry[0], entry[1]))[:negatives])
        if positive == "most_similar":
            positives = positives[:1]
        elif positive == "least_similar":
            positives = sorted(positives, key=lambda entry: (-entry[0], entry[1]))[:1]
        for p in sorted(j for _, j in positives):
            triplets += [(q, p, n) for _, n in apart[:negatives]]
    return triplets


def _mined(miner, *arguments):
    mined = miner(*arguments)
    assert [part.dtype for part in mined] == [torch.long] * 3
    assert not any(part.requires_grad for part in mined)
    return list(zip(*(part.tolist() for part in mined), strict=True))


POINTS = st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 2)), max_size=9)  # few places: many ties


@settings(deadline=None, max_examples=150)
@given(
    batch=POINTS,
    others=st.none() | POINTS,
    negatives=st.integers(1, 4),
    choose=st.sampled_from(["most_similar", "least_similar"]),
    positive=st.sampled_from(["most_similar", "least_similar", "every"]),
    per_class=st.booleans(),
)
def test_triplets_are_those_of_loops_ties_and_duplicates_included(
    batch, others, negatives, choose, positive, per_class
):
    rule = {"negatives": negatives, "choose": choose, "positive": positive, "per_class": per_class}
    rows = []  # points, labels, and those of the references
    for part in (batch, others):
        if part is not None:
            rows += [[point for point, _ in part], [label for _, label in part]]
    tensors = [
        _line(*column) if place % 2 == 0 else torch.tensor(column, dtype=torch.long)
        for place, column in enumerate(rows)
    ]
    miner = RankedNegativeMiner(distance=PLAIN, **rule)
    assert _mined(miner, *tensors) == _by_loops(*rows, **rule)
    assert miner.num_triplets == len(_by_loops(*rows, **rule))


def test_tuples_of_points_on_a_line_are_these():
    embeddings, labels = _line(0, 1, 2, 4, 8, 3), torch.tensor([0, 0, 1, 2, 3, 0])
    mined = _mined(RankedNegativeMiner(2, distance=PLAIN), embeddings, labels)
    assert mined == [(0, 5, 2), (0, 5, 3), (1, 5, 2), (1, 5, 3), (5, 0, 2), (5, 0, 3)]
    bottom = _mined(RankedNegativeMiner(2, choose="least_similar", distance=PLAIN), embeddings, labels)
    assert bottom == [(0, 5, 3), (0, 5, 4), (1, 5, 3), (1, 5, 4), (5, 0, 2), (5, 0, 4)]


@pytest.mark.parametrize(
    "distance",
    [
        None,
        distances.LpDistance(power=2),
        distances.CosineSimilarity(),
        distances.DotProductSimilarity(normalize_embeddings=True),
    ],
    ids=["default", "squared", "cosine", "dot product"],
)
def test_distances_of_unit_norm_embeddings_agree_on_the_tuples(distance):
    embeddings = _embeddings()
    expected = _mined(RankedNegativeMiner(3), 7 * embeddings, LABELS)
    assert _mined(RankedNegativeMiner(3, distance=distance), embeddings, LABELS) == expected


def test_fewer_negatives_than_asked_for_are_all_taken():
    mined = _mined(RankedNegativeMiner(50, per_class=False), _embeddings(), LABELS)
    assert Counter(q for q, _, _ in mined) == {0: 5, 1: 5, 6: 5, 2: 6, 3: 6, 4: 6, 5: 6}
    mined = _mined(RankedNegativeMiner(50), _embeddings(), LABELS)
    assert Counter(q for q, _, _ in mined) == dict.fromkeys([0, 1, 2, 3, 4, 5, 6], 3)  # of 4 classes


@pytest.mark.parametrize("positive", ["least_similar", "random", "every"])
@pytest.mark.parametrize(
    "labels", [[], [4], [0, 1, 2], [7, 7, 7]], ids=["empty", "one image", "singletons", "one class"]
)
def test_no_triplets_where_there_are_none(labels, positive):
    labels = torch.tensor(labels, dtype=torch.long)
    assert _mined(RankedNegativeMiner(positive=positive), _embeddings(len(labels)), labels) == []


def test_no_references_give_no_triplets():
    miner = RankedNegativeMiner()
    assert _mined(miner, _embeddings(), LABELS, torch.zeros(0, 4, dtype=torch.float64), LABELS[:0]) == []


@pytest.mark.parametrize("positive", ["most_similar", "random", "every"])
@pytest.mark.parametrize("copied", ["same", "detached", "cloned", "in a memory"])
def test_references_that_hold_the_image_do_not_make_it_its_own_positive(positive, copied):
    embeddings = _embeddings(dtype=torch.float32).requires_grad_()
    references, labels = embeddings, LABELS
    if copied == "detached":
        references = embeddings.detach()
    elif copied == "cloned":
        references = embeddings.detach().clone()
    elif copied == "in a memory":
        references = torch.cat([embeddings.detach(), _embeddings(3, seed=1, dtype=torch.float32)])
        labels = torch.cat([LABELS, torch.tensor([0, 3, 3])])
    mined = _mined(RankedNegativeMiner(positive=positive), embeddings, LABELS, references, labels)
    assert {q for q, _, _ in mined} == set(range(8)) - (set() if copied == "in a memory" else {7})
    assert all(q != p for q, p, _ in mined)


def test_random_positive_is_uniform_over_the_others_of_the_class():
    labels, calls = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2]), 800
    embeddings, miner = _embeddings(), RankedNegativeMiner(2, positive="random", seed=3)
    counts = Counter()
    for _ in range(calls):
        query, positive, _ = miner(embeddings, labels)
        counts.update(set(zip(query.tolist(), positive.tolist(), strict=True)))
    pairs = [(q, p) for q in range(8) for p in range(8) if q != p and labels[q] == labels[p]]
    assert set(counts) == set(pairs)
    expected = {0: calls / 3, 1: calls / 2}
    statistic = sum((counts[q, p] - (e := expected[int(labels[q])])) ** 2 / e for q, p in pairs)
    assert 0.001 < chi2.sf(statistic, 4 * 2 + 3 * 1) < 0.999


def test_seed_decides_the_random_positives_and_the_global_generator_is_left_alone():
    embeddings, labels = _embeddings(12), torch.arange(12) % 2
    before = torch.get_rng_state()
    first, again, other = (
        _mined(RankedNegativeMiner(positive="random", seed=seed), embeddings, labels) for seed in (5, 5, 6)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again != other


def test_saved_state_continues_the_same_draws():
    embeddings, labels = _embeddings(12), torch.arange(12) % 2
    miner, file = RankedNegativeMiner(positive="random", seed=5), io.BytesIO()
    miner(embeddings, labels)
    torch.save(miner.state_dict(), file)
    expected = [_mined(miner, embeddings, labels) for _ in range(2)]
    assert expected[0] != expected[1]
    file.seek(0)
    resumed = RankedNegativeMiner(positive="random")
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert [_mined(resumed, embeddings, labels) for _ in range(2)] == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("distance", [None, distances.CosineSimilarity()], ids=["default", "cosine"])
def test_embeddings_are_compared_in_float32_at_least(dtype, distance):
    embeddings = _embeddings(30).to(dtype)
    labels, miner = torch.arange(30) % 4, RankedNegativeMiner(distance=distance)
    expected = _mined(miner, embeddings.float(), labels)
    assert _mined(miner, embeddings, labels) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert _mined(miner, embeddings, labels) == expected


@pytest.mark.parametrize("choose", ["most_similar", "least_similar"])
def test_what_is_nan_is_chosen_so_that_the_loss_shows_it(choose):
    embeddings = _embeddings()
    embeddings[3] = math.nan
    for positive in ("most_similar", "least_similar"):
        mined = _mined(RankedNegativeMiner(1, choose=choose, positive=positive), embeddings, LABELS)
        assert {n for q, _, n in mined if LABELS[q] != 1 and q != 3} == {3}
        assert {(q, p) for q, p, _ in mined if LABELS[q] == 1} == {(2, 3), (3, 2)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": 0}, "negatives: got 0, expected a whole number, at least 1"),
        ({"negatives": True}, "negatives: got True"),
        ({"choose": "bottom"}, "choose: got 'bottom', expected one of most_similar, least_similar"),
        ({"positive": 3}, "positive: got 3, expected one of least_similar, most_similar, random, every"),
        ({"distance": "cosine"}, "distance: got 'cosine', expected one of PML's distances"),
        ({"per_class": 1}, "per_class: got 1, expected True or False"),
        ({"seed": -1}, "seed: got -1, expected a whole number, at least 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankedNegativeMiner(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((_embeddings(), LABELS.float()), "labels: got torch.float32, expected integer classes"),
        ((_embeddings(), LABELS[:3]), "must equal number of labels"),
        ((_embeddings(), LABELS, _embeddings(3), None), "got no labels or ref_labels"),
        ((_embeddings(), LABELS, _embeddings(3), torch.ones(3)), "ref_labels: got torch.float32"),
        ((_embeddings(), LABELS, _embeddings(3, 5), LABELS[:3]), "ref_emb: got size 5, expected 4"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RankedNegativeMiner()(*arguments)


@pytest.mark.parametrize(
    "loss_func",
    [
        losses.TripletMarginLoss(),
        losses.ContrastiveLoss(),
        losses.MultiSimilarityLoss(),
        LRMLLoss(),
        CrossBatchMemory(losses.TripletMarginLoss(), 4, 20, miner=RankedNegativeMiner()),
    ],
    ids=lambda loss_func: type(loss_func).__name__,
)
def test_losses_take_the_triplets(loss_func):
    for seed in range(3):
        embeddings = _embeddings(seed=seed, dtype=torch.float32).requires_grad_()
        triplets = (
            None if isinstance(loss_func, CrossBatchMemory) else RankedNegativeMiner()(embeddings, LABELS)
        )
        loss_func(embeddings, LABELS, triplets).backward()
        assert embeddings.grad.isfinite().all()
        assert embeddings.grad.any()
