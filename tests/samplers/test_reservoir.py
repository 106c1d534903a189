"""ReservoirTripletSampler: its laws, positions and counters, with whole classes and with reservoirs."""

import io
import itertools
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from dr_plugin.samplers import ReservoirTripletSampler, whole_classes
from dr_plugin.triplets import TableRelevance

LABELS = np.array([4, 4, 4, -1, -1, 7, 4, 4, -1])  # in no order, one of them alone
WAYS = {
    "whole": {},
    "reservoirs": {"capacity": 3, "triplets_per_image": 0.4},
    "approximate": {"capacity": 4, "exact": False, "triplets_per_image": 0.4},
}


def _table(labels=LABELS, seed=0):
    numbers = np.random.default_rng(seed).random((len(labels), len(labels))).astype(np.float32)
    table = (numbers + numbers.T) / 2 * (labels[:, None] == labels)
    np.fill_diagonal(table, 0)
    return table


def _sampler(way="whole", **changes):
    return ReservoirTripletSampler(
        LABELS, _table(), **({"batch_size": 6, "batches_per_epoch": 5, "seed": 1} | WAYS[way] | changes)
    )


def _threes(batch):
    return zip(batch[::3], batch[1::3], batch[2::3], strict=True)


def _law(labels, table, *, ratio, threshold=np.inf, margin=0.0, uniform=False, equal=False, max_trials=100):
    """The probability of every triplet, from (6), (7), (8), by explicit loops."""
    images, totals = range(len(labels)), table.astype(float).sum(axis=1)
    kinds = []
    for in_class in (False, True):
        law = Counter()
        for query, positive in itertools.permutations(images, 2):
            if labels[query] != labels[positive] or totals[query] == 0:
                continue
            members = [i for i in images if labels[i] == labels[query] and i != query]
            weights = {i: 1 if uniform else min(threshold, table[query, i]) for i in members}
            start = (1 if uniform else totals[query]) * weights[positive] / sum(weights.values())
            if equal:
                start /= sum(totals[i] for i in (*members, query))
            if not in_class:
                others = [i for i in images if labels[i] != labels[query]]
                law.update({(query, positive, i): start / len(others) for i in others})
                continue
            trial = {i: weights[i] for i in members if i != positive}
            gaps = {i: float(table[query, positive]) - float(table[query, i]) for i in trial}
            allowed = {i: weight for i, weight in trial.items() if gaps[i] >= margin and gaps[i] > 0}
            if sum(allowed.values()):
                share = sum(allowed.values()) / sum(trial.values())
                start *= 1 - (1 - share) ** max_trials
                law.update(
                    {(query, positive, i): start * w / sum(allowed.values()) for i, w in allowed.items()}
                )
        total = sum(law.values())
        part = 1 - ratio if in_class else ratio
        kinds.append({triplet: part * p / total for triplet, p in law.items() if part * p > 0})
    return kinds[0] | kinds[1]


def _check(counts, law):
    draws = sum(counts.values())
    assert set(counts) <= set(law)
    statistic = sum((counts[t] - draws * p) ** 2 / (draws * p) for t, p in law.items())
    assert 0.001 < chi2.sf(statistic, len(law) - 1) < 0.999


def _drawn(sampler):
    return Counter(triplet for batch in sampler for triplet in _threes(batch))


@pytest.mark.parametrize("capacity", [None, 5, 100])
@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {"ratio": 0.2}),
        ({"out_of_class_ratio": 0.0}, {"ratio": 0.0}),
        ({"out_of_class_ratio": 1.0}, {"ratio": 1.0}),
        ({"relevance_threshold": 0.4, "out_of_class_ratio": 0.5}, {"threshold": 0.4, "ratio": 0.5}),
        (
            {"relevance_margin": 0.2, "max_trials": 2, "out_of_class_ratio": 0.5},
            {"margin": 0.2, "max_trials": 2, "ratio": 0.5},
        ),
        ({"weighting": "uniform"}, {"uniform": True, "ratio": 0.2}),
        ({"equal_classes": True, "out_of_class_ratio": 1.0}, {"equal": True, "ratio": 1.0}),
    ],
    ids=["default", "ratio 0", "ratio 1", "T_p", "T_r and few trials", "uniform", "equal classes"],
)
def test_triplets_follow_the_exact_law(capacity, changes, options):
    table = _table()
    sampler = ReservoirTripletSampler(
        LABELS, table, batch_size=3 * 10_000, batches_per_epoch=2, capacity=capacity, seed=2, **changes
    )
    _check(_drawn(sampler), _law(LABELS, table, **options))
    assert sampler.counters["inexact"] == 0


