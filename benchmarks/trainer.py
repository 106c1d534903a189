"""A step of the trainer against a bare PyTorch loop with the same trunk, batches, precision, miner, loss and data,
and against PML's own trainer on the same images and augmentation, B a batch.

Target: at least 0.95 of the bare loop. Random images stand in for a data set: their content costs nothing
either way. PML's MetricLossOnly knows no autocast: it is compared in float32 only. Its loader takes the same images
from memory, without worker processes, which would have to be started at each call.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import torch
from _cases import Case, Sides
from _harness import scratch_folder
from _tables import alone
from pytorch_metric_learning.trainers import MetricLossOnly
from torch import nn
from torch.utils.data import TensorDataset

from dr_plugin.datasets import BatchAugment, PackedImages
from dr_plugin.experiments.ranking import RankingTrainer
from dr_plugin.losses import DeepRankingLoss
from dr_plugin.miners import UniformTripletMiner
from dr_plugin.trunks import DeepRankingTrunk, SmallResNet

BARE, PML = "a bare loop", "PML MetricLossOnly"

FULL = {
    "batch_size": 100,
    "steps": 20,  # in one epoch, the unit that is timed
    "size": 64,
    "precision": "float32",
    "batch_curve": [25, 50, 100, 200],
    "curve_steps": 5,
}
QUICK = {
    "batch_size": 8,
    "steps": 2,
    "size": 32,
    "precision": "float32",
    "batch_curve": [4, 8, 12],
    "curve_steps": 1,
}


class RandomImages:
    """Images without content, 20 classes."""

    def __init__(self, count: int, px: int) -> None:
        self.labels = [index % 20 for index in range(count)]
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, px, px), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.labels[index]


def parts(
    px: int, device: torch.device
) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module, nn.Module, BatchAugment]:
    """Trunk, optimizer, miner, loss and augmentation, alike for both loops."""
    torch.manual_seed(0)
    network = SmallResNet((1, 1, 1, 1), width=32, stem="strided")
    trunk = DeepRankingTrunk(network, embedding_size=128, input_size=px).to(device)
    trunk = trunk.to(memory_format=torch.channels_last)
    augment = BatchAugment(px, pixel_shift=6, horizontal_flip=True, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    return trunk, optimizer, UniformTripletMiner(triplets_per_query=8), DeepRankingLoss(gap=0.2), augment


def bare_loop(data: PackedImages, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """One epoch, written out by hand."""
    trunk, optimizer, miner, loss, augment = parts(data.image_size[0], device)
    generator = torch.Generator().manual_seed(0)
    dtype, pin = getattr(torch, precision), device.type == "cuda"

    def epoch() -> None:
        trunk.train()
        for indices in torch.randperm(len(data), generator=generator).split(batch):
            images, labels = data.batch(indices, pin=pin)  # labels stay: the miner reads them on the CPU
            images = augment(images.to(device, non_blocking=True), generator, training=True)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not torch.float32):
                embeddings = trunk(images)
            embeddings = embeddings.float()
            value = loss(embeddings, labels, miner(embeddings, labels))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()

    return epoch


def our_trainer(data: PackedImages, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """One epoch of the trainer."""
    trunk, optimizer, miner, loss, augment = parts(data.image_size[0], device)
    trainer = RankingTrainer(
        augment=augment,
        precision=precision,
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": optimizer},
        batch_size=batch,
        loss_funcs={"metric_loss": loss},
        mining_funcs={"tuple_miner": miner},
        dataset=data,
        data_device=device,
    )
    return lambda: trainer.train(num_epochs=trainer.epochs_done + 1)


def pml_trainer(data: PackedImages, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """One epoch of PML's trainer."""
    if precision != "float32":
        raise ValueError(f"precision: got {precision}, expected float32: PML's trainer knows no autocast")
    trunk, optimizer, miner, loss, augment = parts(data.image_size[0], device)
    generator = torch.Generator().manual_seed(0)

    def augmented(batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return augment(batch[0].to(device), generator, training=True), batch[1]

    trainer = MetricLossOnly(
        models={"trunk": trunk},
        optimizers={"trunk_optimizer": optimizer},
        batch_size=batch,
        loss_funcs={"metric_loss": loss},
        mining_funcs={"tuple_miner": miner},
        dataset=TensorDataset(*data.batch(torch.arange(len(data)))),
        data_device=device,
        dataloader_num_workers=0,
        data_and_label_getter=augmented,
    )

    def epoch() -> None:
        # Its progress bar goes to standard error, and formats the loss in a way that newer torch warns of.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            trainer.train(num_epochs=1)

    return epoch


@cache
def packed(images: int, px: int) -> PackedImages:
    return PackedImages.build(RandomImages(images, px), scratch_folder())


def sides(against: str, precision: str, *, B: int, steps: int, px: int, device: torch.device) -> Sides:
    arguments = (packed(B * steps, px), B, precision, device)
    theirs = bare_loop if against == BARE else pml_trainer
    return Sides(our_trainer(*arguments), theirs(*arguments), (steps, steps))


def cases(
    *, batch_size: int, steps: int, size: int, precision: str, batch_curve: list[int], curve_steps: int
) -> list[Case]:
    against = (BARE, PML) if precision == "float32" else (BARE,)
    found = [
        Case(
            "trainer",
            f"RankingTrainer, {precision}",
            name,
            partial(sides, name, precision),
            {"B": batch_size, "steps": steps, "px": size},
            unit="step",
        )
        for name in against
    ]
    short = replace(found[-1], sizes={"B": batch_size, "steps": curve_steps, "px": size})
    return found + short.curve("B", batch_curve)


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
