"""Images per second of PackedImages + BatchAugment against torchvision's ImageFolder + DataLoader.

Both sides give shuffled, normalised float32 batches on the device, augmented by the same law:

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --root data/tiny-imagenet-200/train --device cuda

Without --root it measures on JPEG images that it makes in a temporary folder.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from _harness import machine_line, median_ratio, paired, table
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dr_plugin.datasets.augment import IMAGENET_MEAN, IMAGENET_STD, BatchAugment
from dr_plugin.datasets.packed import PackedImages


def make_images(root: Path, classes: int = 20, per_class: int = 200, size: int = 64) -> None:
    """Class folders of smooth random JPEG images."""
    random = np.random.default_rng(0)
    for name in range(classes):
        (root / f"{name:03}").mkdir(parents=True)
        for index in range(per_class):
            image = Image.fromarray(random.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8))
            image.resize((size, size)).save(root / f"{name:03}" / f"{index:04}.jpg", quality=90)


def augmentations(size: int, shift: int) -> dict[str, tuple[BatchAugment, v2.Transform]]:
    """The same augmentation twice, for a batch and for one PIL image; a crop of a padded image is a shift."""
    flip = v2.RandomHorizontalFlip()
    shifted = v2.RandomCrop(size, padding=shift, padding_mode="edge")
    return {
        f"shift {shift}, flip": (
            BatchAugment(size, pixel_shift=shift, horizontal_flip=True),
            v2.Compose([shifted, flip]),
        ),
        "random resized crop, flip": (
            BatchAugment(size, random_resized_crop={}, horizontal_flip=True),
            v2.Compose([v2.RandomResizedCrop(size), flip]),
        ),
    }


def packed_pass(
    packed: PackedImages, augment: BatchAugment, batch_size: int, device: torch.device
) -> Callable[[], None]:
    """One pass over the pack, shuffled anew at each call."""
    generator = torch.Generator().manual_seed(0)
    pin = device.type == "cuda"

    def run() -> None:
        for indices in torch.randperm(len(packed), generator=generator).split(batch_size):
            images, labels = packed.batch(indices, pin=pin)
            images, labels = (x.to(device, non_blocking=True) for x in (images, labels))
            augment(images, generator, training=True)

    return run


def loader_pass(
    folder: ImageFolder,
    indices: list[int],
    transform: v2.Transform,
    args: argparse.Namespace,
    device: torch.device,
) -> Callable[[], None]:
    """One pass over the same images through a DataLoader whose workers stay alive between passes."""
    to_float = [
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    dataset = ImageFolder(folder.root, transform=v2.Compose([transform, *to_float]))
    loader = DataLoader(
        Subset(dataset, indices),
        args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        persistent_workers=args.workers > 0,
        pin_memory=device.type == "cuda",
    )

    def run() -> None:
        for images, labels in loader:
            for x in (images, labels):
                x.to(device, non_blocking=True)

    return run


def measure(root: Path, args: argparse.Namespace, device: torch.device) -> None:
    folder = ImageFolder(str(root))
    generator = torch.Generator().manual_seed(0)
    indices = torch.randperm(len(folder), generator=generator)[: args.images].tolist()
    with tempfile.TemporaryDirectory() as cache:
        start = time.perf_counter()
        packed = PackedImages.build(folder, cache, size=args.size, indices=indices)
        built = time.perf_counter() - start
        start = time.perf_counter()
        PackedImages.build(folder, cache, size=args.size, indices=indices)
        reused = time.perf_counter() - start
        count, rows = len(packed), []
        for name, (augment, transform) in augmentations(args.size, args.shift).items():
            sides = {
                "packed": packed_pass(packed, augment, args.batch_size, device),
                "loader": loader_pass(folder, indices, transform, args, device),
            }
            seconds = paired(sides, repeats=args.repeats)
            speed = {side: count / statistics.median(taken) for side, taken in seconds.items()}
            ratio = median_ratio(seconds["loader"], seconds["packed"])
            rows.append((name, f"{speed['packed']:,.0f}", f"{speed['loader']:,.0f}", f"{ratio:.1f}"))
    loader = f"ImageFolder + DataLoader({args.workers} workers)"
    print(machine_line())
    print(f"{count} images of {args.size} px, batches of {args.batch_size} on {device}")
    print(f"packing them once: {built:.1f} s; finding the pack up to date: {reused:.2f} s\n")
    print(
        table(rows, ["augmentation", "PackedImages + BatchAugment, images/s", f"{loader}, images/s", "ratio"])
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="a folder of class folders (default: made for the purpose)")
    parser.add_argument("--images", type=int, default=4096, help="how many images a pass takes")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--shift", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2, help="of the DataLoader")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    if args.root is not None:
        measure(args.root, args, device)
        return
    with tempfile.TemporaryDirectory() as root:
        make_images(Path(root))
        measure(Path(root), args, device)


if __name__ == "__main__":
    main()
