"""Training on 2 and 3 processes against one process on the joined batch."""

import pytest
import torch
from pytorch_metric_learning import losses, miners, samplers
from torch import nn
from torch.utils.data import BatchSampler

from dr_plugin import distributed
from dr_plugin.datasets import BatchAugment, PackedImages
from dr_plugin.experiments import checkpoint
from dr_plugin.experiments.ranking import RankingTrainer
from dr_plugin.experiments.ranks import noise_of_rank
from dr_plugin.experiments.softmax import SoftmaxTrainer
from dr_plugin.losses import DeepRankingLoss, PDDMLoss
from dr_plugin.miners import HardQuadrupletMiner, UniformTripletMiner

from ..processes import on_ranks
from .conftest import ColourBlobs


class Lonely(BatchSampler):
    """Batches with one image of each of the 4 classes: no positive pair."""

    def __init__(self):
        super().__init__(range(48), 4, drop_last=True)

    def __iter__(self):
        yield from ([first, first + 12, first + 24, first + 36] for first in range(12))

    def __len__(self):
        return 12


class OfRank(BatchSampler):
    """Other batches on each process, as a sampler seeded with the rank draws them."""

    def __iter__(self):
        yield [(distributed.rank() + number) % 48 for number in range(12)]

    def __len__(self):
        return 1


def network():
    """Without batch normalisation, whose statistics are those of a process's own images."""
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 8))


def sgd(module, **settings):
    return torch.optim.SGD(module.parameters(), **{"lr": 0.05, "momentum": 0.9, **settings})


def ranking(dataset, loss, miner=None, sampler="per class", batch_size=10, **changes):
    trunk = network()
    if sampler == "per class":
        sampler = samplers.MPerClassSampler(dataset.labels, m=5, length_before_new_iter=20)
    optimizers = {"trunk_optimizer": sgd(trunk)}
    if list(loss.parameters()):
        optimizers["metric_loss_optimizer"] = sgd(loss)
    arguments = {
        "augment": BatchAugment(
            8, pixel_shift=1, horizontal_flip=True, random_resized_crop={"scale": (0.5, 1)}
        ),
        "models": {"trunk": trunk},
        "optimizers": optimizers,
        "batch_size": batch_size,
        "loss_funcs": {"metric_loss": loss},
        "mining_funcs": {} if miner is None else {"tuple_miner": miner},
        "sampler": sampler,
        "dataset": dataset,
        "data_device": torch.device("cpu"),
        "seed": 5,
    }
    return RankingTrainer(**{**arguments, **changes})


def pddm(dataset):
    loss = PDDMLoss(8)
    return ranking(dataset, loss, HardQuadrupletMiner(loss.unit))


def softmax(dataset):
    trunk, classifier = network(), nn.Linear(8, 4)
    return SoftmaxTrainer(
        features=trunk,
        augment=BatchAugment(8, pixel_shift=1),
        models={"trunk": trunk, "classifier": classifier},
        optimizers={"trunk_optimizer": sgd(nn.ModuleList([trunk, classifier]))},
        loss_funcs={"classifier_loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        batch_size=20,
        dataset=dataset,
        data_device=torch.device("cpu"),
        seed=5,
    )


TRAINERS = {
    "our random miner": lambda data: ranking(data, DeepRankingLoss(5.0), UniformTripletMiner(8, seed=1)),
    "PML's random miner": lambda data: ranking(
        data, losses.TripletMarginLoss(3.0), miners.DistanceWeightedMiner(0.5, 1.4)
    ),
    "a loss with weights": lambda data: ranking(
        data, losses.ProxyAnchorLoss(4, 8), sampler=None, gradient_clip=1.0, averaged_decay=0.9
    ),
    "a unit": pddm,
    "a memory": lambda data: ranking(data, losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 30)),
    "softmax": softmax,
}


