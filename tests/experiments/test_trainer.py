import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses, miners, reducers, samplers
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn
from torch.utils.data import BatchSampler, RandomSampler

from dr_plugin.datasets import BatchAugment
from dr_plugin.experiments import checkpoint
from dr_plugin.experiments.ranking import RankingTrainer
from dr_plugin.experiments.softmax import SoftmaxTrainer
from dr_plugin.experiments.trainer import TrainingError
from dr_plugin.losses import DeepRankingLoss
from dr_plugin.metrics import RankingAccuracyCalculator, nearest, precision_at_k
from dr_plugin.miners import UniformTripletMiner
from dr_plugin.samplers import UniformTripletSampler

NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def net(dropout=0.1):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(216, 8)
    )


def ranking_trainer(dataset, **changes):
    """A trainer on the CPU with our miner and loss; ``changes`` replace any argument."""
    checkpoint.seed_everything(3)
    trunk = changes.pop("trunk", None) or net()
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.05, momentum=0.9)
    arguments = {
        "augment": BatchAugment(8, pixel_shift=1, horizontal_flip=True),
        "models": {"trunk": trunk},
        "optimizers": {"trunk_optimizer": optimizer},
        "batch_size": 12,
        "loss_funcs": {"metric_loss": DeepRankingLoss(gap=0.2)},
        "mining_funcs": {"tuple_miner": UniformTripletMiner(triplets_per_query=4, seed=1)},
        "sampler": samplers.MPerClassSampler(dataset.labels, m=3, length_before_new_iter=len(dataset)),
        "dataset": dataset,
        "data_device": torch.device("cpu"),
        "seed": 5,
    }
    return RankingTrainer(**{**arguments, **changes})


def weights(trainer):
    return {key: value.clone() for key, value in trainer.models["trunk"].state_dict().items()}


def assert_same(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_ranking_trainer_learns(blobs):
    # The mean over all triplets falls; PML's default, the mean of the non-zero losses, need not.
    loss = DeepRankingLoss(gap=0.2, reducer=reducers.MeanReducer())
    trainer = ranking_trainer(blobs, loss_funcs={"metric_loss": loss})
    seen = []
    trainer.end_of_epoch_hook = lambda t: seen.append(t.mean_loss())
    trainer.train(num_epochs=12)
    assert trainer.steps_done == 12 * 4
    assert trainer.images_seen == 12 * 48
    assert seen[-1] < 0.6 * seen[0]


def test_ranking_trainer_equals_pml_trainer_on_the_same_batches(blobs):
    """Oracle: PML's own MetricLossOnly, fed the images that ours saw."""
    batches = []
    checkpoint.seed_everything(3)
    ours = ranking_trainer(blobs, trunk=net(dropout=0.0))
    take = ours.get_batch
    ours.get_batch = lambda: batches.append(take()) or batches[-1]
    ours.train(num_epochs=2)

    checkpoint.seed_everything(3)
    trunk = net(dropout=0.0)
    theirs = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": torch.optim.SGD(trunk.parameters(), lr=0.05, momentum=0.9)},
        batch_size=12,
        loss_funcs={"metric_loss": DeepRankingLoss(gap=0.2)},
        mining_funcs={"tuple_miner": UniformTripletMiner(triplets_per_query=4, seed=1)},
        dataset=blobs,
        data_device=torch.device("cpu"),
    )
    replay = iter(batches)
    theirs.get_batch = lambda: next(replay)
    theirs.set_to_train()
    for _ in batches:
        theirs.forward_and_backward()
    for name, value in trunk.state_dict().items():
        torch.testing.assert_close(value, ours.models["trunk"].state_dict()[name])


LOSSES_AND_MINERS = {
    "triplet": (losses.TripletMarginLoss(reducer=reducers.MeanReducer()), miners.TripletMarginMiner()),
    "contrastive": (losses.ContrastiveLoss(), miners.PairMarginMiner()),
    "multi-similarity": (losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner()),
    "batch hard": (losses.TripletMarginLoss(), miners.BatchHardMiner()),
    "arcface": (losses.ArcFaceLoss(num_classes=4, embedding_size=8), None),
    "memory": (losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 24), None),
}


@pytest.mark.parametrize("name", LOSSES_AND_MINERS)
def test_ranking_trainer_takes_pml_losses_and_miners(blobs, name):
    loss, miner = LOSSES_AND_MINERS[name]
    trainer = ranking_trainer(
        blobs, loss_funcs={"metric_loss": loss}, mining_funcs={} if miner is None else {"tuple_miner": miner}
    )
    before = weights(trainer)
    trainer.train(num_epochs=1)
    assert trainer.steps_done == 4
    assert math.isfinite(trainer.mean_loss())
    assert not torch.equal(before["5.weight"], weights(trainer)["5.weight"])


