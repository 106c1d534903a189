"""Batches of PackedImages + BatchAugment against torchvision's ImageFolder + v2 transforms + DataLoader, and packing
once against one pass of these. Both sides give shuffled, normalised float32 batches on the device, augmented by the
same law:

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --root data/tiny-imagenet-200/train --device cuda

Without --root it measures on JPEG images that it makes in a temporary folder.
"""

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from _cases import Case, Sides
from _harness import scratch_folder
from _tables import alone
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dr_plugin.datasets.augment import IMAGENET_MEAN, IMAGENET_STD, BatchAugment
from dr_plugin.datasets.packed import PackedImages

CLASSES = 20
SHIFT, CROP = "pixel shift, flip", "random resized crop, flip"

FULL = {
    "images": 4096,
    "size": 64,
    "shift": 6,
    "batch_size": 512,
    "workers": min(16, os.cpu_count() or 1),
    "root": "",
    "image_curve": [512, 1024, 2048, 4096],
}
QUICK = {
    "images": 40,
    "size": 16,
    "shift": 2,
    "batch_size": 20,
    "workers": 0,
    "root": "",
    "image_curve": [20, 40, 60],
}


@cache
def made_images(count: int, size: int) -> Path:
    """Class folders of smooth random JPEG images."""
    root, random = scratch_folder(), np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"{label:03}").mkdir()
    for index in range(count):
        image = Image.fromarray(random.integers(0, 256, (size // 4, size // 4, 3), dtype=np.uint8))
        image.resize((size, size)).save(root / f"{index % CLASSES:03}" / f"{index:06}.jpg", quality=90)
    return root


def images_of(root: str, count: int, size: int) -> tuple[ImageFolder, list[int]]:
    """A folder of class folders, and which images of it are taken."""
    folder = ImageFolder(root or str(made_images(count, size)))
    if len(folder) < count:
        raise ValueError(f"root: got {len(folder)} images, expected at least {count}; lower --images")
    return folder, torch.randperm(len(folder), generator=torch.Generator().manual_seed(0))[:count].tolist()


@cache
def packed_images(root: str, count: int, size: int) -> PackedImages:
    folder, indices = images_of(root, count, size)
    return PackedImages.build(folder, scratch_folder(), size=size, indices=indices)


def augmentations(name: str, size: int, shift: int) -> tuple[BatchAugment, v2.Transform]:
    """The same augmentation twice, for a batch and for one PIL image; a crop of a padded image is a shift."""
    flip = v2.RandomHorizontalFlip()
    if name == SHIFT:
        shifted = v2.RandomCrop(size, padding=shift, padding_mode="edge")
        return BatchAugment(size, pixel_shift=shift, horizontal_flip=True), v2.Compose([shifted, flip])
    cropped = v2.RandomResizedCrop(size)
    return BatchAugment(size, random_resized_crop={}, horizontal_flip=True), v2.Compose([cropped, flip])


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
    batch_size: int,
    workers: int,
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
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )

    def run() -> None:
        for images, labels in loader:
            for x in (images, labels):
                x.to(device, non_blocking=True)

    return run


def sides(
    what: str,
    root: str,
    unit: str,
    *,
    N: int,
    px: int,
    shift: int,
    B: int,
    workers: int,
    device: torch.device,
) -> Sides:
    """A pass over N images with one of the augmentations, or packing them."""
    folder, indices = images_of(root, N, px)
    amounts = (N, N) if unit == "image" else (1, 1)
    augment, transform = augmentations(CROP if what == CROP else SHIFT, px, shift)
    theirs = loader_pass(folder, indices, transform, B, workers, device)
    if what in (SHIFT, CROP):
        return Sides(packed_pass(packed_images(root, N, px), augment, B, device), theirs, amounts)

    def pack() -> None:
        with tempfile.TemporaryDirectory() as cache:
            PackedImages.build(folder, cache, size=px, indices=indices)

    return Sides(pack, theirs, amounts)


def cases(
    *, images: int, size: int, shift: int, batch_size: int, workers: int, root: str, image_curve: list[int]
) -> list[Case]:
    sizes = {"N": images, "px": size, "shift": shift, "B": batch_size, "workers": workers}

    def case(what: str, name: str, against: str, unit: str = "image") -> Case:
        return Case("data pipeline", name, against, partial(sides, what, root, unit), sizes, unit=unit)

    loader, ours = "ImageFolder + v2 + DataLoader", "PackedImages + BatchAugment"
    found = [case(what, f"{ours}, {what}", loader) for what in (SHIFT, CROP)]
    packing = case("packing", "PackedImages.build, once", f"{loader}, one pass")
    growing = case(SHIFT, found[0].what, loader, "pass")
    return [*found, packing, *growing.curve("N", image_curve)]


if __name__ == "__main__":
    alone(__doc__, cases, FULL, QUICK)