def trained(kind, folder):
    """Two epochs; what came out, on this process."""
    checkpoint.seed_everything(3)
    trainer = TRAINERS[kind](PackedImages.build(ColourBlobs(), folder))
    before = [one.clone() for one in trainer.models["trunk"].parameters()]
    trainer.train(num_epochs=2)
    assert not all(map(torch.equal, before, trainer.models["trunk"].parameters()))
    kept = trainer.averaged.module if trainer.averaged is not None else trainer.models["trunk"]
    return {
        "weights": {key: value.clone() for key, value in kept.state_dict().items()},
        "loss": {k: v.state_dict() for k, v in trainer.loss_funcs.items()},
        "steps": (trainer.steps_done, trainer.images_seen),
        "state": trainer.state_dict()["generators"]["global"]["torch"],
    }


def assert_close(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(
            two[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", TRAINERS)
def test_several_processes_train_as_one_on_the_joined_batch(kind, count, tmp_path):
    alone = trained(kind, tmp_path)
    for found in on_ranks(count, trained, kind, tmp_path):
        assert found["steps"] == alone["steps"]
        assert_close(alone["weights"], found["weights"])
        for key, state in alone["loss"].items():
            assert_close(state, found["loss"][key])
        assert torch.equal(found["state"], alone["state"])  # what was drawn for samplers and miners


def gradients(folder):
    """Of the first step alone."""
    checkpoint.seed_everything(3)
    trainer = TRAINERS["our random miner"](PackedImages.build(ColourBlobs(), folder))
    found = {}

    def keep():
        found.update({name: one.grad.clone() for name, one in trainer.models["trunk"].named_parameters()})
        trainer.max_steps = 1

    trainer.clip_gradients = keep
    trainer.train(num_epochs=1)
    return found, float(trainer.losses["metric_loss"])


def test_gradients_of_several_processes_are_those_of_the_joined_batch(tmp_path):
    alone, loss = gradients(tmp_path)
    assert max(float(one.abs().max()) for one in alone.values()) > 1e-3
    for found, own_loss in on_ranks(3, gradients, tmp_path):
        assert_close(alone, found)
        assert own_loss == pytest.approx(loss, rel=1e-5)


def trained_without_pairs(folder):
    checkpoint.seed_everything(3)
    trainer = ranking(
        PackedImages.build(ColourBlobs(), folder),
        DeepRankingLoss(0.2),
        UniformTripletMiner(8, seed=1),
        sampler=Lonely(),
    )
    before = [one.clone() for one in trainer.models["trunk"].parameters()]
    trainer.train(num_epochs=1)
    after = list(trainer.models["trunk"].parameters())
    return trainer.steps_done, all(map(torch.equal, before, after))


def test_batches_without_a_positive_pair_hold_up_nobody(tmp_path):
    assert on_ranks(3, trained_without_pairs, tmp_path) == [(12, True)] * 3


def refused(folder):
    dataset = PackedImages.build(ColourBlobs(), folder)
    trainer = ranking(dataset, DeepRankingLoss(0.2), sampler=OfRank(range(48), 12, drop_last=True))
    with pytest.raises(ValueError, match="ranks 0 and 1 drew other batches for epoch 1, expected the same"):
        trainer.train(num_epochs=1)
    with pytest.raises(ValueError, match="models: got an embedder on several processes"):
        models = {"trunk": network(), "embedder": nn.Linear(8, 8)}
        ranking(dataset, DeepRankingLoss(0.2), models=models)
    with pytest.raises(ValueError, match="subset_batch_miner: got one on several processes"):
        ranking(dataset, DeepRankingLoss(0.2), mining_funcs={"subset_batch_miner": miners.HDCMiner()})


def test_batches_that_differ_between_processes_are_refused(tmp_path):
    on_ranks(2, refused, tmp_path)


def noise():
    torch.manual_seed(1)
    with noise_of_rank(2, 3, torch.device("cpu")):
        inside = float(torch.rand(()))
    return inside, float(torch.rand(()))


def test_noise_differs_between_processes_and_leaves_the_common_generator_alone():
    (one, after), (two, after_two) = on_ranks(2, noise)
    assert one != two
    torch.manual_seed(1)
    assert after == after_two == float(torch.rand(()))


def test_noise_of_one_process_is_the_common_generators():
    inside, after = noise()
    torch.manual_seed(1)
    assert [inside, after] == torch.rand(2).tolist()
