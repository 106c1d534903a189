"""WebDataset tar shards: which files are meant, whether they are whole, and their samples one by one."""

import glob
import io
import json
import lzma
import math
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt
from webdataset.shardlists import expand_urls
from webdataset.tariterators import group_by_keys

FORMAT = 1  # of meta.json
META = "meta.json"
IMAGE_SUFFIXES = frozenset({"png", "jpg", "jpeg", "webp", "bmp", "gif", "ppm", "tif", "tiff"})

_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError)
_BLOCK = tarfile.BLOCKSIZE
_NO_SAMPLE = r"__[^/]*__($|/)"  # WebDataset keeps such names for itself


class ShardMeta(TypedDict):
    """What meta.json says of one shard."""

    name: str
    images: int
    bytes: int


class Meta(TypedDict):
    """What meta.json holds."""

    format: int
    fingerprint: str  # of what the shards were written from
    images: int
    shards: list[ShardMeta]


class Sample(NamedTuple):
    """One image of a stream, encoded."""

    name: str  # what an error calls it
    image: Any  # bytes; of a sample that another process has read, only how many (`shared_samples.Elsewhere`)
    label: int
    relevance: float | None
    feature: npt.NDArray[Any] | None


class BadSample(ValueError):
    """Why an image cannot be used; `name` is what it is called."""

    def __init__(self, name: str, reason: object) -> None:
        super().__init__(f"{name}: {reason}")
        self.name, self._reason = name, str(reason)

    def __reduce__(self) -> tuple[type["BadSample"], tuple[str, str]]:
        return BadSample, (self.name, self._reason)


Samples = Callable[[], Iterator[Sample | BadSample]]  # one pass over a stream