def variants(labels):
    """Trainer arguments whose state lives in different places."""
    return {
        "m per class": {},
        "no sampler": {"sampler": None},
        "random sampler": {"sampler": RandomSampler(labels, generator=torch.Generator().manual_seed(7))},
        "float16": {"precision": "float16"},
        "batch sampler": {
            "sampler": UniformTripletSampler(labels, batch_size=12, seed=2),
            "mining_funcs": {"tuple_miner": miners.EmbeddingsAlreadyPackagedAsTriplets()},
        },
        "averaged": {"averaged_decay": 0.9, "gradient_clip": 0.5},
        "memory": {
            "loss_funcs": {"metric_loss": losses.CrossBatchMemory(losses.ContrastiveLoss(), 8, 30)},
            "mining_funcs": {},
        },
        "pml random miner": {"mining_funcs": {"tuple_miner": miners.DistanceWeightedMiner()}},
        "channels last": {"augment": BatchAugment(8, pixel_shift=1, memory_format=torch.channels_last)},
    }


# Under float16 the scaler skips its first steps on purpose, of which torch warns.
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
@pytest.mark.parametrize("name", variants([0, 0, 1, 1]))
def test_state_dict_resumes_to_the_same_bits(blobs, tmp_path, name, stop):
    """Stop after any step, start a new trainer elsewhere, and end at the same weights to the last bit."""

    def build():
        trainer = ranking_trainer(blobs, **variants(blobs.labels)[name])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.optimizers["trunk_optimizer"], T_max=12)
        trainer.lr_schedulers["trunk_scheduler_by_iteration"] = schedule
        return trainer

    whole = build()
    whole.train(num_epochs=3)

    first = build()

    def save(trainer):
        if trainer.steps_done == stop:
            checkpoint.save(tmp_path / "last.pt", trainer.state_dict())
            raise KeyboardInterrupt

    # After a whole epoch the state is taken between epochs, else in the middle of one.
    if stop == first.steps_per_epoch:
        first.end_of_epoch_hook = save
    else:
        first.end_of_iteration_hook = save
    with pytest.raises(KeyboardInterrupt):
        first.train(num_epochs=3)

    torch.rand(7), np.random.random(7)  # noqa: NPY002 - a new process would be elsewhere too
    second = build()
    torch.rand(3), np.random.random(3)  # noqa: NPY002
    second.load_state_dict(checkpoint.load(tmp_path / "last.pt"))
    second.train(num_epochs=3)
    assert second.steps_done == whole.steps_done == 12
    assert_same(weights(whole), weights(second))
    assert whole.mean_loss() == second.mean_loss()
    assert_same(whole.best_weights().state_dict(), second.best_weights().state_dict())


def test_loss_not_finite_stops_with_the_step(blobs):
    class Exploding(DeepRankingLoss):
        calls = 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return super().forward(*args, **kwargs) * (float("nan") if self.calls == 3 else 1.0)

    trainer = ranking_trainer(blobs, loss_funcs={"metric_loss": Exploding(gap=0.2)})
    with pytest.raises(TrainingError, match=r"loss became nan in steps 1 to 3, expected a finite number"):
        trainer.train(num_epochs=2)


def test_loss_not_finite_is_found_by_a_log_between_two_checks(blobs):
    """On a GPU the loss is checked every so many steps; reading its mean in between must not lose a bad one."""
    trainer = ranking_trainer(blobs, sampler=None)
    trainer.check_every = 50
    trainer.loss_sum, trainer.loss_count = torch.tensor(float("inf")), 3
    with pytest.raises(TrainingError, match="loss became inf"):
        trainer.mean_loss()


def test_state_dict_refuses_weights_that_are_not_finite(blobs):
    trainer = ranking_trainer(blobs)
    with torch.no_grad():
        trainer.models["trunk"][5].weight[0, 0] = float("inf")
    with pytest.raises(TrainingError, match=r"trunk\.5\.weight is not finite"):
        trainer.state_dict()


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_precision_gives_float32_embeddings_to_miner_and_loss(blobs, precision):
    dtypes = []

    class Watching(UniformTripletMiner):
        def mine(self, embeddings, *args):
            dtypes.append(embeddings.dtype)
            return super().mine(embeddings, *args)

    trainer = ranking_trainer(
        blobs, precision=precision, mining_funcs={"tuple_miner": Watching(triplets_per_query=2)}, max_steps=2
    )
    inside = []
    trainer.models["trunk"][5].register_forward_hook(lambda _m, _i, output: inside.append(output.dtype))
    trainer.train(num_epochs=1)
    assert set(dtypes) == {torch.float32}
    assert set(inside) == {getattr(torch, precision)}
    assert trainer.models["trunk"][5].weight.dtype == torch.float32


