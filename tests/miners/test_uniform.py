"""UniformTripletMiner: its law, its corner cases, its state, and its life inside PML."""

import copy
import io
import pickle
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import losses
from pytorch_metric_learning.miners import BaseMiner
from scipy.stats import chi2
from torch.utils.data import TensorDataset

from dr_plugin.miners import UniformTripletMiner


def _mine(miner, labels, ref_labels=None):
    labels = torch.as_tensor(labels, dtype=torch.long)
    if ref_labels is None:
        return miner(torch.zeros(len(labels), 2), labels)
    ref_labels = torch.as_tensor(ref_labels, dtype=torch.long)
    return miner(torch.zeros(len(labels), 2), labels, torch.zeros(len(ref_labels), 2), ref_labels)


def _pairs_allowed(labels, references, own):
    """Each query's (positive, negative) pairs, by explicit loops."""
    allowed = {}
    for i, label in enumerate(labels):
        positives = [j for j, other in enumerate(references) if other == label and not (own and i == j)]
        negatives = [j for j, other in enumerate(references) if other != label]
        if positives and negatives:
            allowed[i] = {(p, n) for p in positives for n in negatives}
    return allowed


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(-2, 3), max_size=10),
    references=st.none() | st.lists(st.integers(-2, 3), max_size=10),
    per_query=st.integers(1, 4),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_triplet_is_allowed_and_every_query_comes_equally_often(labels, references, per_query, seed):
    mined = _mine(UniformTripletMiner(per_query, seed=seed), labels, references)
    allowed = _pairs_allowed(labels, labels if references is None else references, references is None)
    assert [indices.dtype for indices in mined] == [torch.long] * 3
    queries, positives, negatives = (indices.tolist() for indices in mined)
    assert Counter(queries) == dict.fromkeys(allowed, per_query)
    for query, positive, negative in zip(queries, positives, negatives, strict=True):
        assert (positive, negative) in allowed[query]


@pytest.mark.parametrize(
    ("labels", "references"),
    [([0, 0, 0, 1, 1, 2], None), ([3, 1, 3, 1, 3, 9, 1], None), ([0, 1, 5], [1, 0, 1, 0, 0, 2, 1])],
)
def test_positive_and_negative_are_jointly_uniform_for_each_query(labels, references):
    per_query = 4000
    queries, positives, negatives = _mine(UniformTripletMiner(per_query, seed=3), labels, references)
    statistic, freedom = 0.0, 0
    for query, pairs in _pairs_allowed(
        labels, labels if references is None else references, references is None
    ).items():
        drawn = queries == query
        counts = Counter(zip(positives[drawn].tolist(), negatives[drawn].tolist(), strict=True))
        expected = per_query / len(pairs)
        statistic += sum((counts[pair] - expected) ** 2 / expected for pair in pairs)
        freedom += len(pairs) - 1
        assert set(counts) == pairs
    # Two-sided: draws that are too even (without replacement, say) are wrong too.
    assert 0.001 < chi2.sf(statistic, freedom) < 0.999


def test_draws_of_one_call_and_of_two_calls_are_independent():
    miner = UniformTripletMiner(2000, seed=0)
    first, second = (_mine(miner, [0, 0, 0, 1])[1] for _ in range(2))
    agreement = (first == second).double().mean().item()
    assert agreement == pytest.approx(0.5, abs=4 * (0.25 / len(first)) ** 0.5)


@pytest.mark.parametrize(
    "labels", [[], [4], [0, 1, 2], [7, 7, 7]], ids=["empty", "one image", "singletons", "one class"]
)
def test_no_triplets_where_there_are_none(labels):
    miner = UniformTripletMiner()
    mined = _mine(miner, labels)
    assert [(tuple(indices.shape), indices.dtype) for indices in mined] == [((0,), torch.long)] * 3
    assert miner.num_triplets == 0


def test_num_triplets_is_recorded():
    miner = UniformTripletMiner(5, collect_stats=True)
    _mine(miner, [0, 0, 1])
    assert miner.num_triplets == 10
    assert "num_triplets" in miner._record_these_stats


