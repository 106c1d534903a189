"""The images that a search ranks: a run's own images, or a folder of any images."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from dr_plugin.datasets import PackedImages
from dr_plugin.datasets.base import open_rgb
from dr_plugin.datasets.packing import Indices, Pixels, checked_indices, pixels_of, rgb_image
from dr_plugin.experiments import build
from dr_plugin.experiments.cache import packed_folder
from dr_plugin.experiments.data import Progress, kept_classes
from dr_plugin.experiments.recipe import Recipe
from dr_plugin.experiments.unseen import unseen_images
from dr_plugin.relevance.image_rows import ImageBatches

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class FileImages:
    """Image files of any sizes as square uint8 images, decoded when they are asked for.

    A file that cannot be decoded gives a black image and an entry in `unreadable`.

    Args:
        files: The files.
        size: Side S: the shorter side is resized to it and the centre cropped.
    Attributes:
        unreadable: Index -> why it cannot be decoded; of the files that were asked for so far.
    """

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = files, size
        self.unreadable: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """The images (n, 3, S, S) uint8 at these indices, and a label 0 each."""
        chosen = checked_indices(indices, len(self)).tolist()
        images = np.zeros((len(chosen), 3, self.size, self.size), np.uint8)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for row, pixels in enumerate(pool.map(self._decode, chosen)):
                if pixels is not None:
                    images[row] = pixels
        return torch.from_numpy(images), torch.zeros(len(chosen), dtype=torch.long)

    def _decode(self, index: int) -> Pixels | None:
        try:
            return fitted(open_rgb(str(self.files[index])), (self.size, self.size))
        except Exception as error:  # decoders raise what they like; the file is named to the user
            self.unreadable[index] = str(error) or type(error).__name__
            return None


@dataclass(frozen=True)
class Gallery:
    """Images to search in.

    Args:
        key: Names what is kept of the gallery; galleries from different places have different ones.
        fingerprint: Changes when an image is added, removed or changed.
        names: One an image; for files their path below the gallery's folder.
        images: The images as the model takes them, (H, W) all.
        image_size: H, W.
        classes: The class's name of each image, where there are classes.
        files: The file of each image, where there are files.
    """

    key: str
    fingerprint: str
    names: list[str]
    images: ImageBatches
    image_size: tuple[int, int]
    classes: list[str] | None = None
    files: list[Path] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def places(self) -> dict[str, int]:
        """Name -> index."""
        return {name: index for index, name in enumerate(self.names)}

    def pixels(self, index: int) -> Pixels:
        """One image as the model takes it, (3, H, W).

        Raises:
            ValueError: if it cannot be decoded.
        """
        pixels: Pixels = self.images.batch([index])[0][0].numpy()
        if index in (unreadable := self.unreadable):
            raise ValueError(f"{self.names[index]}: got an unreadable image ({unreadable[index]})")
        return pixels

    @property
    def unreadable(self) -> dict[int, str]:
        """Index -> why the image cannot be decoded, of those asked for so far."""
        return self.images.unreadable if isinstance(self.images, FileImages) else {}

    def thumbnail(self, index: int, side: int) -> Image.Image:
        """The image for people: from its file where that is at hand, else from the model's pixels."""
        if self.files is not None and self.files[index].is_file():
            return thumbnail(self.files[index], side)
        return Image.fromarray(self.pixels(index).transpose(1, 2, 0))


def folder_gallery(folder: Path, size: int, *, leave_out: Path | None = None) -> Gallery:
    """All images below ``folder``, by their path; names that start with a dot are left out.

    Args:
        folder: Looked through at any depth, links to folders apart.
        size: Side of the square images that the model takes.
        leave_out: A folder not to look into, such as where the search writes its pictures.
    Raises:
        ValueError: if the folder is not there or holds no image.
    """
    if not folder.is_dir():
        raise ValueError(f"gallery: got {folder}, expected an existing folder of images")
    files = _image_files(folder, leave_out)
    if not files:
        raise ValueError(
            f"gallery: got {folder} without an image, expected files that end in {', '.join(SUFFIXES)}"
        )
    names = [file.relative_to(folder).as_posix() for file in files]
    digest = hashlib.sha256()
    for name, file in zip(names, files, strict=True):
        stat = file.stat()
        digest.update(b"%s\0%d\0%d\0" % (os.fsencode(name), stat.st_size, stat.st_mtime_ns))
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    key = f"{re.sub(r'[^A-Za-z0-9_.]+', '_', folder.resolve().name)[:40] or 'root'}-{place}"
    images = FileImages(files, size)
    return Gallery(key, digest.hexdigest(), names, images, (size, size), files=files)


def run_gallery(recipe: Recipe, progress: Progress | None = None) -> Gallery:
    """The images of a run, packed as for it.

    These are the training images, those of the selection among them; of a run with ``evaluation.gallery: val``, whose
    model is for classes that it was not trained on, all images of those classes.

    Raises:
        ValueError: if the recipe's data are not there (any more).
    """
    source: Any = build.build_dataset(recipe, "train", progress)
    kept, split = kept_classes(recipe, source.class_ids), "train"
    if recipe.evaluation.gallery == "val":
        split = "val"
        source, kept = unseen_images(recipe, source, build.build_dataset(recipe, split, progress), kept)
    indices = np.flatnonzero(np.isin(source.labels, kept))
    folder, size = packed_folder(recipe, split), recipe.data.packed_size
    packed = PackedImages.build(source, folder, size=size, indices=indices, progress=progress)
    packed = packed.select_classes(kept)
    digest = hashlib.sha256((packed.folder / "meta.json").read_bytes())
    digest.update(json.dumps(packed.class_ids).encode())
    classes = [packed.class_names[label] for label in packed.labels.tolist()]
    names, files = [str(index) for index in range(len(packed))], None
    if getattr(source, "paths", None) is not None:
        paths = [os.fspath(source.paths[index]) for index in indices.tolist()]
        common = os.path.commonpath({os.path.dirname(path) for path in paths})
        names = [Path(os.path.relpath(path, common)).as_posix() for path in paths]
        files = [Path(path) for path in paths]
    return Gallery(split, digest.hexdigest(), names, packed, packed.image_size, classes, files)


def thumbnail(path: Path, side: int) -> Image.Image:
    """An image file as RGB, upright, within side x side pixels; large JPEGs are decoded at a fraction of their size."""
    with Image.open(path) as image:
        image.draft("RGB", (2 * side, 2 * side))
        small = rgb_image(ImageOps.exif_transpose(image))
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def fitted(image: Image.Image, image_size: tuple[int, int]) -> Pixels:
    """The image's pixels (3, H, W), resized to cover them, its centre cropped; as `PackedImages` does where H = W."""
    height, width = image_size
    if height == width:
        return pixels_of(image, height)
    return pixels_of(ImageOps.fit(rgb_image(image), (width, height), Image.Resampling.BILINEAR), None)


def _image_files(folder: Path, leave_out: Path | None) -> list[Path]:
    left_out = None if leave_out is None else leave_out.resolve()
    found = []
    for where, folders, names in os.walk(folder, onerror=_raise):
        here = Path(where)
        folders[:] = [
            name for name in folders if not name.startswith(".") and (here / name).resolve() != left_out
        ]
        found += [
            here / name
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and (here / name).is_file()
        ]
    return sorted(found)


def _raise(error: OSError) -> None:
    raise error
