"""Where a stream's images come from, and how they are split over ranks and loader workers."""

import operator
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from .packing import rgb_image
from .shard_contents import encode_png
from .shard_reader import (
    BadSample,
    Sample,
    Samples,
    checked_sample,
    count_images,
    find_shards,
    read_shard,
)

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Items = Callable[..., Iterable[Any]]


def source_of(source: Any, *, presplit: bool) -> "ShardSource | CallableSource":
    """Shards by their pattern or paths, or the items of a callable or of an iterable that can be read again."""
    if callable(source):
        return CallableSource(source, presplit=presplit)
    paths = [source] if isinstance(source, str | os.PathLike) else source
    if isinstance(paths, Sequence) and all(isinstance(path, str | os.PathLike) for path in paths):
        return ShardSource(source)
    if not _can_be_read_again(source):
        raise ValueError(
            f"source: got a {type(source).__name__}, expected a shard pattern, a list of shards, or (image, label, "
            "relevance) items that can be read pass after pass: a list, or a function that gives an iterator"
        )
    return CallableSource(partial(iter, source), presplit=False)


def _can_be_read_again(source: Any) -> bool:
    try:
        return iter(source) is not source
    except TypeError:
        return False


class ShardSource:
    """Tar shards; each part reads whole shards, other ones and in another order each epoch.

    Attributes:
        images: How many there are, where a meta.json says so.
        identity: The same for the same shards.
    """

    def __init__(self, paths: Paths) -> None:
        self._shards = find_shards(paths)
        self.images = count_images(self._shards)
        self.identity = zlib.crc32("\0".join(shard.name for shard in self._shards).encode())

    def check(self, ranks: int, workers: int) -> None:
        """ValueError unless there is a shard for every loader worker of every rank."""
        if len(self._shards) < ranks * workers:
            raise ValueError(
                f"source: got {len(self._shards)} shards for {ranks} ranks x {workers} loader workers, expected at "
                f"least {ranks * workers}, one each: use fewer workers, or write smaller shards "
                "(write_shards(..., images_per_shard=...))"
            )

    def part(self, number: int, parts: int, seed: Sequence[int]) -> Samples:
        """The passes of part `number` of `parts`, in the order of this seed."""
        order: list[int] = np.random.default_rng(seed).permutation(len(self._shards)).tolist()
        mine: list[Path] = [self._shards[index] for index in order[number::parts]]
        return lambda: chain.from_iterable(map(read_shard, mine))


class CallableSource:
    """What a callable gives for a pass; it splits the images itself, or they are dealt out one by one."""

    images = None
    identity = 0

    def __init__(self, items: Items, *, presplit: bool) -> None:
        self._items, self._presplit = items, presplit

    def check(self, ranks: int, workers: int) -> None:
        """Any number of parts will do."""

    def part(self, number: int, parts: int, seed: Sequence[int]) -> Samples:
        """The passes of part `number` of `parts`."""

        def samples() -> Iterator[Sample | BadSample]:
            numbered: Iterator[tuple[int, Any]]
            if self._presplit:
                numbered = enumerate(self._items(number, parts))
            else:
                numbered = islice(enumerate(self._items()), number, None, parts)
            return (_parse(f"item {index}", item) for index, item in numbered)

        return samples


def _parse(name: str, item: Any) -> Sample | BadSample:
    """(image, label, relevance[, feature]), checked."""
    try:
        image, label, relevance, feature = (*item, None) if len(item) == 3 else item
        encoded = bytes(image) if isinstance(image, bytes | bytearray | memoryview) else None
        if encoded is None:
            encoded = encode_png(np.asarray(rgb_image(image)))
        return checked_sample(name, encoded, operator.index(label), relevance, feature)
    except (ValueError, TypeError) as error:
        return BadSample(name, error)
