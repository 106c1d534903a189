"""One process's part of a stream for one epoch: it reads, buffers, draws triplets and decodes them."""

import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from dr_plugin import distributed
from dr_plugin.checks import as_number, check_flag, check_whole, shown
from dr_plugin.reservoirs import ClassReservoirs
from dr_plugin.triplets.candidates import BYSTANDER
from dr_plugin.triplets.draws import Weighting, check_draw
from dr_plugin.triplets.kernels import Kernel
from dr_plugin.triplets.streamed import StreamedTriplets

from .image_buffers import ImageBuffers, cost_of
from .packing import Pixels, pixels_of
from .shard_reader import BadSample, Sample, Samples
from .shared_samples import shared, with_images

_NAMED = 10  # how many bad images an error names
_CHUNK = 64  # images that are read before it is asked again whether there is a triplet

logger = logging.getLogger(__name__)

Count = Callable[[str, int], None]
PairRelevance = Callable[[npt.NDArray[Any], npt.NDArray[Any]], npt.NDArray[Any]]  # (n, F), (n, F) -> (n,)


@dataclass(frozen=True)
class Options:
    """Those of `TripletStream`, which documents them."""

    batch_size: int
    out_of_class_ratio: float
    relevance_threshold: float | None
    relevance_margin: float
    weighting: Weighting
    pair_relevance: PairRelevance | None
    triplets_per_image: float
    size: int | None
    max_bad_images: int
    exact: bool
    max_trials: int
    shared: bool

    def check(self) -> None:
        """ValueError if one is out of range."""
        check_whole("batch_size", self.batch_size, minimum=3, below=2**31)
        if self.batch_size % 3:
            raise ValueError(
                f"batch_size: got {self.batch_size}, expected a multiple of 3 (query, positive, negative)"
            )
        if self.size is not None:
            check_whole("size", self.size, minimum=1, below=2**31)
        check_whole("max_bad_images", self.max_bad_images, minimum=0)
        check_draw(
            out_of_class_ratio=self.out_of_class_ratio,
            relevance_threshold=self.relevance_threshold,
            relevance_margin=self.relevance_margin,
            weighting=self.weighting,
            max_trials=self.max_trials,
        )
        if not 0 < as_number(self.triplets_per_image) < math.inf:
            raise ValueError(
                f"triplets_per_image: got {shown(self.triplets_per_image)}, expected a finite number above 0"
            )
        for name in ("exact", "shared"):
            check_flag(name, getattr(self, name))
        if self.pair_relevance is not None and not callable(self.pair_relevance):
            raise ValueError(
                f"pair_relevance: got {shown(self.pair_relevance)}, expected a kernel, its name, a function or None"
            )
        if self.out_of_class_ratio < 1 and self.pair_relevance is None:
            raise ValueError(
                f"out_of_class_ratio: got {self.out_of_class_ratio} without pair_relevance, expected 1.0: in-class "
                "negatives are drawn by r(i, j); write shards with features and name a kernel, or pass a function"
            )

    def draws(
        self, reservoirs: ClassReservoirs, features: Callable[[npt.NDArray[Any]], Any]
    ) -> StreamedTriplets:
        """The draw over these reservoirs, whose items have these features."""
        relevance = self.pair_relevance

        def pairs(i: npt.NDArray[np.int64], j: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
            return relevance(features(i), features(j))  # type: ignore[misc]

        return StreamedTriplets(
            reservoirs,
            None if relevance is None else pairs,
            out_of_class_ratio=self.out_of_class_ratio,
            relevance_threshold=self.relevance_threshold,
            relevance_margin=self.relevance_margin,
            weighting=self.weighting,
            exact=self.exact,
            max_trials=self.max_trials,
        )

    def weigh(self, sample: Sample) -> tuple[Sample, float] | BadSample:
        """An image and its weight in the stream, or what the draw misses of it."""
        if self.pair_relevance is not None and sample.feature is None:
            return BadSample(sample.name, "got no feature, expected one (.npy) for pair_relevance")
        if self.weighting == "uniform":
            return sample, 1.0
        if sample.relevance is None:
            return BadSample(
                sample.name, "got no relevance, expected one (.json), or a stream with weighting='uniform'"
            )
        return sample, max(sample.relevance, BYSTANDER)  # 0 is held too, for an out-of-class negative


def paired(relevance: PairRelevance | Kernel | str | None) -> PairRelevance | None:
    """What is given for the relevance of pairs, as a function of two arrays of features that can be pickled."""
    if isinstance(relevance, str):
        relevance = Kernel(relevance)
    return partial(_kernel_of_pairs, relevance) if isinstance(relevance, Kernel) else relevance


def _kernel_of_pairs(kernel: Kernel, x: npt.NDArray[Any], y: npt.NDArray[Any]) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = kernel.paired(torch.from_numpy(x), torch.from_numpy(y)).numpy()
    return values


def _uncounted(name: str, number: int) -> None:
    """Another process counts it."""


class BadImages:
    """Counts images that cannot be used, logs their names, and stops at one too many."""

    def __init__(self, limit: int, count: Count) -> None:
        self._limit = limit
        self._count = count
        self._seen: dict[str, str] = {}  # name -> with what is wrong

    def add(self, bad: BadSample, *, counted: bool = True) -> None:
        """Count an image, once however often it comes, unless another process does.

        Raises:
            ValueError: if it is one more than the limit.
        """
        if bad.name in self._seen:
            return
        self._seen[bad.name] = str(bad)
        if counted:
            self._count("bad_images", 1)
        logger.warning("bad image skipped: %s", bad)
        if len(self._seen) > self._limit:
            named = "; ".join(list(self._seen.values())[-_NAMED:])
            raise ValueError(
                f"got {len(self._seen)} bad images, expected at most max_bad_images={self._limit}: {named}"
            )


class StreamPart:
    """The triplets of one epoch from one part of the stream, batch after batch without an end.

    First the buffers are filled, from as many bytes as the budget or to the end of the pass; then each batch is
    followed by its share of the stream. Where a pass ends the next one begins, and its images are streamed again.

    A shared part is the same on all processes: together they read the stream and draw the triplets of all. Each holds
    the images that it has read, and decodes its share of the triplets.

    Args:
        samples: Starts a pass; every pass gives the same.
        byte_budget: Of this part.
        seed: Of the draws.
        count: Adds to a counter.
        by_ranks: The processes share one part.
    """

    def __init__(
        self,
        samples: Samples,
        options: Options,
        byte_budget: int,
        seed: Sequence[int],
        count: Count,
        by_ranks: bool = False,
    ) -> None:
        self._processes = distributed.world_size() if by_ranks else 1
        self._samples = shared(samples) if self._processes > 1 else samples
        self._options = options
        self._counts = self._processes == 1 or distributed.is_first()  # what all do alike is counted once
        self._count = count if self._counts else _uncounted
        self.buffers = ImageBuffers(byte_budget * self._processes, (*seed, 0))
        self._draws = options.draws(self.buffers.reservoirs, self.buffers.features)
        self._rng = np.random.default_rng((*seed, 1))
        self._bad = BadImages(options.max_bad_images, count)
        self._shape: tuple[int, ...] | None = None  # of the first image decoded
        self._passes = 0  # that have ended

    def batches(self) -> Iterator[npt.NDArray[np.int64]]:
        """Places (T, 3) of query, positive and negative; to be decoded before the next batch is asked for."""
        stream = self._stream()
        triplets = self._options.batch_size // 3 * self._processes
        images = triplets / self._options.triplets_per_image  # of the stream for each batch: no whole number
        filled = 0
        while self._passes == 0 and filled < self.buffers.byte_budget:
            filled += next(stream)
        streamed, batch = 0, 0
        while True:
            self._make_drawable(stream)
            draw = self._draws.draw(triplets, self._rng)
            for name, number in draw.counters.items():
                self._count(name, number)
            yield torch.stack((draw.query, draw.positive, draw.negative), dim=1).numpy()
            batch += 1
            while streamed + 1 <= batch * images + 1e-6:
                next(stream)
                streamed += 1

    def decode(self, places: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """The images (3 T, 3, H, W) and labels (3 T,) of a batch, of a shared one this process's share.

        A triplet with an image that cannot be decoded is replaced by another one of its batch: whatever was drawn
        stays drawn, so that a resumed epoch, which decodes none of the batches before, draws the same.
        """
        if self._processes > 1:
            shares = np.split(places, self._processes)  # equal ones
            places = shares[distributed.rank()]
            names = [np.unique(share).tolist() for share in shares]
            found = with_images([[self.buffers[place] for place in each] for each in names])
            samples = dict(zip(names[distributed.rank()], found, strict=True))
        else:
            samples = {place: self.buffers[place] for place in np.unique(places).tolist()}
        pixels = {place: self._pixels(sample) for place, sample in samples.items()}
        good = np.array([all(pixels[place] is not None for place in row) for row in places.tolist()])
        if not good.any():
            raise ValueError(
                f"got a batch of {len(places)} triplets, each with a bad image; expected one without"
            )
        chosen = np.flatnonzero(good)[
            np.searchsorted(np.flatnonzero(good), np.arange(len(places))) % good.sum()
        ]
        order = places[chosen].ravel().tolist()
        images: Pixels = np.stack([pixels[place] for place in order])  # type: ignore[misc]
        labels = [self.buffers[place].label for place in order]
        return torch.from_numpy(images), torch.tensor(labels)

    def _stream(self) -> Iterator[int]:
        """Read on, pass after pass; gives each image's cost."""
        while True:
            total = 0
            for place, sample in enumerate(self._samples()):
                cost = self._take(place, sample)
                total += cost
                yield cost
            if total == 0:
                raise ValueError(
                    "source: got a pass without a good image, expected some: is the stream empty?"
                )
            self._passes += 1
            self.buffers.new_pass()

    def _take(self, place: int, sample: Sample | BadSample) -> int:
        """Stream one image; gives what it costs, 0 if it is bad."""
        self._count("streamed", 1)
        weighed = sample if isinstance(sample, BadSample) else self._options.weigh(sample)
        if isinstance(weighed, BadSample):
            self._bad.add(weighed, counted=self._counts)
            return 0
        self.buffers.add(place, *weighed)
        return cost_of(weighed[0])

    def _make_drawable(self, stream: Iterator[int]) -> None:
        """Read on until there is a triplet, at most to the end of the first pass."""
        self.buffers.flush()
        while problem := self.buffers.lacks(self._options.out_of_class_ratio):
            if self._passes > 0:
                raise ValueError(f"source: {problem}")
            for _ in range(_CHUNK):
                next(stream)
            self.buffers.flush()

    def _pixels(self, sample: Sample) -> Pixels | None:
        """(3, H, W), or None for a bad image."""
        try:
            pixels = pixels_of(Image.open(io.BytesIO(sample.image)), self._options.size)
        except Exception as error:  # decoders raise what they like on damaged bytes
            self._bad.add(BadSample(sample.name, f"cannot be decoded: {error}"))
            return None
        if self._shape is None:
            self._shape = pixels.shape
        if pixels.shape != self._shape:
            (_, height, width), (_, *expected) = pixels.shape, self._shape
            raise ValueError(
                f"{sample.name}: got {height} x {width} pixels, expected {expected[0]} x {expected[1]} as in the "
                "first image: pass size to make all images one size"
            )
        return pixels