def find_shards(source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The shards that are meant, each checked to be there and not cut short.

    Args:
        source: A folder that `write_shards` wrote, a pattern (braces as WebDataset's, or `*`, `?`, `[]`), or a list.
    Raises:
        ValueError: if there is none, one is not there or was cut short, or one is named twice.
    """
    if isinstance(source, str | os.PathLike):
        shards = _of_folder(Path(source)) if os.path.isdir(source) else _of_pattern(os.fspath(source))
    else:
        shards = [Path(shard) for shard in source]
    if not shards:
        raise ValueError(f"source: got {str(source)!r}, which names no shard, expected at least one")
    if len(set(shards)) < len(shards):
        raise ValueError("source: got a shard twice, expected each once")
    for shard in shards:
        _check_end(shard)
    return shards


def count_images(shards: Sequence[Path]) -> int | None:
    """How many samples the shards hold, where the meta.json beside them says so; else None."""
    known: dict[Path, int] = {}
    for folder in {shard.parent for shard in shards}:
        if (meta := read_meta(folder)) is not None:
            known |= {folder / shard["name"]: shard["images"] for shard in meta["shards"]}
    return sum(known[shard] for shard in shards) if known.keys() >= set(shards) else None


def read_meta(folder: Path) -> Meta | None:
    """The folder's meta.json, where it has one of ours."""
    try:
        meta: Meta = json.loads((folder / META).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{folder / META}: got no JSON ({error}): write the shards again") from error
    ours = isinstance(meta, dict) and meta.get("format") == FORMAT and meta.keys() >= Meta.__required_keys__
    return meta if ours else None


def read_shard(shard: Path) -> Iterator[Sample | BadSample]:
    """Every sample in order, or what is wrong with it; nothing is decoded.

    Raises:
        ValueError: if the archive is broken or cut short, wherever that is: what it would have held is unknown, so
            it does not pass for a bad image.
    """

    def refuse(error: Exception) -> bool:
        raise ValueError(
            f"{shard}: {error.args[0]}: expected each file once; write this shard again"
        ) from error

    for sample in group_by_keys(_members(shard), handler=refuse):
        yield _parse(f"{shard.name}: {sample['__key__']}", sample)


def _members(shard: Path) -> Iterator[dict[str, Any]]:
    """The archive's files, as WebDataset's grouping takes them.

    Differs from WebDataset's own reader in: tarfile takes a damaged header for the archive's end and says nothing,
    so that the rest of a shard would be missing in silence; here it is an error.
    """
    last = "its start"
    try:
        with tarfile.open(shard) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # or it keeps every header
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None and not re.match(_NO_SAMPLE, member.name):
                    yield {"fname": member.name, "data": content.read(), "__url__": str(shard)}
                last = member.name
            file = tar.fileobj
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError("a damaged header")
    except _BROKEN as error:
        raise ValueError(
            f"{shard}: broken after {last} ({error}): write or fetch this shard again"
        ) from error


def _parse(name: str, sample: dict[str, Any]) -> Sample | BadSample:
    """What a sample holds, or what is wrong with it."""
    try:
        images = [suffix for suffix in sample if suffix in IMAGE_SUFFIXES]
        if len(images) != 1:
            raise ValueError(f"got {len(images)} images, expected one file with the suffix .png, .jpg, ...")
        if "cls" not in sample:
            raise ValueError("got no label, expected a .cls file")
        relevance = json.loads(sample["json"])["relevance"] if "json" in sample else None
        feature = None
        if "npy" in sample:
            feature = np.load(io.BytesIO(sample["npy"]), allow_pickle=False)
        return checked_sample(name, sample[images[0]], int(sample["cls"]), relevance, feature)
    except (ValueError, KeyError, TypeError, EOFError) as error:
        return BadSample(name, error)


def checked_sample(name: str, image: bytes, label: int, relevance: Any, feature: Any) -> Sample:
    """The sample, its numbers checked; ValueError says what is wrong with them."""
    if not -(2**63) <= label < 2**63:
        raise ValueError(f"got label {label}, expected one of 64 bits")
    if relevance is not None:
        number = isinstance(relevance, int | float | np.number) and not isinstance(relevance, bool)
        if not number or not (math.isfinite(relevance) and relevance >= 0):
            raise ValueError(f"got relevance {relevance!r}, expected a finite number, at least 0")
        relevance = float(relevance)
    if feature is not None:
        feature = np.asarray(feature)
        if feature.ndim != 1 or feature.dtype.kind not in "fiu" or not np.isfinite(feature).all():
            raise ValueError(f"got a feature {feature.dtype} {feature.shape}, expected (F,) finite numbers")
    return Sample(name, image, label, relevance, feature)


def _of_folder(folder: Path) -> list[Path]:
    meta = read_meta(folder)
    if meta is None:
        raise ValueError(
            f"source: got the folder {folder} without a whole {META}: write_shards writes it last; or give a pattern"
        )
    for shard in meta["shards"]:
        path = folder / shard["name"]
        if path.exists() and path.stat().st_size != shard["bytes"]:
            raise ValueError(
                f"{path}: got {path.stat().st_size} bytes, expected {shard['bytes']}: fetch it again"
            )
    return [folder / shard["name"] for shard in meta["shards"]]


def _of_pattern(pattern: str) -> list[Path]:
    if "://" in pattern or pattern.startswith("pipe:"):
        raise ValueError(
            f"source: got {pattern!r}, expected local files; for others pass a callable that reads them, "
            "for example with webdataset.WebDataset"
        )
    shards: list[Path] = []
    for name in expand_urls(pattern):
        shards += sorted(map(Path, glob.glob(name))) if glob.has_magic(name) else [Path(name)]
    return shards


def _check_end(shard: Path) -> None:
    """ValueError unless the file is there and, where it is not compressed, ends as a tar file does."""
    try:
        with open(shard, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2 * _BLOCK))
            whole = file.read() == bytes(2 * _BLOCK)
    except OSError as error:
        raise ValueError(f"{shard}: got no shard ({error}), expected a tar file") from error
    if shard.suffix == ".tar" and not whole:
        raise ValueError(
            f"{shard}: got {size} bytes without a tar file's end (two blocks of zeros): it is cut short or no tar file"
        )
