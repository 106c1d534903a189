"""Labelled images with relevances written as WebDataset tar shards."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from webdataset import TarWriter

from dr_plugin.atomic import locked, replacing, write_json
from dr_plugin.checks import check_path, check_seed, check_whole, shown
from dr_plugin.triplets import Relevance

from .shard_contents import BatchSource, Contents
from .shard_reader import FORMAT, META, Meta, read_meta

Progress = Callable[[str, int, int | None], None]


def write_shards(
    images: npt.NDArray[np.uint8] | Tensor | BatchSource | Sequence[str | os.PathLike[str]],
    labels: Sequence[int] | npt.NDArray[np.integer[Any]] | Tensor,
    folder: str | os.PathLike[str],
    *,
    relevance: Relevance | None = None,
    features: npt.NDArray[Any] | None = None,
    images_per_shard: int = 1000,
    pattern: str = "images-{:06d}.tar",
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Write images, labels and relevances as WebDataset tar shards for `TripletStream`; gives the shards' paths.

    A sample is `<index>.png` (lossless; the file's own bytes and suffix where `images` are paths), `.cls` (the label),
    `.json` ({"relevance": r_i}, where a relevance is given) and `.npy` (the feature, where features are given). The
    images are shuffled over all shards, as a stream that comes class by class would fill one buffer at a time.

    - Each shard is renamed into place when it is whole; `meta.json`, which lists them, is written last. A folder
      without it is not taken for a whole set. Shards that an older meta.json lists are replaced or removed.
    - The same arguments give the same bytes. Shards that were written from the same images (their bytes; of files,
      path, size and modification time), labels, relevances, features and arguments are left as they are.

    Args:
        images: An array, or what has `batch(indices)`, or paths of image files, or a data set with `paths`.
        labels: The images' classes; any integers.
        folder: Where to; made if it is not there.
        relevance: Over these images, in their order; r_i of eq. (6) is what is stored. None: shards for
            `weighting="uniform"`.
        features: One a image, for the relevance of pairs; finite numbers of any type.
        images_per_shard: At least 1. A stream needs at least ranks x loader workers shards.
        pattern: A file name with one replacement field for the shard's number.
        seed: Of the order, at least 0.
        progress: Called as progress("writing shards", done, total).
    Shape:
        images (N, 3, H, W) uint8, labels (N,), relevance of length N, features (N, F).
    Raises:
        ValueError: if lengths differ, a relevance or feature is not a finite number, a relevance is negative, or
            another argument is out of range.
    Example:
        >>> shards = write_shards(packed, packed.labels, "shards", relevance=golden)  # doctest: +SKIP
    """
    images_per_shard = check_whole("images_per_shard", images_per_shard, minimum=1)
    seed = check_seed(seed)
    folder = check_path("folder", folder)
    contents = Contents.of(images, labels, relevance, features)
    names = [_shard_name(pattern, number) for number in range(-(-len(contents) // images_per_shard))]
    if len(set(names)) < len(names):
        raise ValueError(f"pattern: got {pattern!r}, expected a field for the number: 'images-{{:06d}}.tar'")
    paths = [folder / name for name in names]
    fingerprint = contents.fingerprint((FORMAT, names, images_per_shard, seed))
    with locked(folder):  # another process may be at it
        _write_shards(folder, names, fingerprint, contents, images_per_shard, seed, progress)
    return paths


def _write_shards(
    folder: Path,
    names: Sequence[str],
    fingerprint: str,
    contents: Contents,
    images_per_shard: int,
    seed: int,
    progress: Progress | None,
) -> None:
    """Write them all and then meta.json, unless they are there."""
    old = read_meta(folder)
    if old is not None and old["fingerprint"] == fingerprint and _whole(folder, old):
        return
    (folder / META).unlink(missing_ok=True)
    order = np.random.default_rng(seed).permutation(len(contents))
    meta = Meta(format=FORMAT, fingerprint=fingerprint, images=len(order), shards=[])
    for number, name in enumerate(names):
        members = order[number * images_per_shard : (number + 1) * images_per_shard]
        _write_shard(folder / name, contents.samples(members))
        size = (folder / name).stat().st_size
        meta["shards"].append({"name": name, "images": len(members), "bytes": size})
        if progress is not None:
            progress("writing shards", number * images_per_shard + len(members), len(order))
    write_json(folder / META, meta)
    for shard in old["shards"] if old is not None else []:
        if shard["name"] not in names:
            (folder / shard["name"]).unlink(missing_ok=True)


def _whole(folder: Path, meta: Meta) -> bool:
    """Whether every shard is there, as long as it was."""
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    return all(sizes.get(shard["name"]) == shard["bytes"] for shard in meta["shards"])


def _write_shard(path: Path, samples: Iterator[dict[str, str | bytes]]) -> None:
    """Write one shard; no time, no user and no group, so that runs agree."""

    with (
        replacing(path) as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="", compress=False) as tar,
    ):
        for sample in samples:
            tar.write(sample)


def _shard_name(pattern: str, number: int) -> str:
    if not isinstance(pattern, str):
        raise ValueError(f"pattern: got {shown(pattern)}, expected one like 'images-{{:06d}}.tar'")
    try:
        name = pattern.format(number)
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"pattern: got {pattern!r} ({error}), expected one like 'images-{{:06d}}.tar'"
        ) from error
    if Path(name).name != name or not name.endswith(".tar"):
        raise ValueError(f"pattern: got {pattern!r}, expected a file name that ends in .tar")
    return name