def test_small_reservoirs_follow_the_law_of_whole_classes():
    size, classes = 20, 100  # all classes alike, so that each gives a triplet or two a pass
    one = _table(np.zeros(size, int), seed=3)

    class Alike:
        def __len__(self):
            return size * classes

        def pairs(self, i, j):
            return one[i % size, j % size]

        def total(self, i):
            return one.sum(axis=1, dtype=np.float64)[i % size]

    labels = np.repeat(np.arange(classes), size)
    sampler = ReservoirTripletSampler(
        labels, Alike(), batch_size=3 * 100, batches_per_epoch=100, capacity=8, out_of_class_ratio=1.0,
        triplets_per_image=0.05,
    )  # fmt: skip
    pairs = Counter(
        (query % size, positive % size) for batch in sampler for query, positive, _ in _threes(batch)
    )
    shares = {(q, p): one[q, p] / one.sum() for q, p in itertools.permutations(range(size), 2)}
    _check(pairs, shares)
    assert 0 < sampler.counters["inexact"] < 0.05 * 10_000


def test_more_triplets_an_image_are_less_exact():
    labels = np.repeat(np.arange(4), 40)
    inexact = []
    for triplets_per_image in (None, 1.0, 10.0):
        sampler = ReservoirTripletSampler(
            labels,
            _table(labels),
            batch_size=6,
            batches_per_epoch=150,
            capacity=10,
            triplets_per_image=triplets_per_image,
        )
        list(sampler)
        inexact.append(sampler.counters["inexact"])
    assert inexact[0] < inexact[1] < inexact[2] <= 300


@pytest.mark.parametrize("weighting", ["relevance", "uniform"])
@pytest.mark.parametrize("way", ["whole", "reservoirs"])
def test_equal_relevances_at_ratio_1_are_the_uniform_draw(way, weighting):
    table = (LABELS[:, None] == LABELS) - np.eye(len(LABELS))
    changes = {"capacity": None if way == "whole" else 5, "out_of_class_ratio": 1.0, "weighting": weighting}
    sampler = ReservoirTripletSampler(LABELS, table, batch_size=3 * 20_000, batches_per_epoch=1, **changes)
    law = {}
    for query, positive, negative in itertools.permutations(range(len(LABELS)), 3):
        if LABELS[query] == LABELS[positive] != LABELS[negative]:
            members, others = (LABELS[query] == LABELS).sum(), (LABELS[query] != LABELS).sum()
            weight = (
                members - 1 if weighting == "relevance" else 1
            )  # r_q is the number of others of the class
            law[query, positive, negative] = weight / (members - 1) / others
    total = sum(law.values())
    _check(_drawn(sampler), {triplet: p / total for triplet, p in law.items()})


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("margin", [0.0, 0.15])
def test_margin_is_never_violated_and_ratio_is_kept(way, margin):
    table = _table().round(1)
    sampler = ReservoirTripletSampler(
        LABELS,
        table,
        batch_size=3 * 20,
        batches_per_epoch=40,
        relevance_margin=margin,
        max_trials=2,
        **WAYS[way],
    )
    triplets = np.array(list(sampler)).reshape(-1, 3)
    query, positive, negative = triplets.T
    assert (LABELS[query] == LABELS[positive]).all()
    assert (query != positive).all()
    assert (query != negative).all()
    in_class = LABELS[query] == LABELS[negative]
    gap = (table[query, positive].astype(float) - table[query, negative])[in_class]
    assert (gap > 0).all()
    assert (gap >= margin).all()
    assert abs((~in_class).sum() - 160) < 5 * (800 * 0.2 * 0.8) ** 0.5
    counters = sampler.counters
    assert (counters["accepted"], counters["in_class"], counters["out_of_class"]) == (
        800,
        in_class.sum(),
        (~in_class).sum(),
    )
    assert counters["rejected"] > counters["discarded"] > 0
    assert counters["distinct_images"] == len(np.unique(triplets))


