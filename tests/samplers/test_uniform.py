"""UniformTripletSampler: its law, its epochs, resuming it under loader workers, and its life inside PML."""

import io
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chi2
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from dr_plugin.samplers import UniformTripletSampler

LABELS = [4, 4, 4, -1, -1, 7, 4, 2**40]


def _sampler(**changes):
    return UniformTripletSampler(LABELS, **({"batch_size": 6, "batches_per_epoch": 5, "seed": 1} | changes))


def _allowed(labels):
    """All allowed triplets with their exact probabilities, by explicit loops."""
    images = range(len(labels))
    choices = {}
    for query in images:
        positives = [i for i in images if labels[i] == labels[query] and i != query]
        negatives = [i for i in images if labels[i] != labels[query]]
        if positives and negatives:
            choices[query] = positives, negatives
    return {
        (query, positive, negative): 1 / (len(choices) * len(positives) * len(negatives))
        for query, (positives, negatives) in choices.items()
        for positive in positives
        for negative in negatives
    }


@settings(deadline=None)
@given(st.lists(st.integers(-2, 3), max_size=9), st.integers(1, 4), st.integers(0, 2**70))
def test_every_triplet_is_allowed(labels, triplets, seed):
    allowed = _allowed(labels)
    assume(allowed)
    sampler = UniformTripletSampler(labels, batch_size=3 * triplets, batches_per_epoch=2, seed=seed)
    for batch in sampler:
        assert [type(index) for index in batch] == [int] * (3 * triplets)
        assert set(_threes(batch)) <= set(allowed)


def _threes(batch):
    return zip(batch[::3], batch[1::3], batch[2::3], strict=True)


def test_triplets_follow_the_exact_law():
    probabilities = _allowed(LABELS)
    draws = 60_000
    batches = UniformTripletSampler(LABELS, batch_size=300, batches_per_epoch=draws // 100, seed=2)
    counts = Counter(triplet for batch in batches for triplet in _threes(batch))
    assert set(counts) == set(probabilities)
    statistic = sum((counts[t] - draws * p) ** 2 / (draws * p) for t, p in probabilities.items())
    assert 0.001 < chi2.sf(statistic, len(probabilities) - 1) < 0.999


def test_it_is_a_batch_sampler_with_its_attributes():
    sampler = _sampler()
    assert isinstance(sampler, BatchSampler)
    assert (sampler.batch_size, sampler.drop_last, list(sampler.sampler)) == (6, False, list(range(8)))


@pytest.mark.parametrize(("batch_size", "batches"), [(3, 3), (6, 2), (9, 1), (300, 1)])
def test_epoch_draws_as_many_images_as_there_are_by_default(batch_size, batches):
    sampler = UniformTripletSampler([*LABELS, 4], batch_size=batch_size)  # 9 images
    assert len(sampler) == len(list(sampler)) == batches


def test_each_epoch_differs_and_depends_on_seed_and_epoch_only():
    sampler = _sampler()
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != list(_sampler(seed=2))
    assert len({tuple(batch) for epoch in epochs for batch in epoch}) == 15
    other = _sampler()
    other.set_epoch(2)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  the global generators must not matter
    assert list(other) == epochs[2]
    assert epochs[1] == [other.batch(1, index) for index in range(5)]


def test_global_generators_are_left_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(_sampler())
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_abandoned_epoch_is_followed_by_the_next():
    sampler = _sampler()
    next(iter(sampler))
    assert list(sampler) == [sampler.batch(1, index) for index in range(5)]


def test_set_epoch_only_overrides():
    sampler = _sampler()
    sampler.set_epoch(7)
    assert list(sampler) == [sampler.batch(7, index) for index in range(5)]
    assert list(sampler) == [sampler.batch(8, index) for index in range(5)]
    sampler.set_epoch(7, start_batch=3)
    assert list(sampler) == [sampler.batch(7, index) for index in (3, 4)]
    assert len(sampler) == 5


def _through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("consumed", [0, 1, 4, 5])
def test_state_continues_in_the_middle_of_an_epoch(consumed):
    sampler = _sampler()
    expected = [*sampler, *sampler, *sampler]
    sampler = _sampler()
    list(sampler)
    list(sampler)  # the second epoch was handed out whole, but only `consumed` of its batches were trained on
    resumed = _sampler()
    resumed.load_state_dict(_through_a_file(sampler.state_dict(1, consumed)))
    assert [*resumed, *resumed][: 10 - consumed] == expected[5 + consumed :]


def test_state_of_a_resumed_epoch_counts_from_the_epochs_start():
    first = _sampler()
    expected = list(first)
    second, third = _sampler(), _sampler()
    second.load_state_dict(first.state_dict(0, 1))
    epoch, start = second.position
    assert (epoch, start) == (0, 1)
    assert next(iter(second)) == expected[1]
    third.load_state_dict(second.state_dict(epoch, start + 1))
    assert list(third) == expected[2:]


def test_state_between_epochs_is_that_of_the_next():
    sampler, fresh, resumed = _sampler(), _sampler(), _sampler()
    resumed.load_state_dict(fresh.state_dict())
    assert list(resumed) == list(sampler)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == list(sampler)


def test_loop_that_sets_every_epoch_keeps_the_loaded_position():
    sampler, resumed = _sampler(), _sampler()
    list(sampler)
    resumed.load_state_dict(sampler.state_dict(0, 3))
    resumed.set_epoch(0)
    assert list(resumed) == [sampler.batch(0, index) for index in (3, 4)]
    resumed.load_state_dict(sampler.state_dict(0, 3))
    resumed.set_epoch(1)
    assert len(list(resumed)) == 5


def test_resume_is_exact_under_workers_that_run_ahead():
    dataset = TensorDataset(torch.arange(len(LABELS)))
    expected = [*(sampler := _sampler()), *sampler]
    first = _sampler()
    epoch, start = first.position
    batches = iter(DataLoader(dataset, batch_sampler=first, num_workers=2, prefetch_factor=2))
    trained = [next(batches)[0].tolist() for _ in range(2)]  # by now the workers were sent all 5
    state = first.state_dict(epoch, start + 2)
    del batches
    resumed = _sampler()
    resumed.load_state_dict(state)
    loader = DataLoader(dataset, batch_sampler=resumed, num_workers=2, prefetch_factor=2)
    trained += [batch.tolist() for _ in range(2) for (batch,) in loader]
    assert trained == expected


def test_pickled_sampler_gives_the_same_batches():
    sampler = _sampler()
    list(sampler)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"batch_size": 9}, {"batches_per_epoch": 6}],
    ids=lambda change: next(iter(change)),
)
def test_state_of_another_sampler_is_refused(change):
    key = next(iter(change))
    with pytest.raises(ValueError, match=f"sampler state: {key}: got {change[key]}, expected"):
        _sampler().load_state_dict(_sampler(**change).state_dict())


