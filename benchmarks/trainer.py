"""Images/s of the trainer against a bare PyTorch loop with the same trunk, batches, precision, miner, loss and data.

    python benchmarks/trainer.py [--steps 20] [--repeats 5]

Target: at least 0.95. Random 64 px images stand in for a data set: their content costs nothing either way.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable

import torch
from _harness import machine_line, median_ratio, paired, table
from torch import nn

from dr_plugin.datasets import BatchAugment, PackedImages
from dr_plugin.experiments.ranking import RankingTrainer
from dr_plugin.losses import DeepRankingLoss
from dr_plugin.miners import UniformTripletMiner
from dr_plugin.trunks import DeepRankingTrunk, SmallResNet


class RandomImages:
    """64 px images without content, 20 classes."""

    def __init__(self, count: int) -> None:
        self.labels = [index % 20 for index in range(count)]
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index], self.labels[index]


def parts(
    device: torch.device,
) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module, nn.Module, BatchAugment]:
    """Trunk, optimizer, miner, loss and augmentation, alike for both loops."""
    torch.manual_seed(0)
    network = SmallResNet((1, 1, 1, 1), width=32, stem="strided")
    trunk = DeepRankingTrunk(network, embedding_size=128, input_size=64).to(device)
    trunk = trunk.to(memory_format=torch.channels_last)
    augment = BatchAugment(64, pixel_shift=6, horizontal_flip=True, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(trunk.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    return trunk, optimizer, UniformTripletMiner(triplets_per_query=8), DeepRankingLoss(gap=0.2), augment


def bare_loop(data: PackedImages, batch: int, precision: str, device: torch.device) -> Callable[[], None]:
    """One epoch, written out by hand."""
    trunk, optimizer, miner, loss, augment = parts(device)
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, precision)

    def epoch() -> None:
        trunk.train()
        for indices in torch.randperm(len(data), generator=generator).split(batch):
            images, labels = data.batch(indices)
            images = augment(images.to(device), generator, training=True)
            labels = labels.to(device)
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
    trunk, optimizer, miner, loss, augment = parts(device)
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


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20, help="steps in one epoch, the unit that is timed")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    images = options.batch * options.steps
    with tempfile.TemporaryDirectory() as folder:
        data = PackedImages.build(RandomImages(images), folder)
        arguments = (data, options.batch, options.precision, device)
        seconds = paired(
            {"bare loop": bare_loop(*arguments), "trainer": our_trainer(*arguments)}, options.repeats
        )
    rows = [[name, f"{images / statistics.median(times):.0f}"] for name, times in seconds.items()]
    print(machine_line(), f"batch {options.batch}, {options.precision}", sep="\n", end="\n\n")
    print(table(rows, ["loop", "images/s (median)"]))
    ratio = median_ratio(seconds["bare loop"], seconds["trainer"])
    print(f"\ntrainer / bare loop, images/s: {ratio:.3f} (target: at least 0.95)")


if __name__ == "__main__":
    main()
