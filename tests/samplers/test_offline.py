"""OfflineTripletSampler: each triplet once, its weights' law, files, resuming, and its life inside PML."""

import io
from collections import Counter

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners, trainers
from scipy.stats import chi2
from torch.utils.data import BatchSampler, DataLoader, TensorDataset

from dr_plugin.samplers import OfflineTripletSampler

TRIPLETS = [[number, number + 10, number + 20] for number in range(7)]


def make(**changes):
    return OfflineTripletSampler(TRIPLETS, **({"batch_size": 6, "seed": 3} | changes))


def threes(batch):
    return list(zip(batch[::3], batch[1::3], batch[2::3], strict=True))


def test_each_triplet_once_an_epoch():
    sampler = make()
    assert isinstance(sampler, BatchSampler)
    orders = []
    for _ in range(3):
        batches = list(sampler)
        assert [len(batch) for batch in batches] == [6, 6, 6, 3]
        assert all(type(index) is int for batch in batches for index in batch)
        orders.append([triplet for batch in batches for triplet in threes(batch)])
        assert sorted(orders[-1]) == [tuple(row) for row in TRIPLETS]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [t for batch in make(seed=4) for t in threes(batch)] != orders[0]


def test_order_is_uniform():
    sampler = OfflineTripletSampler(TRIPLETS[:3], batch_size=9)
    counts = Counter(tuple(sampler.batch(epoch, 0)[::3]) for epoch in range(6000))
    assert len(counts) == 6
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < chi2.ppf(0.999, 5)


def test_drop_last_and_without_shuffle():
    batches = list(make(shuffle=False, drop_last=True))
    assert batches == [TRIPLETS[start] + TRIPLETS[start + 1] for start in (0, 2, 4)]
    assert list(make(shuffle=False))[3] == TRIPLETS[6]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(("batch_size", "batches"), [(6, 2), (15, 3), (48, 1)])
def test_passes_run_on_over_epochs(shuffle, batch_size, batches):
    sampler = make(batch_size=batch_size, batches_per_epoch=batches, shuffle=shuffle)
    stream = []
    while len(stream) < 21:
        epoch = list(sampler)
        assert [len(batch) for batch in epoch] == [batch_size] * batches
        stream += [triplet for batch in epoch for triplet in threes(batch)]
    for start in (0, 7, 14):
        assert sorted(stream[start : start + 7]) == [tuple(row) for row in TRIPLETS]


def test_weights_are_the_law():
    weights = [0, 1, 2, 3, 0, 4, 0]
    sampler = make(weights=weights, batch_size=300, batches_per_epoch=200)
    counts = Counter(triplet[0] for batch in sampler for triplet in threes(batch))
    assert set(counts) == {1, 2, 3, 5}
    expected = {number: 20_000 * weight / 10 for number, weight in enumerate(weights) if weight}
    assert sum((counts[n] - e) ** 2 / e for n, e in expected.items()) < chi2.ppf(0.999, 3)
    assert [len(batch) for batch in make(weights=torch.ones(7))] == [6] * 4