@pytest.mark.parametrize("way", WAYS)
def test_every_image_is_reached(way):
    table = _table()
    table[8] = table[:, 8] = 0  # relevant to none, though it has a class
    sampler = ReservoirTripletSampler(LABELS, table, batch_size=30, batches_per_epoch=60, **WAYS[way])
    query, positive, negative = np.array(list(sampler)).reshape(-1, 3).T
    assert set(query) == set(positive) == {0, 1, 2, 3, 4, 6, 7}
    assert set(negative) == set(range(9))
    assert sampler.counters["distinct_images"] == 9


def test_graded_relevance_has_negatives_of_relevance_0():
    table = np.array([[0, 3, 1, 0, 0], [3, 0, 0, 0, 0], [1, 0, 0, 2, 0], [0, 0, 2, 0, 0], [0, 0, 0, 0, 0]])
    sampler = ReservoirTripletSampler(
        None, table, batch_size=3 * 20_000, batches_per_epoch=1, out_of_class_ratio=0.5
    )
    law = {}
    total = table.sum()
    for query, positive in zip(*np.nonzero(table), strict=True):
        negatives = [i for i in range(5) if i != query and table[query, i] == 0]
        for negative in negatives:
            law[query, positive, negative] = 0.5 * table[query, positive] / total / len(negatives)
    law |= {(0, 1, 2): 0.5 * 3 / 5.25, (2, 3, 0): 0.5 * 2.25 / 5.25}
    in_class = {(0, 1, 2): 4 * 3 / 4, (2, 3, 0): 3 * 2 / 3}  # the only pairs of unlike positives
    law |= {triplet: 0.5 * weight / sum(in_class.values()) for triplet, weight in in_class.items()}
    _check(_drawn(sampler), law)


# -- epochs, positions, state --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_batches_depend_on_seed_epoch_and_index_only(way):
    sampler = _sampler(way)
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert list(_sampler(way, seed=2)) != epochs[0]
    other = _sampler(way)
    torch.manual_seed(0)
    assert [other.batch(epoch, index) for epoch in (2, 0) for index in (4, 0, 2)] == [
        epochs[epoch][index] for epoch in (2, 0) for index in (4, 0, 2)
    ]
    assert set(other.counters.values()) == {0}


@pytest.mark.parametrize("way", WAYS)
def test_global_generators_are_left_alone(way):
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    list(_sampler(way))
    assert torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002


def test_it_is_a_batch_sampler_of_as_many_images_as_there_are():
    sampler = _sampler(batches_per_epoch=None)
    assert isinstance(sampler, BatchSampler)
    assert len(sampler) == len(list(sampler)) == 2
    assert {type(index) for batch in sampler for index in batch} == {int}


def _through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("consumed", [0, 1, 3, 5])
def test_state_continues_batches_and_counters_in_the_middle_of_an_epoch(way, consumed):
    sampler = _sampler(way)
    batches, counters = [], []
    for batch in itertools.chain(sampler, sampler, sampler):
        batches.append(batch)
        counters.append(sampler.counters)
    sampler = _sampler(way)
    list(sampler)
    list(sampler)  # the second epoch was handed out whole, but only `consumed` of its batches were trained on
    resumed = _sampler(way)
    resumed.load_state_dict(_through_a_file(sampler.state_dict(1, consumed)))
    assert resumed.counters == counters[4 + consumed]
    for index, batch in enumerate(
        itertools.chain(resumed, resumed) if consumed < 5 else resumed, start=5 + consumed
    ):
        assert (batch, resumed.counters) == (batches[index], counters[index])


@pytest.mark.parametrize("way", WAYS)
def test_state_of_a_resumed_epoch_counts_from_the_epochs_start(way):
    first = _sampler(way)
    expected = list(first)
    second, third = _sampler(way), _sampler(way)
    second.load_state_dict(first.state_dict(0, 1))
    assert second.position == (0, 1)
    given = iter(second)
    assert [next(given), next(given)] == expected[1:3]
    third.load_state_dict(second.state_dict(0, 2))  # one of the two
    assert third.counters["accepted"] == 4
    assert list(third) == expected[2:]
    assert third.counters == first.counters