def test_state_of_other_labels_or_without_a_key_is_refused():
    state = _sampler().state_dict()
    with pytest.raises(ValueError, match="sampler state: labels_crc32"):
        UniformTripletSampler(LABELS[::-1], batch_size=6, batches_per_epoch=5, seed=1).load_state_dict(state)
    del state["epoch"]
    with pytest.raises(ValueError, match="sampler state: got no epoch"):
        _sampler().load_state_dict(state)


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([], {}, "labels: got none"),
        ([[0, 0], [1, 1]], {}, r"labels: got shape \(2, 2\)"),
        ([0.0, 0.0, 1.0], {}, "labels: got float64, expected integer"),
        (["a", "a", "b"], {}, "labels: got <U1, expected integer"),
        (torch.tensor([0.0, 0.0, 1.0]), {}, "labels: got torch.float32"),
        ([3, 3, 3], {}, r"labels: got one class only \(3\)"),
        ([1, 2, 3], {}, "labels: got 3 images, no two of one class"),
        (LABELS, {"batch_size": 4}, "batch_size: got 4, expected a multiple of 3"),
        (LABELS, {"batch_size": 0}, "batch_size: got 0"),
        (LABELS, {"batch_size": -3}, "batch_size: got -3"),
        (LABELS, {"batch_size": 6.0}, "batch_size: got 6.0"),
        (LABELS, {"batches_per_epoch": 0}, "batches_per_epoch: got 0"),
        (LABELS, {"seed": -1}, "seed: got -1"),
        (LABELS, {"seed": True}, "seed: got True"),
    ],
)
def test_bad_arguments_are_refused(labels, changes, message):
    with pytest.raises(ValueError, match=message):
        UniformTripletSampler(labels, **({"batch_size": 6} | changes))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda sampler: sampler.set_epoch(-1), "epoch: got -1"),
        (lambda sampler: sampler.set_epoch(0, start_batch=5), "start_batch: got 5, .* below 5"),
        (lambda sampler: sampler.state_dict(batches_consumed=1), "batches_consumed: got 1 without epoch"),
        (lambda sampler: sampler.state_dict(0, 6), "batches_consumed: got 6, .* below 6"),
        (lambda sampler: sampler.state_dict(-1, 0), "epoch: got -1"),
        (lambda sampler: sampler.load_state_dict(sampler.state_dict() | {"batch": 5}), "start_batch: got 5"),
    ],
)
def test_bad_positions_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(_sampler())


@pytest.mark.parametrize("convert", [tuple, np.array, torch.tensor], ids=["tuple", "array", "tensor"])
def test_labels_of_any_container_give_the_same_batches(convert):
    labels = convert(LABELS)
    if isinstance(labels, np.ndarray):
        labels.setflags(write=False)  # as a memory map's are
    assert list(UniformTripletSampler(labels, batch_size=6)) == list(
        UniformTripletSampler(LABELS, batch_size=6)
    )


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
def test_pml_trainer_trains_on_its_packaged_triplets():
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import EmbeddingsAlreadyPackagedAsTriplets
    from pytorch_metric_learning.trainers import MetricLossOnly

    labels = torch.arange(3).repeat(6)
    trunk = torch.nn.Linear(3, 4)
    seen = []
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=6,
        loss_funcs={"metric_loss": TripletMarginLoss()},
        mining_funcs={"tuple_miner": EmbeddingsAlreadyPackagedAsTriplets()},
        dataset=TensorDataset(torch.nn.functional.one_hot(labels).float(), labels),
        sampler=UniformTripletSampler(labels, batch_size=6, seed=0),
        data_and_label_getter=lambda batch: (seen.append(batch[1]), batch)[1],
        dataloader_num_workers=0,
        data_device="cpu",
    )
    trainer.train(num_epochs=2)
    assert len(seen) == 6
    for batch_labels in seen:
        query, positive, negative = batch_labels.view(-1, 3).T
        assert (query == positive).all()
        assert (query != negative).all()