def test_csv_of_indices(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("negative,note,query,positive\n5,x,3,4\n\n2,y,0,1\n")
    assert make_from(path).triplets.tolist() == [[3, 4, 5], [0, 1, 2]]
    path.write_text("3,4,5\n0, 1,2\n")
    assert make_from(str(path)).triplets.tolist() == [[3, 4, 5], [0, 1, 2]]


def make_from(triplets, **changes):
    return OfflineTripletSampler(triplets, **({"batch_size": 3} | changes))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", r"triplets: got no triplet in .*t.csv, expected at least one"),
        ("query,positive,negative\n", "triplets: got no triplet in"),
        ("query,positive\n1,2\n", r"triplets: got 'query,positive' \(.*t.csv:1\), expected a header with"),
        (
            "query,positive,negative\n0,1,2\n0,a,2\n",
            r"triplets: got '0,a,2' \(.*t.csv:3\), expected three whole",
        ),
        ("query,positive,negative\n0,1\n", r"triplets: got '0,1' \(.*t.csv:2\)"),
        (
            "0,1,2\n3,4,-5\n",
            r"triplets: got \[3, 4, -5\] \(.*t.csv:2\), the first of 1 such; expected indices",
        ),
        ("0,1,2\n3,4,9\n4,9,9\n", r"got \[3, 4, 9\] \(.*t.csv:2\), the first of 2 such; expected .* 0 to 8"),
        ("0,1,2\n3,99999999999999999999,5\n", r"got '3,9{20},5' \(.*t.csv:2\), .* at most 18 digits"),
        (f"0,1,2\n3,{'9' * 5000},5\n", r"9' \(.*t.csv:2\)|9,5' \(.*t.csv:2\)"),
        ("0,1,2\n3,-9999999999999999999,5\n", r"t.csv:2\), expected three whole numbers"),
        ("0,1,2\n3,4,3\n", r"got \[3, 4, 3\] \(.*t.csv:2\), .* expected three different images"),
    ],
)
def test_csv_faults_name_file_and_line(tmp_path, text, match):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        make_from(path, labels=[0] * 9)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"triplets": []}, "triplets: got .* of shape"),
        ({"triplets": [[0, 1]]}, r"triplets: got int64 of shape \(1, 2\)"),
        ({"triplets": [[0.0, 1.0, 2.0]]}, "triplets: got float64"),
        ({"triplets": np.array([[0, 1, 2], [-1, 2, 3]])}, r"got \[-1, 2, 3\] \(triplet 1\).* at least 0"),
        (
            {"triplets": np.array([[0, 1, 2], [1, 2, 2**63 + 5]], dtype=np.uint64)},
            r"got \[1, 2, 9223372036854775813\] \(triplet 1\).* at least 0 and below 2\^63",
        ),
        ({"triplets": [[0, 1, 2**70]]}, "triplets: got object"),
        (
            {"drop_last": True, "batches_per_epoch": 5},
            "drop_last: got True with batches_per_epoch=5, expected only",
        ),
        ({"triplets": torch.tensor([[1, 1, 2]])}, r"got \[1, 1, 2\] \(triplet 0\).* three different"),
        ({"triplets": "none.csv"}, "triplets: got 'none.csv', expected a csv file of indices"),
        ({"batch_size": 4}, "batch_size: got 4, expected a multiple of 3"),
        ({"batch_size": 24, "drop_last": True}, "batch_size: got 24, expected at most 21"),
        ({"labels": [0] * 26}, r"got \[6, 16, 26\] \(triplet 6\).* 0 to 25"),
        ({"weights": [1.0] * 6}, r"weights: got float64 of shape \(6,\), expected \(7,\)"),
        ({"weights": [0.0] * 7}, "weights: got NaN, infinite, negative or no positive"),
        ({"weights": [1.0] * 6 + [float("nan")]}, "weights: got NaN"),
        ({"weights": [1.0] * 6 + [-1.0]}, "weights: got NaN"),
        ({"batches_per_epoch": 0}, "batches_per_epoch: got 0"),
        ({"seed": -1}, "seed: got -1"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        OfflineTripletSampler(**({"triplets": TRIPLETS, "batch_size": 6} | arguments))


@pytest.mark.parametrize("changes", [{}, {"batches_per_epoch": 4}, {"weights": [1.0] * 7}])
@pytest.mark.parametrize(("epoch", "index"), [(0, 4), (0, 7), (0, -1), (0, 1.0), (-1, 0)])
def test_batches_that_an_epoch_has_not_are_refused(changes, epoch, index):
    name = (
        "epoch: got -1" if epoch else f"index: got {index}, expected a whole number, at least 0 and below 4"
    )
    with pytest.raises(ValueError, match=name):
        make(**changes).batch(epoch, index)
    assert len(make(**changes).batch(0, np.int64(2))) == 6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint64, np.int16])
def test_indices_of_any_integer_type(dtype):
    sampler = make_from(np.array(TRIPLETS, dtype=dtype), labels=[0] * 300)
    assert (sampler.triplets.dtype, sampler.triplets.tolist()) == (np.int64, TRIPLETS)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("changes", [{}, {"batches_per_epoch": 5}, {"weights": [1.0] * 7}])
def test_resumes_to_the_same_batches(workers, changes):
    def batches(sampler):
        loader = DataLoader(TensorDataset(torch.arange(27)), batch_sampler=sampler, num_workers=workers)
        return [images.tolist() for (images,) in loader]

    whole = make(**changes)
    wanted = [batches(whole) for _ in range(3)]
    file = io.BytesIO()
    torch.save(make(**changes).state_dict(epoch=1, batches_consumed=2), file)
    file.seek(0)
    resumed = make(**changes)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert batches(resumed) == wanted[1][2:]
    assert batches(resumed) == wanted[2]


@pytest.mark.parametrize(
    "changes",
    [{"shuffle": False}, {"weights": [1.0] * 7}, {"batches_per_epoch": 4}, {"drop_last": True}, {"seed": 9}],
)
def test_state_of_another_sampler_is_refused(changes):
    with pytest.raises(ValueError, match=r"sampler state: \w+: got"):
        make(**changes).load_state_dict(make().state_dict())
    other = OfflineTripletSampler(TRIPLETS[::-1], batch_size=6, seed=3)
    with pytest.raises(ValueError, match="triplets_crc32"):
        other.load_state_dict(make().state_dict())


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
def test_pml_trainer_is_given_the_triplets():
    trunk = torch.nn.Linear(1, 2)
    seen = []
    trainer = trainers.MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1)},
        batch_size=6,
        loss_funcs={"metric_loss": losses.TripletMarginLoss()},
        mining_funcs={"tuple_miner": miners.EmbeddingsAlreadyPackagedAsTriplets()},
        dataset=TensorDataset(torch.randn(27, 1), torch.arange(27)),
        sampler=make(),
        data_and_label_getter=lambda batch: (seen.extend(threes(batch[1].tolist())), batch)[1],
        dataloader_num_workers=0,
        data_device="cpu",
    )
    trainer.train(num_epochs=1)
    assert sorted(seen) == [tuple(row) for row in TRIPLETS]