def test_state_between_epochs_is_that_of_the_next():
    sampler, resumed = _sampler(), _sampler()
    list(sampler)
    resumed.load_state_dict(sampler.state_dict())
    assert resumed.counters == sampler.counters
    assert list(resumed) == list(sampler)


@pytest.mark.parametrize("way", WAYS)
def test_loader_workers_give_the_same_batches(way):
    loader = DataLoader(TensorDataset(torch.arange(9)), batch_sampler=_sampler(way), num_workers=2)
    assert [batch.tolist() for _ in range(2) for (batch,) in loader] == [
        *(sampler := _sampler(way)),
        *sampler,
    ]


@pytest.mark.parametrize("way", WAYS)
def test_pickled_sampler_goes_on_alike(way):
    sampler = _sampler(way)
    next(iter(sampler))
    copy = pickle.loads(pickle.dumps(sampler))
    assert (list(copy), copy.counters) == (list(sampler), sampler.counters)


@pytest.mark.parametrize(
    "change",
    [{"seed": 2}, {"batch_size": 9}, {"capacity": 4}, {"out_of_class_ratio": 0.3}, {"relevance_threshold": 1.0},
     {"max_trials": 9}, {"exact": False}, {"triplets_per_image": 0.5}, {"equal_classes": True}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_state_of_another_sampler_is_refused(change):
    key = next(iter(change))
    with pytest.raises(ValueError, match=f"sampler state: {key}: got {change[key]}, expected"):
        _sampler("reservoirs").load_state_dict(_sampler("reservoirs", **change).state_dict())


def test_state_without_counters_or_of_other_images_is_refused():
    state = _sampler().state_dict()
    with pytest.raises(ValueError, match="used_images: got 1 bytes, expected them of 9 images"):
        _sampler().load_state_dict(state | {"used_images": "00"})
    del state["counters"]
    with pytest.raises(ValueError, match="sampler state: got no counters"):
        _sampler().load_state_dict(state)


# -- arguments -----------------------------------------------------------------------------------------------


def test_relevance_of_any_kind_gives_the_same_batches():
    table = _table()

    class Pairs:
        def __len__(self):
            return len(table)

        def pairs(self, i, j):
            assert (i != j).all()
            return table[i, j]

        def total(self, i):
            return table.sum(axis=1, dtype=np.float64)[i]

    for way in WAYS:
        arguments = {"batch_size": 30, "seed": 4} | WAYS[way]
        expected = list(ReservoirTripletSampler(LABELS, table, **arguments))
        for relevance in (Pairs(), TableRelevance(table, LABELS), torch.from_numpy(table), table.tolist()):
            assert list(ReservoirTripletSampler(LABELS.tolist(), relevance, **arguments)) == expected
        assert list(ReservoirTripletSampler(torch.from_numpy(LABELS), table, **arguments)) == expected


def test_building_reports_progress():
    seen = []
    for way in ("whole", "reservoirs"):
        _sampler(way, progress=lambda *what: seen.append(what))
    assert seen == 2 * [("reading relevances", done, 9) for done in (3, 8, 9)]


class _Rectangles(TableRelevance):
    def rectangle(self, i, j):
        return self.pairs(np.repeat(i, len(j)), np.tile(j, len(i))).reshape(len(i), len(j))


@pytest.mark.parametrize("kind", [TableRelevance, _Rectangles])
def test_relevances_are_read_in_pieces(kind, monkeypatch):
    expected = [list(_sampler(way)) for way in WAYS]
    monkeypatch.setattr("dr_plugin.samplers.class_rows._ENTRIES", 7)
    arguments = {"batch_size": 6, "batches_per_epoch": 5, "seed": 1}
    relevance = kind(_table(), LABELS)
    assert [
        list(ReservoirTripletSampler(LABELS, relevance, **arguments, **WAYS[way])) for way in WAYS
    ] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 4}, "batch_size: got 4, expected a multiple of 3"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batches_per_epoch": 0}, "batches_per_epoch: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"capacity": 0}, "capacity: got 0, expected a whole number, at least 3"),
        ({"capacity": 2}, "capacity: got 2, expected a whole number, at least 3"),
        ({"capacity": 1, "out_of_class_ratio": 1.0}, "capacity: got 1, expected a whole number, at least 2"),
        ({"capacity": 3.0}, "capacity: got 3.0"),
        ({"out_of_class_ratio": 1.1}, "out_of_class_ratio: got 1.1"),
        ({"out_of_class_ratio": -0.1}, "out_of_class_ratio: got -0.1"),
        ({"out_of_class_ratio": float("nan")}, "out_of_class_ratio: got nan"),
        ({"relevance_threshold": 0.0}, "relevance_threshold: got 0.0"),
        ({"relevance_threshold": -1.0}, "relevance_threshold: got -1.0"),
        ({"relevance_margin": -0.1}, "relevance_margin: got -0.1"),
        ({"weighting": "relevant"}, "weighting: got 'relevant'"),
        ({"max_trials": 0}, "max_trials: got 0"),
        ({"equal_classes": 1}, "equal_classes: got 1, expected True or False"),
        ({"exact": None}, "exact: got None, expected True or False"),
        ({"exact": False}, "capacity: got None with exact=False"),
        ({"triplets_per_image": 1.0}, "capacity: got None with .*triplets_per_image=1.0"),
        (
            {"capacity": 3, "triplets_per_image": 0},
            "triplets_per_image: got 0, expected a finite number above 0",
        ),
        ({"capacity": 3, "triplets_per_image": float("inf")}, "triplets_per_image: got inf"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _sampler(**change)


def _changed(i, j, value):
    table = _table()
    table[i, j] = value
    return table


class _Broken:
    """A relevance that gives `value` for each pair."""

    def __init__(self, value, total=1.0, shape=1):
        self.value, self.given, self.shape = value, total, shape

    def __len__(self):
        return 9

    def pairs(self, i, j):
        return np.full(len(i) * self.shape, self.value)

    def total(self, i):
        return np.full(len(i), self.given)


@pytest.mark.parametrize("capacity", [None, 3])
@pytest.mark.parametrize(
    ("labels", "relevance", "message"),
    [
        (LABELS, None, "relevance: got None, expected a relevance object or an"),
        (None, None, "relevance: got None|capacity: got 3 without labels"),
        (LABELS, _table()[:, :8], r"relevance: got ndarray of shape \(9, 8\)"),
        (LABELS[:8], _table(), r"relevance: got ndarray of shape \(9, 9\), expected .* \(8, 8\)"),
        (LABELS[:8], TableRelevance(_table()), "relevance: got one of 9 images, expected 8"),
        (LABELS, _changed(0, 1, 5.0), "expected a symmetric table"),
        (LABELS, _changed([0, 1], [1, 0], np.nan), "expected every r finite"),
        (LABELS, _changed([0, 1], [1, 0], -1.0), "expected every r finite"),
        (LABELS, _changed([0, 1], [1, 0], np.inf), "expected every r finite"),
        (LABELS, _Broken(np.nan), "relevance: got nan, expected every r finite"),
        (LABELS, _Broken(-1.0), "relevance: got -1.0, expected every r finite"),
        (LABELS, _Broken(1.0, shape=2), "relevance: got shape"),
        (LABELS.astype(float), _table(), "labels: got float64, expected integer"),
        (LABELS.reshape(3, 3), _table(), r"labels: got shape \(3, 3\)"),
        ([], np.zeros((0, 0)), "labels: got none"),
        (np.arange(9), _table(), "expected"),
        (np.zeros(9, int), _table(np.zeros(9, int)), "expected"),
    ],
)
def test_relevances_and_labels_that_do_not_suit_are_refused(capacity, labels, relevance, message):
    with pytest.raises(ValueError, match=message):
        ReservoirTripletSampler(labels, relevance, batch_size=6, capacity=capacity)


@pytest.mark.parametrize("total", [np.nan, -1.0, np.inf])
def test_totals_that_are_no_weights_are_refused(total):
    with pytest.raises(ValueError, match=r"relevance\.total"):
        ReservoirTripletSampler(LABELS, _Broken(1.0, total), batch_size=6, capacity=3)


def test_capacity_without_labels_is_refused():
    with pytest.raises(ValueError, match="capacity: got 3 without labels, expected None"):
        ReservoirTripletSampler(None, _table(), batch_size=6, capacity=3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "labels: got None for 9 images, expected at most 4"),
        (LABELS, "capacity: got None for classes of up to 5"),
    ],
)
def test_more_relevances_than_can_be_held_are_refused(labels, message, monkeypatch):
    monkeypatch.setattr(whole_classes, "MAX_ENTRIES", 20)
    with pytest.raises(ValueError, match=message):
        ReservoirTripletSampler(labels, _table(), batch_size=6)


