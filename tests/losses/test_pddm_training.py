"""PDDMLoss in training: what it records, resuming, memories, and PML's trainer."""

import io
import statistics

import pytest
import torch
from pytorch_metric_learning import losses
from torch.utils.data import TensorDataset

from dr_plugin.losses import CrossBatchMemory, PDDMLoss, ReservoirMemory
from dr_plugin.miners import HardQuadrupletMiner, UniformTripletMiner

from .pddm_cases import LABELS, make_embeddings, make_loss, make_triplets


@pytest.mark.parametrize("count", [1, 60], ids=["one", "more than all pairs"])
def test_spread_of_the_similarities_is_recorded(count):
    loss_func, embeddings, triplets = make_loss(collect_stats=True), make_embeddings(), make_triplets(count)
    assert {"similarity_gap", "similarity_std"} <= set(loss_func._record_these_stats)
    loss_func(embeddings, indices_tuple=triplets)
    near, far = (
        [
            loss_func.unit(embeddings[a].unsqueeze(0), embeddings[b].unsqueeze(0)).item()
            for a, b in zip(triplets[0], others, strict=True)
        ]
        for others in triplets[1:]
    )
    gaps, both = [s - t for s, t in zip(near, far, strict=True)], near + far
    assert loss_func.similarity_gap == pytest.approx(sum(gaps) / count)
    assert loss_func.similarity_std == pytest.approx(statistics.pstdev(both))
    loss_func(embeddings, torch.zeros(6).long())  # no triplets
    assert (loss_func.similarity_gap, loss_func.similarity_std) == (0, 0)


def test_constant_similarities_show_in_what_is_recorded():
    loss_func, embeddings = make_loss(collect_stats=True, euclidean_weight=0), make_embeddings()
    with torch.no_grad():
        loss_func.unit.similarity.weight.zero_()
    loss = loss_func(embeddings, LABELS)
    assert loss.item() == pytest.approx(2 * loss_func.similarity_margin)
    assert (loss_func.similarity_gap, loss_func.similarity_std) == pytest.approx((0, 0))


def test_nothing_is_recorded_unless_asked_for():
    loss_func = make_loss()
    loss_func(make_embeddings(), LABELS)
    assert not hasattr(loss_func, "similarity_gap")
    assert not hasattr(loss_func, "similarity_std")


