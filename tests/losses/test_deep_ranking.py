"""DeepRankingLoss, against explicit loops, closed forms, and PML's TripletMarginLoss."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, losses, reducers, regularizers
from pytorch_metric_learning.utils import distributed
from pytorch_metric_learning.utils import loss_and_miner_utils as lmu
from torch.utils.data import TensorDataset

from dr_plugin.losses import DeepRankingLoss, deep_ranking, explicit_triplets
from dr_plugin.miners import UniformTripletMiner

DISTANCES = {
    "default": None,
    "euclidean": distances.LpDistance(),
    "not normalised": distances.LpDistance(normalize_embeddings=False, power=2),
    "l1": distances.LpDistance(p=1),
    "l3 cubed": distances.LpDistance(p=3, power=3),
    "maximum": distances.LpDistance(p=float("inf")),
    "cosine": distances.CosineSimilarity(),
    "dot product": distances.DotProductSimilarity(),
    "dot product, normalised, squared": distances.DotProductSimilarity(normalize_embeddings=True, power=2),
    "signal to noise": distances.SNRDistance(),
}


def _embeddings(count=6, size=5, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=dtype).requires_grad_()


def _triplets(count=40, queries=6, references=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randint(size, (count,), generator=generator) for size in (queries, references, references)
    )


def _value_and_gradients(loss_func, *leaves, **arguments):
    loss = loss_func(**arguments)
    return [loss, *torch.autograd.grad(loss, leaves)]


def _assert_close(first, second, **tolerance):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def _by_loops(embeddings, triplets, gap):
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in torch.tensor(embeddings.tolist()).double()]
    costs = []
    for q, p, n in zip(*(indices.tolist() for indices in triplets), strict=True):
        near = sum(float(a - b) ** 2 for a, b in zip(unit[q], unit[p], strict=True))
        far = sum(float(a - b) ** 2 for a, b in zip(unit[q], unit[n], strict=True))
        costs.append(max(0.0, gap + near - far))
    return costs


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 5))
def test_each_cost_is_equation_3(seed, gap):
    embeddings, triplets = _embeddings(seed=seed), _triplets(count=8, seed=seed)
    costs = DeepRankingLoss(gap, reducer=reducers.DoNothingReducer())(embeddings, indices_tuple=triplets)
    expected = torch.tensor(_by_loops(embeddings, triplets, gap), dtype=torch.float64)
    torch.testing.assert_close(costs["loss"]["losses"], expected, atol=1e-6, rtol=1e-6)


def test_loss_of_right_angles_is_closed_form():
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0], [5.0, 0.0]])  # D: 0-1 2, 0-2 4, 0-3 0
    triplets = (torch.tensor([0, 0, 0]), torch.tensor([1, 2, 3]), torch.tensor([2, 1, 1]))
    costs = DeepRankingLoss(0.5, reducer=reducers.DoNothingReducer())(embeddings, indices_tuple=triplets)
    assert costs["loss"]["losses"].tolist() == [0, 2.5, 0]
    assert DeepRankingLoss(0.5)(embeddings, indices_tuple=triplets).item() == 2.5  # the mean of those above 0
    mean = DeepRankingLoss(0.5, reducer=reducers.MeanReducer())(embeddings, indices_tuple=triplets)
    assert mean.item() == pytest.approx(2.5 / 3)


@pytest.mark.parametrize("chunk", [1 << 19, 35, 1], ids=["one chunk", "7 triplets", "1 triplet"])
@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())
def test_value_and_gradient_are_those_of_pml(distance, chunk, monkeypatch):
    monkeypatch.setattr(explicit_triplets, "_CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(explicit_triplets, "_ENTRIES_PER_TRIPLET", 0)  # gathered, whatever the distance
    embeddings, triplets = _embeddings(), _triplets()
    pml = losses.TripletMarginLoss(margin=0.3, distance=distance or distances.LpDistance(power=2))
    arguments = {"embeddings": embeddings, "indices_tuple": triplets}
    ours = _value_and_gradients(DeepRankingLoss(0.3, distance=distance), embeddings, **arguments)
    _assert_close(ours, _value_and_gradients(pml, embeddings, **arguments))
    assert ours[0] > 0


def test_value_and_gradient_by_the_matrix_are_those_of_pml():
    embeddings, triplets = _embeddings(), _triplets()
    pml = losses.TripletMarginLoss(margin=0.3, distance=distances.LpDistance(power=2))
    arguments = {"embeddings": embeddings, "indices_tuple": triplets}
    ours = _value_and_gradients(DeepRankingLoss(0.3), embeddings, **arguments)
    _assert_close(ours, _value_and_gradients(pml, embeddings, **arguments))


@pytest.mark.parametrize(("triplets", "matrices"), [(313, 1), (312, 0)])  # of 200 x 200 entries
@pytest.mark.parametrize("distance", [None, distances.LpDistance()], ids=["squared", "not squared"])
def test_matrix_is_taken_up_to_128_entries_a_triplet_of_the_squared_distance(
    triplets, matrices, distance, monkeypatch
):
    taken = []
    matrix = explicit_triplets.SquaredMargins.forward
    monkeypatch.setattr(
        explicit_triplets.SquaredMargins,
        "forward",
        staticmethod(lambda ctx, *given: taken.append(1) or matrix(ctx, *given)),
    )
    indices = _triplets(triplets, queries=200, references=200)
    DeepRankingLoss(0.3, distance=distance)(_embeddings(200), indices_tuple=indices)
    assert len(taken) == (matrices if distance is None else 0)


@pytest.mark.parametrize("entries", [128, 0], ids=["matrix", "gathered"])
@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())
def test_references_are_honoured(distance, entries, monkeypatch):
    monkeypatch.setattr(explicit_triplets, "_ENTRIES_PER_TRIPLET", entries)
    embeddings, references, triplets = _embeddings(), _embeddings(9, seed=1), _triplets(references=9)
    pml = losses.TripletMarginLoss(margin=0.3, distance=distance or distances.LpDistance(power=2))
    arguments = {"embeddings": embeddings, "indices_tuple": triplets, "ref_emb": references}
    leaves = embeddings, references
    ours = _value_and_gradients(DeepRankingLoss(0.3, distance=distance), *leaves, **arguments)
    _assert_close(ours, _value_and_gradients(pml, *leaves, **arguments))


@pytest.mark.parametrize("entries", [128, 0], ids=["matrix", "gathered"])
@pytest.mark.parametrize("frozen", ["embeddings", "references"])
def test_one_side_without_a_gradient_leaves_the_other_its_own(frozen, entries, monkeypatch):
    monkeypatch.setattr(explicit_triplets, "_ENTRIES_PER_TRIPLET", entries)
    embeddings, references, triplets = _embeddings(), _embeddings(9, seed=1), _triplets(references=9)
    arguments = {"embeddings": embeddings, "indices_tuple": triplets, "ref_emb": references}
    both = _value_and_gradients(DeepRankingLoss(0.3), embeddings, references, **arguments)
    name, leaf, expected = {
        "embeddings": ("embeddings", references, both[2]),
        "references": ("ref_emb", embeddings, both[1]),
    }[frozen]
    arguments[name] = arguments[name].detach()
    _assert_close(_value_and_gradients(DeepRankingLoss(0.3), leaf, **arguments), [both[0], expected])


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())
def test_gradient_is_that_of_finite_differences(distance):
    loss_func = DeepRankingLoss(9.0, distance=distance, reducer=reducers.MeanReducer())  # away from the kink
    triplets = _triplets(count=7, queries=3, references=4)

    def loss(embeddings, references):
        return loss_func(embeddings, indices_tuple=triplets, ref_emb=references)

    assert torch.autograd.gradcheck(loss, (_embeddings(3), _embeddings(4, seed=1)))


@pytest.mark.parametrize("entries", [128, 0], ids=["matrix", "gathered"])
def test_second_derivative_is_refused(entries, monkeypatch):
    monkeypatch.setattr(explicit_triplets, "_ENTRIES_PER_TRIPLET", entries)
    embeddings = _embeddings()
    loss = DeepRankingLoss()(embeddings, indices_tuple=_triplets())
    (gradient,) = torch.autograd.grad(loss, embeddings, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("distance", [None, distances.LpDistance(), distances.LpDistance(p=1)])
def test_gradient_is_finite_where_images_coincide(distance):
    embeddings = torch.ones(3, 4, requires_grad=True)
    triplets = (torch.tensor([0]), torch.tensor([1]), torch.tensor([2]))
    loss, gradient = _value_and_gradients(
        DeepRankingLoss(0.2, distance=distance), embeddings, embeddings=embeddings, indices_tuple=triplets
    )
    assert loss.item() == pytest.approx(0.2)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("regularizer", [None, regularizers.LpRegularizer()], ids=["plain", "regularised"])
def test_half_precision_embeddings_are_computed_in_float32(dtype, regularizer):
    embeddings, triplets = _embeddings(dtype=torch.float32).detach().to(dtype), _triplets()
    loss_func = DeepRankingLoss(0.3, embedding_regularizer=regularizer)
    expected = loss_func(embeddings.float(), indices_tuple=triplets)
    leaf = embeddings.requires_grad_()
    loss = loss_func(leaf, indices_tuple=triplets)
    assert loss.dtype == torch.float32
    assert loss.item() == expected.item()
    loss.backward()
    assert leaf.grad.dtype == dtype


def test_autocast_changes_nothing():
    embeddings, triplets = _embeddings(dtype=torch.float32), _triplets()
    arguments = {"embeddings": embeddings, "indices_tuple": triplets}
    for distance in (None, distances.CosineSimilarity(), distances.SNRDistance()):
        loss_func = DeepRankingLoss(0.3, distance=distance)
        expected = _value_and_gradients(loss_func, embeddings, **arguments)
        with torch.autocast("cpu", torch.bfloat16):
            _assert_close(_value_and_gradients(loss_func, embeddings, **arguments), expected, rtol=0, atol=0)


def test_labels_alone_mean_all_triplets():
    embeddings, labels = _embeddings(), torch.tensor([0, 0, 1, 1, 1, 2])
    triplets = [
        (q, p, n)
        for q in range(6)
        for p in range(6)
        for n in range(6)
        if q != p and labels[q] == labels[p] != labels[n]
    ]
    expected = DeepRankingLoss(0.3)(embeddings, indices_tuple=torch.tensor(triplets).unbind(1))
    torch.testing.assert_close(DeepRankingLoss(0.3)(embeddings, labels), expected)


def test_labels_with_references_mean_all_triplets_across():
    embeddings, references = _embeddings(3), _embeddings(4, seed=1)
    labels, ref_labels = torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0, 3])
    triplets = [(0, 1, 0), (0, 1, 3), (0, 2, 0), (0, 2, 3), (1, 0, 1), (1, 0, 2), (1, 0, 3)]
    expected = DeepRankingLoss(0.3)(
        embeddings, indices_tuple=torch.tensor(triplets).unbind(1), ref_emb=references
    )
    loss = DeepRankingLoss(0.3)(embeddings, labels, ref_emb=references, ref_labels=ref_labels)
    torch.testing.assert_close(loss, expected)


def test_pairs_are_joined_on_the_anchor():
    embeddings = _embeddings()
    pairs = tuple(map(torch.tensor, ([0, 0, 3], [1, 2, 4], [0, 3, 3, 5], [5, 1, 2, 1])))
    joined = tuple(map(torch.tensor, ([0, 0, 3, 3], [1, 2, 4, 4], [5, 5, 1, 2])))
    loss = DeepRankingLoss(0.3)(embeddings, indices_tuple=pairs)
    torch.testing.assert_close(loss, DeepRankingLoss(0.3)(embeddings, indices_tuple=joined))


@pytest.mark.parametrize(
    ("count", "arguments", "regularizer"),
    [
        (4, {"indices_tuple": (torch.zeros(0).long(),) * 3}, None),
        (4, {"indices_tuple": (torch.zeros(0).long(),) * 3}, regularizers.LpRegularizer()),
        (4, {"indices_tuple": (torch.zeros(0).long(),) * 4}, None),
        (4, {"labels": torch.zeros(4).long()}, None),
        (4, {"labels": torch.arange(4)}, None),
        (0, {"labels": torch.zeros(0).long()}, None),
    ],
    ids=["no triplets", "no triplets, regularised", "no pairs", "one class", "singletons", "empty batch"],
)
def test_no_triplets_cost_nothing_and_stay_attached(count, arguments, regularizer):
    embeddings = _embeddings(count)
    regularised = DeepRankingLoss(embedding_regularizer=regularizer)
    loss = regularised(embeddings, **arguments)
    loss.backward()
    expected = 0.0 if regularizer is None else embeddings.norm(dim=1).mean().item()
    assert loss.item() == pytest.approx(expected)
    assert embeddings.grad.shape == embeddings.shape


@pytest.mark.parametrize("gap", [0, -0.2, math.nan, math.inf, "0.2", None, True])
def test_gap_that_is_no_finite_positive_number_is_refused(gap):
    with pytest.raises(ValueError, match=f"gap: got {gap!r}, expected a finite number above 0"):
        DeepRankingLoss(gap)


class _OtherMatrix(distances.LpDistance):
    def compute_mat(self, query_emb, ref_emb):
        return super().compute_mat(query_emb, ref_emb) * 3


class _OtherForward(distances.LpDistance):
    def forward(self, query_emb, ref_emb=None):
        return super().forward(query_emb, ref_emb) * 3


class _OtherRows(distances.DotProductSimilarity):
    def pairwise_distance(self, query_emb, ref_emb):
        return torch.zeros(len(query_emb))


@pytest.mark.parametrize(
    "distance",
    [_OtherMatrix(), _OtherForward(), distances.BatchedDistance(distances.LpDistance()), "l2"],
)
def test_distance_that_is_not_known_by_rows_is_refused(distance):
    with pytest.raises(ValueError, match=f"distance: got {type(distance).__name__}, expected LpDistance"):
        DeepRankingLoss(distance=distance)


class _OtherNormalisation(distances.LpDistance):
    def normalize(self, embeddings, dim=1, **kwargs):
        return embeddings / embeddings.norm(dim=dim, keepdim=True) * 2


@pytest.mark.parametrize("distance", [_OtherNormalisation(power=2), _OtherRows()])
def test_distance_with_a_known_matrix_is_honoured(distance):
    embeddings, triplets = _embeddings(), _triplets()
    loss = DeepRankingLoss(0.3, distance=distance)(embeddings, indices_tuple=triplets)
    pml = losses.TripletMarginLoss(margin=0.3, distance=distance)
    torch.testing.assert_close(loss, pml(embeddings, indices_tuple=triplets))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "labels and indices_tuple cannot both be None"),
        ({"indices_tuple": _triplets()[:2]}, r"indices_tuple: got lengths \[40, 40\], expected 3"),
        ({"indices_tuple": (torch.tensor([0]), *_triplets()[1:])}, r"got lengths \[1, 40, 40\]"),
        ({"labels": torch.arange(6), "ref_emb": torch.zeros(2, 5)}, "ref_emb without ref_labels"),
        ({"labels": torch.arange(5)}, "must equal number of labels"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepRankingLoss()(_embeddings(), **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": torch.arange(1025)}, "got none, .* 1,076,890,625 combinations"),
        ({"indices_tuple": (torch.zeros(2**16).long(),) * 4}, "got pairs, .* 4,294,967,296 combinations"),
    ],
)
def test_enumeration_that_would_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepRankingLoss()(torch.zeros(1025, 2), **arguments)


def test_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="margin"):
        DeepRankingLoss(margin=0.2)


def test_pml_statistics_are_kept():
    loss_func = DeepRankingLoss(0.3, distance=distances.LpDistance(power=2, collect_stats=True))
    embeddings = torch.full((6, 4), 3.0)
    loss_func(embeddings, indices_tuple=_triplets())
    assert loss_func.distance.initial_avg_query_norm == pytest.approx(6)
    assert loss_func.distance.final_avg_ref_norm == pytest.approx(1)
    assert "gap" in loss_func._record_these


def test_multiple_losses_take_it():
    embeddings, labels, triplets = _embeddings(dtype=torch.float32), torch.arange(6) % 2, _triplets()
    ours, contrastive = DeepRankingLoss(0.3), losses.ContrastiveLoss()
    together = losses.MultipleLosses([ours, contrastive], weights=[1, 0.5])
    expected = ours(embeddings, labels, triplets) + 0.5 * contrastive(embeddings, labels, triplets)
    torch.testing.assert_close(together(embeddings, labels, triplets), expected)


def test_distributed_wrapper_takes_it_in_one_process():
    embeddings, triplets = _embeddings(), _triplets()
    with pytest.warns(UserWarning, match="non-distributed"):
        loss = distributed.DistributedLossWrapper(DeepRankingLoss())(embeddings, indices_tuple=triplets)
    torch.testing.assert_close(loss, DeepRankingLoss()(embeddings, indices_tuple=triplets))


@pytest.mark.parametrize(
    "reducer", [reducers.ThresholdReducer(low=0.1), reducers.ClassWeightedReducer(torch.ones(3))]
)
def test_pml_reducers_take_its_losses(reducer):
    embeddings, labels = _embeddings(dtype=torch.float32), torch.tensor([0, 0, 1, 1, 2, 2])
    triplets = lmu.get_all_triplets_indices(labels)
    pml = losses.TripletMarginLoss(margin=0.3, distance=distances.LpDistance(power=2), reducer=reducer)
    ours = DeepRankingLoss(0.3, reducer=reducer)
    torch.testing.assert_close(ours(embeddings, labels, triplets), pml(embeddings, labels, triplets))


def _reduced(reducer, values, embeddings, reduction_type="triplet"):
    """The reduced value, and its gradients by the losses and by the embeddings (0 where unattached)."""
    indices = torch.arange(len(values))
    indices = {"element": indices, "pos_pair": (indices,) * 2, "triplet": (indices,) * 3}[reduction_type]
    costs = {"losses": values, "indices": indices, "reduction_type": reduction_type}
    value = reducer({"loss": costs}, embeddings, None)
    leaves = [values, embeddings]
    return [value, *torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("reduction_type", ["element", "pos_pair", "triplet"])
@pytest.mark.parametrize(
    "values",
    [
        torch.randn(50, generator=torch.Generator().manual_seed(0)),
        torch.zeros(7),
        -torch.ones(3),
        torch.zeros(0),
    ],
    ids=["random", "all 0", "all below 0", "empty"],
)
def test_default_reducer_is_pml_s_in_value_and_gradient(values, reduction_type):
    values, embeddings = values.clone().requires_grad_(), _embeddings(dtype=torch.float32)
    ours = _reduced(deep_ranking.AsyncAvgNonZeroReducer(), values, embeddings, reduction_type)
    _assert_close(ours, _reduced(reducers.AvgNonZeroReducer(), values, embeddings, reduction_type))


@pytest.mark.parametrize("gap", [1e-3, 0.3, 4.5], ids=["few cost", "some cost", "all cost"])
def test_loss_without_a_reducer_takes_one_that_equals_pml_s(gap):
    embeddings, triplets = _embeddings(), _triplets()
    loss_func = DeepRankingLoss(gap)
    assert isinstance(loss_func.reducer, deep_ranking.AsyncAvgNonZeroReducer)
    assert isinstance(loss_func.reducer, reducers.AvgNonZeroReducer)
    pml = DeepRankingLoss(gap, reducer=reducers.AvgNonZeroReducer())
    arguments = {"embeddings": embeddings, "indices_tuple": triplets}
    ours = _value_and_gradients(loss_func, embeddings, **arguments)
    _assert_close(ours, _value_and_gradients(pml, embeddings, **arguments))


def test_triplets_that_all_cost_nothing_stay_attached():
    embeddings = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    triplets = tuple(map(torch.tensor, ([0, 1], [1, 0], [2, 2])))
    loss, gradient = _value_and_gradients(
        DeepRankingLoss(0.2), embeddings, embeddings=embeddings, indices_tuple=triplets
    )
    assert loss.item() == 0
    assert not gradient.any()


def test_default_reducer_of_no_losses_stays_attached():
    embeddings = _embeddings()
    costs = {"losses": torch.zeros(0), "indices": torch.zeros(0), "reduction_type": "element"}
    deep_ranking.AsyncAvgNonZeroReducer()({"loss": costs}, embeddings, None).backward()
    assert not embeddings.grad.any()


def test_default_reducer_reads_nothing_back():
    # Tensors on "meta" hold no values: PML's mask, or any .item(), fails on them as it waits on a GPU.
    values, embeddings = torch.rand(9, device="meta"), torch.rand(3, 2, device="meta")
    costs = {"loss": {"losses": values, "indices": (values,) * 3, "reduction_type": "triplet"}}
    assert deep_ranking.AsyncAvgNonZeroReducer()(costs, embeddings, None).shape == ()
    with pytest.raises(NotImplementedError):
        reducers.AvgNonZeroReducer()(costs, embeddings, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_default_reducer_does_not_overflow_in_half_precision(dtype):
    values = torch.full((3000,), 100.0, dtype=dtype)
    costs = {"losses": values, "indices": torch.arange(3000), "reduction_type": "element"}
    mean = deep_ranking.AsyncAvgNonZeroReducer()({"loss": costs}, _embeddings(), None)
    assert (mean.item(), mean.dtype) == (100, dtype)


def test_default_reducer_does_not_hide_a_loss_that_is_nan():
    values = torch.tensor([1.0, math.nan], requires_grad=True)
    assert _reduced(deep_ranking.AsyncAvgNonZeroReducer(), values, _embeddings())[0].isnan()


@pytest.mark.parametrize("collect_stats", [False, True])
def test_default_reducer_keeps_pml_s_statistics_when_asked(collect_stats):
    values, embeddings = torch.tensor([0.0, 1, 3], requires_grad=True), _embeddings()
    kept = []
    for kind in (deep_ranking.AsyncAvgNonZeroReducer, reducers.AvgNonZeroReducer):
        reducer = kind(collect_stats=collect_stats)
        _reduced(reducer, values, embeddings)
        names = getattr(reducer, "_record_these_stats", [])
        kept.append({name: getattr(reducer, name) for name in names})
    assert kept[0] == kept[1]
    assert kept[0].get("num_past_filter") == (2 if collect_stats else None)
    assert hasattr(reducer, "num_past_filter") == collect_stats


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
def test_pml_trainer_lowers_it():
    from pytorch_metric_learning.trainers import MetricLossOnly

    labels = torch.arange(3).repeat(8)
    data = _embeddings(24, 8, dtype=torch.float32).detach() + torch.nn.functional.one_hot(labels, 8)
    torch.manual_seed(0)
    trunk, loss_func = torch.nn.Linear(8, 4), DeepRankingLoss(0.5, reducer=reducers.MeanReducer())
    with torch.no_grad():
        before = loss_func(trunk(data), labels)
    MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.5)},
        batch_size=24,
        loss_funcs={"metric_loss": loss_func},
        mining_funcs={"tuple_miner": UniformTripletMiner()},
        dataset=TensorDataset(data, labels),
        dataloader_num_workers=0,
        data_device="cpu",
    ).train(num_epochs=20)
    with torch.no_grad():
        assert loss_func(trunk(data), labels) < 0.7 * before
