"""LRMLLoss, against explicit loops, closed forms, and PML's ContrastiveLoss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, miners, reducers, regularizers
from torch.utils.data import TensorDataset

from dr_plugin.losses import CrossBatchMemory, LRMLLoss, ReservoirMemory, lrml
from dr_plugin.losses.example_weights import loss_terms
from dr_plugin.miners import RankedNegativeMiner, UniformTripletMiner

LABELS = torch.tensor([0, 0, 1, 1, 2, 2, 0, 3])


def _embeddings(count=8, size=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=dtype).requires_grad_()


def _on_circle(*degrees, dtype=torch.float64):
    """Unit vectors whose Euclidean distances are 2 sin(half the angle between them)."""
    angles = torch.tensor(degrees, dtype=dtype).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def _indices(*triplets):
    return torch.tensor(triplets).unbind(1)


def _distance(first, second):
    first, second = (
        [x / math.sqrt(sum(y * y for y in row)) for x in row] for row in (first.tolist(), second.tolist())
    )
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(first, second, strict=True)))


def _by_loops(
    embeddings,
    references,
    triplets,
    *,
    negatives,
    margin,
    step,
    positive_margin,
    choose,
    weight,
    two_sided=False,
):
    """Pulls by (q, p), and pushes by (q, p, n)."""
    tuples = {}
    for q, p, n in zip(*(indices.tolist() for indices in triplets), strict=True):
        tuples.setdefault((q, p), set()).add(n)
    pulls, pushes = {}, {}
    for (q, p), others in tuples.items():
        ranked = sorted((_distance(embeddings[q], references[n]), n) for n in others)
        if choose == "least_similar":
            ranked = sorted(sorted(ranked, key=lambda entry: (-entry[0], entry[1]))[:negatives])
        pulls[q, p] = max(0.0, _distance(embeddings[q], references[p]) - positive_margin)
        for rank, (distance, n) in enumerate(ranked[:negatives]):
            short = margin + rank * step - distance
            pushes[q, p, n] = weight * (abs(short) if two_sided else max(0.0, short))
    return pulls, pushes


def _terms(loss_func, *arguments, **keywords):
    """Pulls by (q, p), and the pushes' values with their (q, n), sorted."""
    with loss_terms(loss_func) as terms:
        loss_func(*arguments, **keywords)
    pull, push = terms["pull_loss"], terms["push_loss"]
    if not torch.is_tensor(pull["losses"]):
        return {}, []
    pairs = zip(*(indices.tolist() for indices in pull["indices"]), strict=True)
    pulls = dict(zip(pairs, pull["losses"].tolist(), strict=True))
    return pulls, sorted(
        zip(*(indices.tolist() for indices in push["indices"]), push["losses"].tolist(), strict=True)
    )


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    negatives=st.integers(1, 4),
    step=st.floats(0, 0.2),
    choose=st.sampled_from(["most_similar", "least_similar"]),
    count=st.integers(1, 60),
    two_sided=st.booleans(),
)
def test_terms_are_those_of_loops_for_any_triplets(seed, negatives, step, choose, count, two_sided):
    settings_ = {
        "negatives": negatives,
        "margin": 1.3,
        "step": step,
        "positive_margin": 0.9,
        "choose": choose,
        "two_sided": two_sided,
    }
    embeddings, references = _embeddings(5, 3, seed), _embeddings(7, 3, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    triplets = tuple(torch.randint(size, (count,), generator=generator) for size in (5, 7, 7))
    loss_func = LRMLLoss(**settings_, push_weight=0.5)
    pulls, pushes = _terms(loss_func, embeddings, indices_tuple=triplets, ref_emb=references)
    slow_pulls, slow_pushes = _by_loops(embeddings, references, triplets, **settings_, weight=0.5)
    assert pulls == pytest.approx(slow_pulls)
    expected = sorted((q, n, value) for (q, _, n), value in slow_pushes.items())
    assert [push[:2] for push in pushes] == [push[:2] for push in expected]
    assert [push[2] for push in pushes] == pytest.approx([push[2] for push in expected])


def test_loss_on_the_circle_is_closed_form():
    # To the query at 0 degrees: 60 is at distance 1, 90 at sqrt(2), 120 at sqrt(3), 180 at 2.
    embeddings = _on_circle(0, 60, 120, 90, 180)
    triplets = _indices((0, 1, 4), (0, 1, 2), (0, 1, 3))
    loss_func = LRMLLoss(negatives=3, margin=1.5, step=0.25, positive_margin=0.4, push_weight=2)
    pulls, pushes = _terms(loss_func, embeddings, indices_tuple=triplets)
    assert pulls == pytest.approx({(0, 1): 0.6})
    expected = [2 * (1.75 - math.sqrt(3)), 2 * (1.5 - math.sqrt(2)), 0]  # negatives 2, 3, 4
    assert [value for *_, value in pushes] == pytest.approx(expected)
    loss = loss_func(embeddings, indices_tuple=triplets)
    assert loss.item() == pytest.approx(0.6 + sum(expected) / 2)  # the mean of the two that cost something


def test_two_sided_draws_back_what_is_beyond_its_margin():
    embeddings = _on_circle(0, 60, 90, 180).requires_grad_()
    loss_func = LRMLLoss(2, margin=1.5, step=0.25, positive_margin=1, two_sided=True)
    _, pushes = _terms(loss_func, embeddings, indices_tuple=_indices((0, 1, 2), (0, 1, 3)))
    assert [value for *_, value in pushes] == pytest.approx([1.5 - math.sqrt(2), 2 - 1.75])
    embeddings = _on_circle(0, 60, 170).requires_grad_()
    LRMLLoss(1, positive_margin=0.5, two_sided=True)(embeddings, indices_tuple=_indices((0, 1, 2))).backward()
    away = torch.stack([-embeddings[2, 1], embeddings[2, 0]])  # along the circle, from the query
    # The derivative of 2 sin(a / 2).
    assert (embeddings.grad[2] @ away).item() == pytest.approx(math.cos(math.radians(85)))


def test_gradient_of_the_closed_form_pushes_by_rank_and_pulls():
    embeddings = _on_circle(0, 60, 50, 55).requires_grad_()
    triplets = _indices((0, 1, 2), (0, 1, 3))
    near, far = (2 * math.sin(math.radians(half)) for half in (25, 27.5))
    # Only the first is short of it.
    loss_func = LRMLLoss(2, margin=(near + far) / 2, step=0.0, positive_margin=0.1)
    loss_func(embeddings, indices_tuple=triplets).backward()
    # The derivative of 2 sin(a / 2).
    assert embeddings.grad[1].norm().item() == pytest.approx(math.cos(math.radians(30)))
    assert embeddings.grad[2].norm().item() == pytest.approx(math.cos(math.radians(25)))
    assert not embeddings.grad[3].any()


@pytest.mark.parametrize("choose", ["most_similar", "least_similar"])
@pytest.mark.parametrize("positive", ["most_similar", "least_similar", "every"])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("references", [False, True], ids=["own", "references"])
def test_loss_that_mines_is_the_loss_of_the_miner_s_triplets(choose, positive, references, per_class):
    embeddings = _embeddings()
    others = {"ref_emb": _embeddings(9, seed=1), "ref_labels": torch.arange(9) % 4} if references else {}
    rule = {"negatives": 3, "choose": choose, "positive": positive, "per_class": per_class}
    triplets = RankedNegativeMiner(**rule)(embeddings, LABELS, **others)
    assert len(triplets[0]) > 0
    loss_func = LRMLLoss(margin=1.4, **rule)
    mined = _terms(loss_func, embeddings, LABELS, **others)
    assert mined == _terms(loss_func, embeddings, LABELS, triplets, **others)
    assert mined[1]


@pytest.mark.parametrize(
    "miner",
    [
        miners.TripletMarginMiner(margin=0.3),
        miners.BatchHardMiner(),
        miners.MultiSimilarityMiner(),
        miners.BatchEasyHardMiner(),
        UniformTripletMiner(6),
    ],
    ids=lambda miner: type(miner).__name__,
)
def test_triplets_of_any_miner_are_ranked_within_query_and_positive(miner):
    embeddings = _embeddings()
    given_ = miner(embeddings, LABELS)
    joined = given_
    if len(given_) == 4:
        pairs = [
            list(zip(*(part.tolist() for part in half), strict=True)) for half in (given_[:2], given_[2:])
        ]
        joined = _indices(*((q, p, n) for q, p in pairs[0] for other, n in pairs[1] if other == q))
    settings_ = {"negatives": 2, "margin": 1.4, "step": 0.2, "positive_margin": 0.2, "choose": "most_similar"}
    slow_pulls, slow_pushes = _by_loops(embeddings, embeddings, joined, **settings_, weight=1)
    pulls, pushes = _terms(LRMLLoss(**settings_), embeddings, LABELS, given_)
    assert pulls == pytest.approx(slow_pulls)
    assert sum(value for *_, value in pushes) == pytest.approx(sum(slow_pushes.values()))
    assert len(pushes) == len(slow_pushes) > 0


def test_given_triplets_stay_as_they_are_whatever_their_classes():
    embeddings = _embeddings()
    triplets = RankedNegativeMiner(4, per_class=False)(embeddings, LABELS)
    classes = {(q, int(LABELS[n])) for q, n in zip(triplets[0].tolist(), triplets[2].tolist(), strict=True)}
    assert len(classes) < len(triplets[0])  # a query has several of one class
    _, pushes = _terms(LRMLLoss(4), embeddings, LABELS, triplets)
    assert [push[:2] for push in pushes] == sorted(
        zip(triplets[0].tolist(), triplets[2].tolist(), strict=True)
    )


def test_order_and_repetition_of_triplets_do_not_matter():
    embeddings = _embeddings()
    triplets = RankedNegativeMiner(4)(embeddings, LABELS)
    order = torch.randperm(len(triplets[0]), generator=torch.Generator().manual_seed(0)).repeat(2)
    shuffled = tuple(part[order] for part in triplets)
    loss_func = LRMLLoss(4, margin=1.4)
    assert _terms(loss_func, embeddings, indices_tuple=triplets) == _terms(
        loss_func, embeddings, indices_tuple=shuffled
    )


def test_equal_negatives_rank_by_index_and_get_margins_of_their_own():
    embeddings = _on_circle(0, 10, 60, 60, 60)
    loss_func = LRMLLoss(3, margin=1.1, step=0.1)
    _, pushes = _terms(loss_func, embeddings, indices_tuple=_indices((0, 1, 3), (0, 1, 4), (0, 1, 2)))
    assert pushes == [(0, 2, pytest.approx(0.1)), (0, 3, pytest.approx(0.2)), (0, 4, pytest.approx(0.3))]


def test_without_a_step_it_is_pml_s_contrastive_loss_on_the_chosen_pairs():
    embeddings = _embeddings()
    query, positive, negative = RankedNegativeMiner(3)(embeddings, LABELS)
    pairs = torch.unique(torch.stack([query, positive]), dim=1)
    contrastive = losses.ContrastiveLoss(pos_margin=0.1, neg_margin=1.2)
    expected = contrastive(embeddings, LABELS, (*pairs, query, negative))
    loss = LRMLLoss(3, margin=1.2, step=0.0, positive_margin=0.1)(embeddings, LABELS)
    # PML's matrix of distances is rounded differently.
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "distance",
    [
        None,
        distances.LpDistance(power=2),
        distances.LpDistance(p=1),
        distances.LpDistance(normalize_embeddings=False),
        distances.SNRDistance(),
    ],
    ids=["default", "squared", "l1", "not normalised", "signal to noise"],
)
def test_gradient_is_that_of_finite_differences(distance):
    loss_func = LRMLLoss(3, margin=1.1, step=0.1, distance=distance, reducer=reducers.MeanReducer())

    def loss(embeddings, references):
        return loss_func(embeddings, LABELS[:4], None, references, LABELS)

    embeddings, references = _embeddings(4), _embeddings(8, seed=1)
    assert loss(embeddings, references) > 0
    assert torch.autograd.gradcheck(loss, (embeddings, references))
    # The matrix by which it mines ranks as the rows do.
    assert torch.autograd.gradcheck(lambda rows: loss_func(rows, LABELS), (_embeddings(),))