@pytest.mark.parametrize("capacity", [None, 5])
def test_equal_relevances_without_a_less_relevant_image_are_refused(capacity):
    table = (LABELS[:, None] == LABELS) - np.eye(len(LABELS))
    with pytest.raises(ValueError, match=r"relevance_margin"):
        list(ReservoirTripletSampler(LABELS, table, batch_size=6, capacity=capacity))


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
@pytest.mark.parametrize("way", ["whole", "reservoirs"])
def test_pml_trainer_trains_on_its_packaged_triplets(way):
    from pytorch_metric_learning.losses import TripletMarginLoss
    from pytorch_metric_learning.miners import EmbeddingsAlreadyPackagedAsTriplets
    from pytorch_metric_learning.trainers import MetricLossOnly

    trunk = torch.nn.Linear(9, 4)
    seen = []
    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=6,
        loss_funcs={"metric_loss": TripletMarginLoss()},
        mining_funcs={"tuple_miner": EmbeddingsAlreadyPackagedAsTriplets()},
        dataset=TensorDataset(torch.eye(9), torch.from_numpy(LABELS)),
        sampler=_sampler(way, batches_per_epoch=3),
        data_and_label_getter=lambda batch: (seen.append(batch[0].argmax(dim=1).tolist()), batch)[1],
        dataloader_num_workers=0,
        data_device="cpu",
    )
    trainer.train(num_epochs=2)
    assert seen == [*(sampler := _sampler(way, batches_per_epoch=3)), *sampler]


