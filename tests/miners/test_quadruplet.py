"""HardQuadrupletMiner by PDDM's unit and by distances, and its life inside PML; the mining is tested in triplets."""

import copy
import itertools

import pytest
import torch
from pytorch_metric_learning import losses
from pytorch_metric_learning.miners import BatchHardMiner

from dr_plugin.losses import CrossBatchMemory, DeepRankingLoss, PDDMLoss, PDDMUnit, ReservoirMemory
from dr_plugin.miners import HardQuadrupletMiner


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def _as_lists(mined):
    return [indices.tolist() for indices in mined]


def _hardest_by_loops(table, labels, count):
    """The two triplets of each of the `count` hardest pairs."""
    pairs = [(i, j) for i, j in itertools.combinations(range(len(labels)), 2) if labels[i] == labels[j]]
    triplets = []
    for i, j in sorted(pairs, key=lambda pair: table[pair].item())[:count]:
        for a, p in ((i, j), (j, i)):
            negatives = [n for n in range(len(labels)) if labels[n] != labels[a]]
            triplets.append((a, p, max(negatives, key=lambda n, a=a: table[a, n].item())))
    return [list(role) for role in zip(*triplets, strict=True)]


def test_kind_triplet_by_distance_is_batch_hard():
    class Nearness:
        embedding_size = 4

        def __call__(self, x, y):
            return -(x - y).norm(dim=1)

        def matrix(self, x, y=None):
            return -torch.cdist(*(torch.nn.functional.normalize(e) for e in (x, x if y is None else y)))

    embeddings, labels = torch.randn(12, 4), torch.arange(12) % 3
    ours = HardQuadrupletMiner(Nearness(), kind="triplet")(embeddings, labels)
    assert _as_lists(ours) == _as_lists(BatchHardMiner()(embeddings, labels))


def test_unit_of_the_loss_finds_what_loops_find():
    unit, labels = PDDMUnit(6), [0, 1, 1, 0, 2, 2, 2, 3]
    for _ in range(5):
        embeddings = torch.randn(8, 6)
        table = torch.stack([unit(row.expand(8, -1), embeddings) for row in embeddings]).detach()
        for count in (1, 3, 9):
            mined = HardQuadrupletMiner(unit, quadruplets=count)(embeddings, torch.tensor(labels))
            assert _as_lists(mined) == _hardest_by_loops(table, labels, count)
        mined = HardQuadrupletMiner(unit, kind="triplet")(embeddings, torch.tensor(labels))
        assert mined[0].tolist() == list(range(7))


@pytest.mark.parametrize("kind", ["quadruplet", "triplet"])
@pytest.mark.parametrize(
    "labels", [[], [0], [0, 0, 0], [0, 1, 2]], ids=["empty", "one image", "one class", "no positive pair"]
)
def test_batch_without_a_quadruplet_gives_empty_triplets(kind, labels):
    miner = HardQuadrupletMiner(PDDMUnit(4), kind=kind)
    mined = miner(torch.randn(len(labels), 4), torch.tensor(labels, dtype=torch.long))
    assert [(tuple(indices.shape), indices.dtype) for indices in mined] == [((0,), torch.long)] * 3
    assert miner.num_triplets == 0


@pytest.mark.parametrize("kind", ["quadruplet", "triplet"])
def test_references_that_are_the_batch_are_the_batch(kind):
    miner, embeddings, labels = (
        HardQuadrupletMiner(PDDMUnit(4), kind=kind),
        torch.randn(9, 4),
        torch.arange(9) % 3,
    )
    expected = _as_lists(miner(embeddings, labels))
    assert expected[0]
    assert _as_lists(miner(embeddings, labels, embeddings, labels)) == expected
    assert _as_lists(miner(embeddings, labels, embeddings.detach(), labels.clone())) == expected
    with pytest.raises(ValueError, match="ref_emb is the batch itself"):
        miner(embeddings, labels, embeddings, labels + 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["quadruplet", "triplet"])
def test_embeddings_of_any_dtype_are_mined_without_a_gradient(dtype, kind):
    unit, labels = PDDMUnit(4), torch.arange(8) % 2
    embeddings = torch.randn(8, 4).to(dtype).requires_grad_()
    miner = HardQuadrupletMiner(unit, kind=kind)
    mined = miner(embeddings, labels)
    assert not any(indices.requires_grad for indices in mined)
    wide = embeddings if dtype == torch.float64 else embeddings.float()
    assert _as_lists(mined) == _as_lists(miner(wide.detach(), labels))
    with torch.autocast("cpu", torch.bfloat16):
        assert _as_lists(miner(embeddings, labels)) == _as_lists(mined)


