"""The two files of a pack: the array, `images-<fingerprint>.npy`, and `meta.json`.

meta.json is written last and makes the pack count; the array's name ties the two together, so that no meta.json is
read with another build's images. It has a checksum of itself and of each image.
"""

import base64
import json
import math
import zlib
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt

FORMAT = 3  # part of the fingerprint: to be raised when the files or the way that pixels are made change


class Meta(TypedDict):
    """What meta.json holds."""

    format: int
    fingerprint: str
    bytes: int  # of the array's file: a truncated one is not taken for whole
    shape: list[int]
    checksums: str  # CRC-32 of each image's pixels, 4 bytes little-endian each, in base 64
    labels: list[int]
    class_names: list[str]
    class_ids: list[str]


def read_pack(folder: Path) -> Meta:
    """What meta.json says; ValueError unless it and the array that it names are one whole pack."""
    try:
        meta: Meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        found = images_file(folder, meta["fingerprint"]).stat().st_size
        whole = meta["format"] == FORMAT and meta["bytes"] == found
        same = whole and meta["crc32"] == checksum(meta)  # type: ignore[typeddict-item]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}: got no whole pack ({error}): make one with PackedImages.build"
        ) from error
    if not whole:
        raise ValueError(f"{folder}: got a pack that is truncated or of another format: build it again")
    if not same:
        raise ValueError(
            f"{folder}: got a meta.json with another checksum than it was written with: build it again"
        )
    return meta


def checksums_of(meta: Meta) -> npt.NDArray[np.uint32]:
    """The images' checksums (N,)."""
    return np.frombuffer(base64.b64decode(meta["checksums"]), "<u4").astype(np.uint32)


def map_images(folder: Path, fingerprint: str, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The read-only memory map of the array (N, 3, H, W); its own header, which may be damaged, is not read."""
    file = images_file(folder, fingerprint)
    start = file.stat().st_size - math.prod(shape)
    if start < 0:
        raise ValueError(f"{file}: got a file too short for {shape}: build the pack again")
    return np.memmap(file, np.uint8, "r", start, shape).view(np.ndarray)


def checksum(meta: Meta) -> int:
    """CRC-32 of what meta.json says beside its checksum."""
    rest = {key: value for key, value in meta.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def images_file(folder: Path, fingerprint: str) -> Path:
    """Where the array lies."""
    return folder / f"images-{fingerprint[:16]}.npy"