@pytest.mark.parametrize("distance", [None, distances.LpDistance(power=2)])
def test_gradient_is_finite_where_images_coincide(distance):
    embeddings = torch.ones(5, 3, requires_grad=True)
    loss = LRMLLoss(distance=distance)(embeddings, torch.tensor([0, 0, 1, 1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx((0.8 + 0.9) / 2)
    assert embeddings.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("regularizer", [None, regularizers.LpRegularizer()], ids=["plain", "regularised"])
@pytest.mark.parametrize("references", [False, True], ids=["own", "references"])
def test_half_precision_embeddings_are_computed_in_float32(dtype, regularizer, references):
    leaf = _embeddings().detach().to(dtype).requires_grad_()
    other = _embeddings(9, seed=1).detach().to(dtype)
    loss_func = LRMLLoss(margin=1.4, embedding_regularizer=regularizer)
    ref_labels = torch.arange(9) % 4
    loss = loss_func(leaf, LABELS, None, *((other, ref_labels) if references else ()))
    expected = loss_func(leaf.float(), LABELS, None, *((other.float(), ref_labels) if references else ()))
    assert (loss.dtype, loss.item()) == (torch.float32, expected.item())
    loss.backward()
    assert leaf.grad.dtype == dtype
    assert leaf.grad.any()


def test_autocast_changes_nothing():
    embeddings, loss_func = _embeddings(dtype=torch.float32), LRMLLoss(margin=1.4)
    expected = loss_func(embeddings, LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        assert loss_func(embeddings, LABELS).item() == expected.item()


NOTHING = torch.zeros(0).long()


@pytest.mark.parametrize(
    ("count", "arguments", "regularizer"),
    [
        (4, {"indices_tuple": (NOTHING,) * 3}, None),
        (4, {"indices_tuple": (NOTHING,) * 3}, regularizers.LpRegularizer()),
        (4, {"indices_tuple": (NOTHING,) * 4}, None),
        (4, {"indices_tuple": (torch.tensor([0]), torch.tensor([1]), NOTHING, NOTHING)}, None),
        (4, {"labels": torch.zeros(4).long()}, None),
        (4, {"labels": torch.arange(4)}, None),
        (1, {"labels": torch.zeros(1).long()}, None),
        (0, {"labels": NOTHING}, None),
        (3, {"labels": torch.arange(3), "ref_emb": torch.zeros(0, 4), "ref_labels": NOTHING}, None),
    ],
    ids=[
        "no triplets",
        "no triplets, regularised",
        "no pairs",
        "no negative",
        "one class",
        "singletons",
        "one image",
        "empty batch",
        "no references",
    ],
)
def test_no_tuples_cost_nothing_and_stay_attached(count, arguments, regularizer):
    embeddings = _embeddings(count)
    loss = LRMLLoss(embedding_regularizer=regularizer)(embeddings, **arguments)
    loss.backward()
    expected = 0.0 if regularizer is None else embeddings.norm(dim=1).mean().item()
    assert loss.item() == pytest.approx(expected)
    assert embeddings.grad.shape == embeddings.shape


@pytest.mark.parametrize("labels", [LABELS, None], ids=["mined", "given"])
@pytest.mark.parametrize("choose", ["most_similar", "least_similar"])
def test_embedding_that_is_nan_shows_in_the_loss(labels, choose):
    embeddings = _embeddings().detach()
    embeddings[5] = math.nan
    triplets = None if labels is not None else UniformTripletMiner(8)(embeddings, LABELS)
    assert LRMLLoss(1, choose=choose)(embeddings, labels, triplets).isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"negatives": 0}, "negatives: got 0, expected a whole number, at least 1"),
        ({"negatives": 2.5}, "negatives: got 2.5"),
        ({"margin": 0}, "margin: got 0, expected a finite number above 0"),
        ({"margin": math.inf}, "margin: got inf"),
        ({"margin": True}, "margin: got True"),
        ({"step": -0.1}, "step: got -0.1, expected a finite number at least 0"),
        ({"step": "0.1"}, "step: got '0.1'"),
        ({"positive_margin": -1}, "positive_margin: got -1, expected a finite number at least 0"),
        ({"positive_margin": 0.8}, "positive_margin: got 0.8, expected less than the margin 0.8"),
        ({"push_weight": 0}, "push_weight: got 0, expected a finite number above 0"),
        ({"two_sided": 1}, "two_sided: got 1, expected True or False"),
        ({"per_class": "yes"}, "per_class: got 'yes', expected True or False"),
        ({"choose": "bottom_five"}, "choose: got 'bottom_five', expected one of most_similar, least_similar"),
        ({"positive": "hardest"}, "positive: got 'hardest', expected one of least_similar, most_similar"),
        ({"positive": "random"}, "positive: got 'random', .* RankedNegativeMiner"),
        ({"step": 0.31}, "margin: got 2.04 for the last rank, .* at most 2, "),
        ({"margin": 3.7, "distance": distances.LpDistance(power=2)}, "margin: got 4.1 .* at most 4, "),
        ({"negatives": 14}, "margin: got 2.1 for the last rank"),
        ({"distance": distances.CosineSimilarity()}, "distance: got CosineSimilarity, a similarity"),
        ({"distance": distances.BatchedDistance(distances.LpDistance())}, "distance: got BatchedDistance"),
        ({"distance": "l2"}, "distance: got str, expected LpDistance"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LRMLLoss(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"step": 0.3},
        {"margin": 1.7, "negatives": 4},
        {"margin": 3.6, "distance": distances.LpDistance(power=2)},
        {"margin": 50, "distance": distances.LpDistance(normalize_embeddings=False)},
    ],
)
def test_margins_within_the_distance_s_range_are_taken(arguments):
    assert LRMLLoss(**arguments)(_embeddings(), LABELS) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "got no labels or ref_labels and no indices_tuple"),
        ({"labels": LABELS, "ref_emb": torch.zeros(2, 4)}, "got no labels or ref_labels"),
        ({"labels": LABELS.float()}, "labels: got torch.float32, expected integer classes"),
        (
            {"labels": LABELS, "ref_emb": torch.zeros(8, 3), "ref_labels": LABELS},
            "ref_emb: got size 3, expected 4, as embeddings",
        ),
        (
            {"indices_tuple": _indices((0, 1, 2)), "ref_emb": torch.zeros(8, 3)},
            "ref_emb: got size 3, expected 4, as embeddings",
        ),
        ({"labels": LABELS[:5]}, "must equal number of labels"),
        ({"indices_tuple": _indices((0, 1, 8))}, "indices_tuple: got an index 8, expected 0 to 7"),
        ({"indices_tuple": _indices((0, -1, 2))}, "indices_tuple: got an index -1, expected 0 to 7"),
        ({"indices_tuple": (NOTHING, NOTHING)}, r"indices_tuple: got lengths \[0, 0\], expected 3"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LRMLLoss()(_embeddings(), **arguments)


def test_given_triplets_within_bounds_make_no_matrix(monkeypatch):
    embeddings = _embeddings()
    triplets = RankedNegativeMiner()(embeddings, LABELS)
    expected = LRMLLoss()(embeddings, indices_tuple=triplets)
    monkeypatch.setattr(torch, "cdist", None)
    assert LRMLLoss()(embeddings, indices_tuple=triplets) == expected
    with pytest.raises(TypeError, match="not callable"):
        LRMLLoss(negatives=2)(embeddings, indices_tuple=triplets)


@pytest.mark.parametrize("positive", ["least_similar", "every"])
def test_each_pair_is_computed_once(positive, monkeypatch):
    rows, compute = [], lrml.row_distance

    def counted(*arguments):
        between = compute(*arguments)
        return lambda first, second: rows.append(len(first)) or between(first, second)

    monkeypatch.setattr(lrml, "row_distance", counted)
    embeddings = _embeddings()
    pulls, pushes = _terms(LRMLLoss(3, positive=positive), embeddings, LABELS)
    assert rows == [len(pulls), len({push[:2] for push in pushes})]
    assert (len(pushes) > rows[1]) == (positive == "every")


def test_statistic_tells_how_many_pushes_cost_something():
    embeddings = _on_circle(0, 60, 90, 180)
    triplets = _indices((0, 1, 2), (0, 1, 3))
    loss_func = LRMLLoss(2, margin=1.5, step=0.25, collect_stats=True)
    assert "active_pushes" in loss_func._record_these_stats
    for indices, expected in ((triplets, 1), ((NOTHING,) * 3, 0), (triplets, 1)):
        loss_func(embeddings, indices_tuple=indices)
        assert loss_func.active_pushes == expected
    loss_func = LRMLLoss(collect_stats=False)
    loss_func(embeddings, indices_tuple=triplets)
    assert not hasattr(loss_func, "active_pushes")


def test_least_similar_of_random_images_needs_a_larger_margin():
    embeddings, labels = _embeddings(64, 32), torch.arange(64) // 4
    for margin, pushed in ((0.8, False), (1.3, True)):
        for per_class in (False, True):
            loss_func = LRMLLoss(
                margin=margin, choose="least_similar", per_class=per_class, collect_stats=True
            )
            loss_func(embeddings, labels)
            assert (loss_func.active_pushes > 0) == pushed


def test_sub_losses_have_reducers_of_their_own():
    embeddings = _embeddings(dtype=torch.float32)
    several = reducers.MultipleReducers(
        {"pull_loss": reducers.MeanReducer(), "push_loss": reducers.AvgNonZeroReducer()}
    )
    pulls, pushes = _terms(LRMLLoss(margin=1.4), embeddings, LABELS)
    above = [value for *_, value in pushes if value > 0]
    expected = sum(pulls.values()) / len(pulls) + sum(above) / len(above)
    assert LRMLLoss(margin=1.4, reducer=several)(embeddings, LABELS).item() == pytest.approx(expected)


def test_multiple_losses_take_it():
    embeddings = _embeddings(dtype=torch.float32)
    ours, contrastive = LRMLLoss(), losses.ContrastiveLoss()
    triplets = RankedNegativeMiner()(embeddings, LABELS)
    together = losses.MultipleLosses([ours, contrastive], weights=[1, 0.5])
    expected = ours(embeddings, LABELS, triplets) + 0.5 * contrastive(embeddings, LABELS, triplets)
    torch.testing.assert_close(together(embeddings, LABELS, triplets), expected)


@pytest.mark.parametrize("miner", [RankedNegativeMiner(3), None], ids=["miner", "no miner"])
@pytest.mark.parametrize("memory", [CrossBatchMemory, ReservoirMemory])
def test_memories_feed_it_and_no_image_is_its_own_positive(memory, miner):
    batches = [_embeddings(seed=seed, dtype=torch.float32) for seed in range(2)]
    loss_func = LRMLLoss(3, margin=1.4, positive_margin=0.0)
    remembering = memory(loss_func, 4, 32, miner=miner)
    remembering(batches[0], LABELS)
    loss = remembering(batches[1], LABELS)
    others = torch.cat([batch.detach() for batch in batches])
    expected = loss_func(batches[1], LABELS, None, others, LABELS.repeat(2))
    if miner is None:  # all pairs: a tuple for each positive
        loss_func = LRMLLoss(3, margin=1.4, positive_margin=0.0, positive="every", per_class=False)
        expected = loss_func(batches[1], LABELS, None, others, LABELS.repeat(2))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert batches[1].grad.any()


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
@pytest.mark.parametrize("mining", [{}, {"tuple_miner": RankedNegativeMiner()}], ids=["alone", "miner"])
def test_pml_trainer_lowers_it(mining):
    from pytorch_metric_learning.trainers import MetricLossOnly

    labels = torch.arange(3).repeat(8)
    data = _embeddings(24, 8, dtype=torch.float32).detach() + torch.nn.functional.one_hot(labels, 8)
    torch.manual_seed(0)
    trunk, loss_func = torch.nn.Linear(8, 4), LRMLLoss(margin=1.0, reducer=reducers.MeanReducer())
    with torch.no_grad():
        before = loss_func(trunk(data), labels)
    MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.5)},
        batch_size=24,
        loss_funcs={"metric_loss": loss_func},
        mining_funcs=mining,
        dataset=TensorDataset(data, labels),
        dataloader_num_workers=0,
        data_device="cpu",
    ).train(num_epochs=20)
    with torch.no_grad():
        assert loss_func(trunk(data), labels) < 0.8 * before