def test_large_and_neighbouring_labels_stay_apart():
    labels = [2**24, 2**24 + 1, 2**24, 2**24 + 1, -5]
    query, positive, negative = _mine(UniformTripletMiner(20), labels)
    assert set(zip(query.tolist(), positive.tolist(), strict=True)) == {(0, 2), (2, 0), (1, 3), (3, 1)}
    assert set(negative[query == 0].tolist()) == {1, 3, 4}


@pytest.mark.parametrize(
    "reference",
    [
        lambda embeddings, labels: (embeddings, labels),
        lambda embeddings, labels: (embeddings, labels.clone()),
        lambda embeddings, labels: (embeddings.detach(), labels),
        lambda embeddings, labels: (embeddings.view(embeddings.shape), labels),
    ],
    ids=["same objects", "labels copied", "detached", "view"],
)
def test_references_that_are_the_batch_exclude_the_image_itself(reference):
    embeddings, labels = torch.randn(4, 2, requires_grad=True), torch.tensor([0, 0, 1, 1])
    query, positive, _ = UniformTripletMiner(50)(embeddings, labels, *reference(embeddings, labels))
    assert (query != positive).all()


def test_references_with_the_same_labels_but_other_embeddings_keep_all_positives():
    embeddings, labels = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])  # a second view of each image
    query, positive, _ = UniformTripletMiner(50)(embeddings, labels, torch.randn(4, 2), labels)
    assert (query == positive).any()
    assert (query != positive).any()


def test_references_that_are_the_batch_under_other_labels_are_refused():
    embeddings, labels = torch.randn(3, 2), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="ref_emb is the batch itself"):
        UniformTripletMiner()(embeddings, labels, embeddings, labels + 1)


def test_references_without_labels_are_refused():
    with pytest.raises(ValueError, match="no labels or ref_labels"):
        UniformTripletMiner()(torch.randn(3, 2), torch.tensor([0, 0, 1]), torch.randn(3, 2))


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match="expected integer classes"):
        UniformTripletMiner()(torch.randn(3, 2), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"triplets_per_query": 0}, "triplets_per_query: got 0, expected a whole number, at least 1"),
        ({"triplets_per_query": 2.0}, "triplets_per_query: got 2.0"),
        ({"triplets_per_query": True}, "triplets_per_query: got True"),
        ({"seed": -1}, "seed: got -1, expected a whole number, at least 0"),
        ({"seed": 0.5}, "seed: got 0.5"),
        ({"seed": 1, "generator": torch.Generator()}, "both seed and generator"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniformTripletMiner(**arguments)


def test_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="triplets_per_qeury"):
        UniformTripletMiner(triplets_per_qeury=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_of_any_dtype_give_the_same_triplets(dtype):
    labels = torch.tensor([0, 0, 1, 1])
    mined = UniformTripletMiner(seed=1)(torch.randn(4, 2).to(dtype), labels)
    assert _equal(mined, _mine(UniformTripletMiner(seed=1), labels))


@pytest.mark.parametrize("references", [None, [0, 1, 1, 2]], ids=["own", "references"])
def test_labels_on_the_cpu_are_drawn_there_and_the_indices_copied(references, monkeypatch):
    # "meta" stands for another device: it holds no values, so that drawing on it would fail.
    copied, to = [], torch.Tensor.to

    def spy(tensor, device, **options):
        copied.append((tensor, device, options))
        return to(tensor, device, **options)

    embeddings, labels = torch.zeros(7, 2, device="meta"), torch.tensor(LABELS)
    others = () if references is None else (torch.zeros(4, 2, device="meta"), torch.tensor(references))
    miner = UniformTripletMiner(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "to", spy)
        mined = miner(embeddings, labels, *others)
    drawn = [tensor for tensor, device, options in copied if torch.device(device).type == "meta"]
    assert _equal(drawn, _mine(UniformTripletMiner(seed=1), LABELS, references))
    assert {indices.device.type for indices in mined} == {"meta"}
    assert miner.num_triplets == len(drawn[0]) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 2), torch.zeros(2).long()), "must equal number of labels"),
        ((torch.zeros(2, 2), torch.zeros(2, 1).long()), "labels must be a 1D tensor"),
        (
            (torch.zeros(3, 2), torch.arange(3), torch.zeros(2, 2), torch.arange(3)),
            "must equal number of labels",
        ),
        (
            (torch.zeros(3, 2), torch.arange(2), torch.zeros(2, 2), torch.arange(2)),
            "must equal number of labels",
        ),
        ((torch.zeros(3, 2), None), "no labels or ref_labels"),
    ],
)
def test_labels_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UniformTripletMiner()(*arguments)


