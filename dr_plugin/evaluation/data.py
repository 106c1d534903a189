"""What a model is measured on: labelled images, or rated triplets."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dr_plugin import datasets
from dr_plugin.datasets import Digits, PackedImages, SimilarityTriplets
from dr_plugin.experiments.cache import cache_root, short_hash
from dr_plugin.experiments.problems import nearest

Progress = Callable[[str, int, int | None], None]

_TRIPLET_FILES = ("triplets.csv", "query_and_triplets.txt")
_NAMES = ("TinyImageNet", "ClassFolders", "Digits", "SimilarityTriplets")


@dataclass(frozen=True)
class LabelledData:
    """Images with classes: each image of `query` (val) ranks `gallery` (train).

    Attributes:
        identity: Tells data sets apart, in a folder's name.
    """

    name: str
    query: PackedImages
    gallery: PackedImages
    identity: str


@dataclass(frozen=True)
class RatedData:
    """Images, and triplets of them that people ranked.

    Attributes:
        images: N images; the whole of each, squeezed to a square.
        triplets: (T, 3) long, query, positive and negative.
        text_queries: (T,) what each triplet's images were found by: the pool of its query.
        groups: (T,) triplets that share a text query or an image, and so are no independent votes.
        degenerate: Indices of triplets in which two of the three are one image.
        counts: What the data set says of itself.
    """

    name: str
    images: PackedImages
    triplets: Tensor
    text_queries: list[str]
    groups: Tensor
    degenerate: Tensor
    counts: dict[str, int]


def open_data(
    spec: str,
    *,
    image_size: int,
    cache: str | None = None,
    images: Path | None = None,
    skip_missing: bool = False,
    progress: Progress | None = None,
) -> LabelledData | RatedData:
    """The data set that ``spec`` names, its images packed at S x S pixels.

    Args:
        spec: ``Name:root`` with one of our data sets' names (``Digits`` needs no root); or a path: a file of triplets
            (.csv, .txt), a folder that holds one (``triplets.csv``, ``query_and_triplets.txt``), that holds
            ``tiny-imagenet-200/`` or is it, or a folder of class folders.
        image_size: S.
        cache: Where packed images are kept; the user's cache where not given.
        images: The folder of a triplet file's images, where they do not lie beside it.
        skip_missing: Leave out triplets whose images are not there; the data's counts tell how many.
        progress: Called as progress(task, done, total).
    Raises:
        ValueError: if there is no such data set, or from the data set itself.
    """
    name, root = _named(spec)
    if name == "SimilarityTriplets":
        file = Path(root)
        folder, triplets = (file.parent, file) if file.is_file() else (file, None)
        missing: Literal["skip", "raise"] = "skip" if skip_missing else "raise"
        source = SimilarityTriplets(
            folder, triplets=triplets, images=images, missing=missing, progress=progress
        )
        return rated_data(source, image_size=image_size, cache=cache, progress=progress)
    if images is not None or skip_missing:
        raise ValueError(f"images, skip_missing: got them for {name}, expected them with triplets alone")
    splits = [
        Digits(split=split) if name == "Digits" else getattr(datasets, name)(root, split=split)
        for split in ("val", "train")
    ]
    place = "" if name == "Digits" else str(Path(root).expanduser().resolve())
    identity = f"{name}-{short_hash([place, image_size])}"
    query, gallery = (
        PackedImages.build(
            source, cache_root(cache, "packed") / f"{identity}-{split}", size=image_size, progress=progress
        )
        for split, source in zip(("val", "train"), splits, strict=True)
    )
    return LabelledData(name, query, gallery, identity)


def rated_data(
    source: SimilarityTriplets,
    *,
    image_size: int,
    cache: str | None = None,
    progress: Progress | None = None,
) -> RatedData:
    """A data set of triplets, its images packed at S x S pixels; arguments as of `open_data`."""
    identity = short_hash([[str(Path(path).resolve()) for path in source.paths], image_size])
    folder = cache_root(cache, "packed") / f"SimilarityTriplets-{identity}"
    images = source.pack(folder, size=image_size, progress=progress)
    return RatedData(
        name="SimilarityTriplets",
        images=images,
        triplets=torch.from_numpy(np.ascontiguousarray(source.triplets)),
        text_queries=list(source.text_queries),
        groups=torch.from_numpy(source.groups),
        degenerate=torch.from_numpy(source.degenerate),
        counts=source.counts,
    )


def _named(spec: str) -> tuple[str, str]:
    """The data set's name and root."""
    name, _, root = spec.partition(":")
    if name in _NAMES:
        if (root == "") != (name == "Digits"):
            wanted = "no root" if name == "Digits" else f"its folder, as {name}:data"
            raise ValueError(f"data set: got {spec!r}, expected {wanted}")
        return name, root
    path = Path(spec).expanduser()
    if not path.exists():
        raise ValueError(
            f"data set: got {spec!r}, expected a folder, a file of triplets, or one of "
            f"{', '.join(_NAMES)} as Name:root{nearest(name, list(_NAMES))}"
        )
    if path.is_file() or any((path / file).is_file() for file in _TRIPLET_FILES):
        return "SimilarityTriplets", str(path)
    if path.name == "tiny-imagenet-200":
        return "TinyImageNet", str(path.parent)
    if (path / "tiny-imagenet-200").is_dir():
        return "TinyImageNet", str(path)
    return "ClassFolders", str(path)


def balanced_sample(labels: Sequence[int], count: int | None, seed: int) -> npt.NDArray[np.int64]:
    """Indices of `count` images, all classes as equally as may be, drawn from the seed; all where there are not more.

    Shape:
        (N,) -> (min(count, N),), ascending.
    """
    classes = np.unique(labels, return_inverse=True)[1]
    order = np.random.default_rng(seed).permutation(len(classes))
    by_class = order[np.argsort(classes[order], kind="stable")]
    sizes = np.bincount(classes)
    place = np.empty(len(classes), np.int64)  # of each image among those of its class, in the drawn order
    place[by_class] = np.arange(len(classes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[np.argsort(place[order], kind="stable")[:count]])