def test_memory_format_of_the_augmentation_reaches_the_trunk(blobs):
    layouts = []
    for wanted in (torch.channels_last, torch.contiguous_format):
        trainer = ranking_trainer(blobs, augment=BatchAugment(8, memory_format=wanted), max_steps=1)
        trainer.models["trunk"][0].register_forward_pre_hook(
            lambda _m, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        trainer.train(num_epochs=1)
    assert layouts == [True, False]


def test_gradient_clip_bounds_the_gradient(blobs):
    trainer = ranking_trainer(blobs, gradient_clip=1e-3, max_steps=1)
    trainer.train(num_epochs=1)
    free = ranking_trainer(blobs, max_steps=1)
    free.train(num_epochs=1)
    assert gradient_norm(free) > 1e-2
    assert gradient_norm(trainer) <= 1e-3 * 1.001


def gradient_norm(trainer):
    return torch.stack([p.grad.norm() for p in trainer.models["trunk"].parameters()]).norm()


def test_averaged_weights_follow_the_closed_form(blobs):
    trainer = ranking_trainer(blobs, averaged_decay=0.5, max_steps=3)
    expected = None

    def follow(t):
        nonlocal expected
        current = t.models["trunk"][5].weight.detach().clone()
        decay = min(0.5, t.steps_done / (9 + t.steps_done))  # the step is counted before the hook
        expected = current if expected is None else decay * expected + (1 - decay) * current

    trainer.end_of_iteration_hook = follow
    trainer.train(num_epochs=1)
    torch.testing.assert_close(trainer.best_weights()[5].weight, expected)


def test_hooks_see_the_losses_and_can_stop(blobs):
    trainer = ranking_trainer(blobs)
    seen = []

    def stop(t):
        seen.append(t.losses["total_loss"])
        return False

    trainer.end_of_epoch_hook = stop
    trainer.train(num_epochs=5)
    assert trainer.epochs_done == 1
    assert isinstance(seen[0], torch.Tensor)  # PML's trainers have put zeros in their place by then


def test_max_steps_ends_in_the_middle_of_an_epoch(blobs):
    trainer = ranking_trainer(blobs, max_steps=6)
    trainer.train(num_epochs=10)
    assert (trainer.steps_done, trainer.epochs_done) == (6, 2)


def test_no_sampler_sees_each_image_once_an_epoch(blobs):
    trainer = ranking_trainer(blobs, sampler=None)
    orders = []
    trainer.end_of_iteration_hook = lambda t: orders.append(t.batches[t.iteration])
    trainer.train(num_epochs=2)
    one, two = torch.cat(orders[:4]), torch.cat(orders[4:])
    assert sorted(one.tolist()) == list(range(48))
    assert sorted(two.tolist()) == list(range(48))
    assert not torch.equal(one, two)


@pytest.mark.parametrize("packaged", [False, True])
def test_sampler_with_a_generator_goes_on_drawing(blobs, packaged):
    """A copy that started each epoch from the same generator state would repeat the first epoch's order."""
    sampler = RandomSampler(blobs, generator=torch.Generator().manual_seed(7))
    trainer = ranking_trainer(blobs, sampler=BatchSampler(sampler, 12, True) if packaged else sampler)
    orders = []
    trainer.end_of_iteration_hook = lambda t: orders.append(t.batches[t.iteration])
    trainer.train(num_epochs=2)
    assert sorted(torch.cat(orders[:4]).tolist()) == list(range(48))
    assert not torch.equal(torch.cat(orders[:4]), torch.cat(orders[4:]))


def test_labels_stay_on_the_cpu_for_the_miner(blobs):
    """The meta device stands in for a GPU."""
    trainer = ranking_trainer(blobs)
    trainer.data_device = torch.device("meta")
    trainer.batches, trainer.iteration = [torch.arange(12)], 0
    images, labels = trainer.get_batch()
    assert (images.device.type, labels.device.type) == ("meta", "cpu")
    assert images.shape == (12, 3, 8, 8)


@pytest.mark.parametrize("mixed", [False, True])
def test_softmax_loss_gets_images_and_labels_on_the_training_device(blobs, mixed):
    """PML's label mapping goes through the CPU and must not end there; the meta device stands in for a GPU."""
    seen = []

    def mix(images, labels):
        seen.append((images.device.type, labels.device.type))
        return images, labels

    trainer = softmax_trainer(blobs, mix=mix if mixed else None)
    trainer.data_device = torch.device("meta")
    trainer.network = nn.Sequential(net(), nn.Linear(8, 4)).to("meta")
    trainer.batches, trainer.iteration = [torch.arange(12)], 0
    trainer.autocast = nullcontext
    trainer.calculate_loss(trainer.get_batch())
    assert trainer.losses["classifier_loss"].device.type == "meta"
    assert seen == [("meta", "meta")] * mixed


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=NEEDS_GPU)])
def test_both_trainers_train_on_a_gpu(blobs, device):
    device = torch.device(device)
    for build in (ranking_trainer, softmax_trainer):
        trainer = build(blobs, data_device=device, precision="bfloat16", averaged_decay=0.9)
        for model in (*trainer.models.values(), trainer.averaged.module):
            model.to(device)
        trainer.train(num_epochs=2)
        assert math.isfinite(trainer.mean_loss())