@pytest.mark.parametrize("ref_labels", [None, torch.tensor([5, 5, 5, 5])])
def test_forward_without_ref_emb_goes_by_the_labels_as_in_pml(ref_labels):
    embeddings, labels = torch.randn(4, 2), torch.tensor([0, 0, 1, 1])
    mined = UniformTripletMiner(seed=1)(embeddings, labels, None, ref_labels)
    assert _equal(mined, BaseMiner.forward(UniformTripletMiner(seed=1), embeddings, labels, None, ref_labels))
    assert not any(indices.requires_grad for indices in mined)


LABELS = [0, 1, 0, 2, 1, 1, 0]


def _equal(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_seed_decides_the_triplets_and_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    miner = UniformTripletMiner(seed=5)
    first = _mine(miner, LABELS)
    assert torch.equal(torch.get_rng_state(), before)
    assert not _equal(first, _mine(miner, LABELS))
    torch.manual_seed(99)
    assert _equal(first, _mine(UniformTripletMiner(seed=5), LABELS))
    assert not _equal(first, _mine(UniformTripletMiner(seed=6), LABELS))
    assert _equal(first, _mine(UniformTripletMiner(generator=torch.Generator().manual_seed(5)), LABELS))


def test_saved_state_continues_the_same_draws():
    miner = UniformTripletMiner(seed=5)
    _mine(miner, LABELS)
    file = io.BytesIO()
    torch.save(miner.state_dict(), file)
    expected = [_mine(miner, LABELS) for _ in range(2)]
    file.seek(0)
    resumed = UniformTripletMiner(seed=0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(_equal(_mine(resumed, LABELS), triplets) for triplets in expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda miner: pickle.loads(pickle.dumps(miner))])
def test_copy_draws_the_same_and_is_independent(duplicate):
    miner = UniformTripletMiner(seed=5)
    _mine(miner, LABELS)
    copied = duplicate(miner)
    expected = _mine(copied, LABELS)
    _mine(copied, LABELS)
    assert _equal(_mine(miner, LABELS), expected)


@pytest.mark.parametrize(
    "loss_func",
    [
        losses.TripletMarginLoss(),
        losses.AngularLoss(),
        losses.MarginLoss(),
        losses.ContrastiveLoss(),
        losses.MultiSimilarityLoss(),
        losses.CrossBatchMemory(losses.TripletMarginLoss(), 4, memory_size=12, miner=UniformTripletMiner()),
    ],
    ids=lambda loss_func: type(loss_func).__name__,
)
def test_pml_losses_take_the_triplets(loss_func):
    miner, labels = UniformTripletMiner(), torch.tensor([0, 0, 1, 1, 2, 2])
    for _ in range(3):
        embeddings = torch.randn(6, 4, requires_grad=True)
        triplets = None if isinstance(loss_func, losses.CrossBatchMemory) else miner(embeddings, labels)
        loss_func(embeddings, labels, triplets).backward()
        assert embeddings.grad.isfinite().all()


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
def test_pml_trainer_trains_with_it():
    from pytorch_metric_learning.trainers import MetricLossOnly

    labels = torch.arange(3).repeat(8)
    torch.manual_seed(0)
    data = torch.randn(24, 5)
    trunk = torch.nn.Linear(5, 4)
    before = trunk.weight.detach().clone()
    MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=12,
        loss_funcs={"metric_loss": losses.TripletMarginLoss(margin=1.0)},
        mining_funcs={"tuple_miner": UniformTripletMiner(triplets_per_query=2)},
        dataset=TensorDataset(data, labels),
        dataloader_num_workers=0,
        data_device="cpu",
    ).train(num_epochs=1)
    assert not torch.equal(trunk.weight, before)