def test_graded_relevance_with_labels_has_the_totals_of_the_classes_under_a_capacity_too():
    """Image 0 is relevant to much of the other class, which must not make it a query more often."""
    rng = np.random.default_rng(0)
    table = rng.uniform(0.5, 1, (12, 12)).astype(np.float32)
    table = (table + table.T) / 2
    table[0, 6:] = table[6:, 0] = 50
    labels = np.repeat([0, 1], 6)
    sampler = ReservoirTripletSampler(
        labels,
        TableRelevance(table),
        batch_size=3000,
        capacity=6,
        out_of_class_ratio=1.0,
        batches_per_epoch=4,
    )
    queries = np.concatenate([batch[::3] for batch in sampler])
    within = np.where(labels[:, None] == labels, table, 0)
    np.fill_diagonal(within, 0)
    expected = within.sum(1) / within.sum() * len(queries)
    statistic = ((np.bincount(queries, minlength=12) - expected) ** 2 / expected).sum()
    assert statistic < 31.3  # 11 degrees of freedom: exceeded once in a thousand


@pytest.mark.parametrize("weighting", ["relevance", "uniform"])
@pytest.mark.parametrize(("r", "margin"), [(1.0, 0.0), (None, 50.0)])
def test_order_that_no_pair_satisfies_is_refused_at_once_under_a_capacity_too(weighting, r, margin):
    rng = np.random.default_rng(0)
    table = rng.uniform(0.5, 1, (12, 12)) if r is None else np.full((12, 12), r)
    with pytest.raises(ValueError, match="no image has two others in its class whose relevances differ"):
        ReservoirTripletSampler(
            np.repeat([0, 1], 6),
            table + table.T,
            batch_size=3,
            capacity=4,
            relevance_margin=margin,
            weighting=weighting,
        )


def test_relevance_that_is_none_is_one_clear_error():
    with pytest.raises(ValueError, match="relevance: got 5, expected a relevance object"):
        ReservoirTripletSampler(None, 5, batch_size=3)