@pytest.mark.parametrize("name", ["iterations_per_epoch", "collate_fn", "dataloader_num_workers"])
def test_arguments_of_a_loader_are_refused(blobs, name):
    with pytest.raises(ValueError, match=f"{name}: expected nothing"):
        ranking_trainer(blobs, **{name: 3})


def test_pml_tester_works_from_a_hook(blobs):
    """PML's tester takes the trainer's models as it takes those of PML's own trainers."""
    augment = BatchAugment(8)
    dataset = [(augment(image[None], training=False)[0], label) for image, label in blobs]
    tester = GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        accuracy_calculator=RankingAccuracyCalculator(k=5),
    )
    figures = []

    def hook(trainer):
        result = tester.test(
            {"train": dataset}, trainer.epoch, trainer.models["trunk"], trainer.models["embedder"]
        )
        figures.append(result["train"]["precision_at_5_level0"])

    trainer = ranking_trainer(blobs, end_of_epoch_hook=hook)
    trainer.train(num_epochs=2)
    trainer.set_to_eval()
    with torch.no_grad():
        embeddings = trainer.models["trunk"](torch.stack([image for image, _ in dataset]))
    neighbors = nearest(embeddings, embeddings, 5, exclude_self=True)[1]
    assert len(figures) == 2
    assert figures[-1] == pytest.approx(float(precision_at_k(blobs.labels[neighbors], blobs.labels, 5)))


@pytest.mark.parametrize("batch_size", [49, 4800])
def test_batch_larger_than_the_data_is_refused(blobs, batch_size):
    with pytest.raises(
        ValueError, match=rf"48 images and batch size {batch_size}, expected at least one whole batch"
    ):
        ranking_trainer(blobs, sampler=None, batch_size=batch_size)


def test_unknown_precision_is_refused(blobs):
    with pytest.raises(ValueError, match="precision: got 'half', expected one of float32, bfloat16, float16"):
        ranking_trainer(blobs, precision="half")


def softmax_trainer(dataset, **changes):
    checkpoint.seed_everything(3)
    trunk, classifier = net(), nn.Linear(8, 4)
    parameters = [*trunk.parameters(), *classifier.parameters()]
    arguments = {
        "features": trunk,
        "augment": BatchAugment(8),
        "models": {"trunk": trunk, "classifier": classifier},
        "optimizers": {"trunk_optimizer": torch.optim.SGD(parameters, lr=0.05, momentum=0.9)},
        "batch_size": 12,
        "loss_funcs": {"classifier_loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        "dataset": dataset,
        "data_device": torch.device("cpu"),
    }
    return SoftmaxTrainer(**{**arguments, **changes})


def test_softmax_trainer_learns_to_classify(blobs):
    trainer = softmax_trainer(blobs)
    trainer.train(num_epochs=15)
    images, labels = blobs.batch(range(len(blobs)))
    trainer.set_to_eval()
    with torch.no_grad():
        logits = trainer.models["classifier"](trainer.features(trainer.augment(images, training=False)))
    assert (logits.argmax(1) == labels).float().mean() > 0.9


def test_softmax_trainer_takes_soft_labels(blobs):
    """All images mixed into one, all labels into the uniform law: log C, the loss of knowing nothing."""

    def blend(images, labels):
        return images.mean(0, keepdim=True).expand_as(images), torch.full((len(labels), 4), 0.25)

    trainer = softmax_trainer(blobs, mix=blend, max_steps=1)
    nn.init.zeros_(trainer.models["classifier"].weight)
    nn.init.zeros_(trainer.models["classifier"].bias)
    trainer.train(num_epochs=1)
    assert trainer.mean_loss() == pytest.approx(math.log(4), rel=1e-6)