def _train(loss_func, embeddings, optimizer, steps):
    values = []
    for _ in range(steps):
        loss = loss_func(embeddings, LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


def _started(seed):
    loss_func, embeddings = make_loss(seed=seed), make_embeddings()
    parameters = [embeddings, *loss_func.parameters()]
    return loss_func, embeddings, torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def test_resumed_training_goes_on_as_the_uninterrupted():
    loss_func, embeddings, optimizer = _started(0)
    first = _train(loss_func, embeddings, optimizer, 3)
    file = io.BytesIO()
    state = {
        "loss": loss_func.state_dict(),
        "embeddings": embeddings.detach(),
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, file)
    rest = _train(loss_func, embeddings, optimizer, 3)
    assert rest[-1] < first[0]
    file.seek(0)
    state = torch.load(file, weights_only=True)
    loss_func, embeddings, optimizer = _started(1)
    loss_func.load_state_dict(state["loss"])
    optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        embeddings.copy_(state["embeddings"])
    assert _train(loss_func, embeddings, optimizer, 3) == rest


@pytest.mark.parametrize("memory", [losses.CrossBatchMemory, CrossBatchMemory, ReservoirMemory])
@pytest.mark.parametrize("kind", ["quadruplet", "triplet"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_feeds_it_and_no_image_is_its_own_positive(memory, kind, dtype):
    if memory is losses.CrossBatchMemory:
        with pytest.raises(Exception, match="not supported for PDDMLoss"):
            memory(make_loss(), 5)
        return
    for seed in range(5):  # some units have S(x, x) lowest
        loss_func, (first, second) = (
            make_loss(seed=seed, dtype=torch.float32),
            (make_embeddings(seed=2 * seed + half, dtype=dtype).detach().requires_grad_() for half in (0, 1)),
        )
        miner = HardQuadrupletMiner(loss_func.unit, kind=kind)
        remembering = memory(loss_func, 5, 32, miner=miner)
        remembering(first, LABELS)
        loss = remembering(second, LABELS)
        references, ref_labels = torch.cat([first, second]).detach(), LABELS.repeat(2)
        same = ref_labels == LABELS.unsqueeze(1)
        other = same & (torch.arange(12) != torch.arange(6, 12).unsqueeze(1))
        matrix = loss_func.unit.matrix(second, references).detach()
        positive = matrix.masked_fill(~other, torch.inf)
        negative = matrix.masked_fill(same, -torch.inf).argmax(1)
        if kind == "triplet":
            anchors, positives = torch.arange(6), positive.argmin(1)
        else:
            anchors, positives = (torch.tensor([index]) for index in divmod(int(positive.argmin()), 12))
        expected = loss_func(
            second, indices_tuple=(anchors, positives, negative[anchors]), ref_emb=references
        )
        torch.testing.assert_close(loss, expected)
        loss.backward()
        assert second.grad.any()


def test_multiple_losses_of_pml_take_it_with_its_miner():
    loss_func, embeddings = make_loss(dtype=torch.float32), make_embeddings(dtype=torch.float32)
    miner = HardQuadrupletMiner(loss_func.unit, quadruplets=2)
    other = losses.TripletMarginLoss()
    together = losses.MultipleLosses({"pddm": loss_func, "triplet": other}, miners={"pddm": miner})
    expected = loss_func(embeddings, LABELS, miner(embeddings, LABELS)) + other(embeddings, LABELS)
    loss = together(embeddings, LABELS)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(weight.grad is not None for weight in loss_func.unit.parameters())
    assert len(list(together.parameters())) == 8  # the unit's once, though the miner holds it too


@pytest.mark.filterwarnings(
    "ignore:Converting a tensor with requires_grad=True:UserWarning"
)  # PML's "%.5f" % loss
@pytest.mark.parametrize("miner", [None, "quadruplet", "triplet"])
def test_pml_trainer_trains_the_unit_with_it(miner):
    from pytorch_metric_learning.trainers import MetricLossOnly

    torch.manual_seed(0)
    data, labels = torch.randn(24, 5), torch.arange(3).repeat(8)
    trunk, loss_func = torch.nn.Linear(5, 4), PDDMLoss(4)
    before = [weight.detach().clone() for weight in (*trunk.parameters(), *loss_func.parameters())]
    mining = {} if miner is None else {"tuple_miner": HardQuadrupletMiner(loss_func.unit, kind=miner)}
    MetricLossOnly(
        models={"trunk": trunk},
        optimizers={
            "trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.1),
            "metric_loss_optimizer": torch.optim.SGD(loss_func.parameters(), lr=1.0),
        },
        batch_size=12,
        loss_funcs={"metric_loss": loss_func},
        mining_funcs=mining,
        dataset=TensorDataset(data, labels),
        dataloader_num_workers=0,
        data_device="cpu",
    ).train(num_epochs=1)
    after = [*trunk.parameters(), *loss_func.parameters()]
    assert not any(torch.equal(weight, old) for weight, old in zip(after[:-1], before[:-1], strict=True))
    torch.testing.assert_close(after[-1], before[-1])  # b_s cancels: only differences of similarities cost


@pytest.mark.parametrize("mining", ["hard triplets", "uniform"])
def test_trained_unit_tells_the_classes_apart(mining):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    labels = torch.arange(40) % 4
    embeddings = centres[labels] + 0.6 * torch.randn(40, 16, generator=generator)
    loss_func = make_loss(16, dtype=torch.float32, euclidean_weight=0, collect_stats=True)
    miner = (
        HardQuadrupletMiner(loss_func.unit, kind="triplet")
        if mining == "hard triplets"
        else UniformTripletMiner(4, seed=0)
    )
    same, different = labels.unsqueeze(1) == labels, labels.unsqueeze(1) != labels
    same.fill_diagonal_(False)

    def gaps():
        """Of each pair of one class to each pair of two."""
        matrix = loss_func.unit.matrix(embeddings).detach()
        return matrix[same].unsqueeze(1) - matrix[different]

    before, optimizer = gaps(), torch.optim.Adam(loss_func.parameters(), lr=1e-3)
    for _ in range(250):
        loss = loss_func(embeddings, labels, miner(embeddings, labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = gaps()
    assert (before > 0).double().mean() < 0.7 < 0.9 < (after > 0).double().mean()
    assert after.mean() > loss_func.similarity_margin
    assert loss_func.similarity_std > 0.1