def test_weights_stay_those_of_the_loss():
    loss_func = PDDMLoss(4)
    miner = HardQuadrupletMiner(loss_func.unit)
    assert miner.similarity is loss_func.unit
    assert miner.state_dict() == {}
    assert list(miner.parameters()) == []
    assert loss_func.unit not in list(miner.modules())
    pair = torch.nn.ModuleDict({"loss": loss_func, "miner": miner})
    copied = copy.deepcopy(pair)
    assert copied["miner"].similarity is copied["loss"].unit


def test_stats_are_recorded():
    miner = HardQuadrupletMiner(PDDMUnit(4), quadruplets=2, collect_stats=True)
    miner(torch.randn(6, 4), torch.arange(6) % 2)
    assert miner.num_triplets == 4
    assert "num_triplets" in miner._record_these_stats


@pytest.mark.parametrize(
    "loss_func",
    [
        losses.TripletMarginLoss(margin=3.0),
        losses.ContrastiveLoss(),
        losses.MultiSimilarityLoss(),
        losses.CrossBatchMemory(losses.TripletMarginLoss(margin=3.0), 4, memory_size=12),
        DeepRankingLoss(3.0),
        PDDMLoss(4),
    ],
    ids=lambda loss_func: type(loss_func).__name__,
)
def test_losses_read_both_triplets(loss_func):
    unit, labels = PDDMUnit(4), torch.tensor([0, 0, 1, 1, 2, 2])
    embeddings = torch.randn(6, 4, requires_grad=True)
    mined = HardQuadrupletMiner(unit)(embeddings, labels)
    loss = loss_func(embeddings, labels, mined)
    assert loss.item() > 0
    loss.backward()
    assert embeddings.grad.isfinite().all()
    assert embeddings.grad[mined[0]].any(dim=1).all()


@pytest.mark.parametrize("memory", [losses.CrossBatchMemory, CrossBatchMemory, ReservoirMemory])
@pytest.mark.parametrize("kind", ["quadruplet", "triplet"])
def test_no_image_is_its_own_positive_in_a_memory(memory, kind, monkeypatch):
    """Nothing makes S(x, x) the highest: the image itself, mined from the memory, would leave no triplet."""

    class Distance:
        embedding_size = 4

        def __call__(self, x, y):
            return (x - y).norm(dim=1)

        def matrix(self, x, y=None):
            return torch.cdist(x, x if y is None else y)

    loss_func, mined = losses.TripletMarginLoss(), []
    monkeypatch.setattr(loss_func, "forward", lambda *batch: mined.append(batch[2]) or batch[0].sum())
    remembering = memory(loss_func, 4, 24, miner=HardQuadrupletMiner(Distance(), kind=kind))
    for _ in range(3):
        remembering(torch.randn(6, 4), torch.arange(6) % 3)
    assert [len(triplets[0]) for triplets in mined] == [6 if kind == "triplet" else 1] * 3


def test_memory_of_pml_trains_with_it():
    miner = HardQuadrupletMiner(PDDMUnit(4), kind="triplet")
    memory = losses.CrossBatchMemory(losses.TripletMarginLoss(margin=3.0), 4, memory_size=24, miner=miner)
    for _ in range(3):
        embeddings = torch.randn(6, 4, requires_grad=True)
        loss = memory(embeddings, torch.arange(6) % 2)
        assert loss.item() > 0
        loss.backward()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"similarity": None}, "similarity: got None, expected a unit such as"),
        ({"similarity": torch.nn.Linear(2, 2)}, "similarity: got Linear.* expected a unit such as"),
        ({"similarity": PDDMUnit}, "similarity: got <class .* expected a unit such as"),
        ({"quadruplets": 0}, "quadruplets: got 0, expected a whole number, at least 1"),
        ({"quadruplets": 1.0}, "quadruplets: got 1.0, expected a whole number, at least 1"),
        ({"kind": "pairs"}, "kind: got 'pairs', expected 'quadruplet' or 'triplet'"),
        ({"kind": "triplet", "quadruplets": 2}, "quadruplets: got 2 with kind='triplet'"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HardQuadrupletMiner(**{"similarity": PDDMUnit(4), **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(4, 8), torch.arange(4)),
            r"embeddings: got embeddings of shape \(4, 8\), expected \(N, 4\), as the unit's",
        ),
        (
            (torch.zeros(4, 4), torch.arange(4), torch.zeros(2, 8), torch.arange(2)),
            r"ref_emb: got embeddings of shape \(2, 8\), expected \(N, 4\)",
        ),
        ((torch.zeros(4, 4), torch.arange(4), torch.zeros(2, 4)), "ref_labels: got none with ref_emb"),
        ((torch.zeros(4, 4), torch.arange(3)), "must equal number of labels"),
        ((torch.zeros(4, 4), torch.zeros(4)), "labels: got torch.float32, expected integer classes"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        HardQuadrupletMiner(PDDMUnit(4))(*arguments)
