"""Triplets from a stream of images that does not fit in memory."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dr_plugin import distributed
from dr_plugin.checks import check_flag, check_seed, check_whole, check_whole_or_none, shown
from dr_plugin.triplets.draws import Weighting
from dr_plugin.triplets.kernels import Kernel

from .stream_part import Options, PairRelevance, StreamPart, paired
from .stream_source import Items, Paths, source_of

_COUNTERS = (
    "accepted",
    "rejected",
    "discarded",
    "in_class",
    "out_of_class",
    "inexact",
    "streamed",
    "bad_images",
)
_WORKERS = 512  # loader workers at most


class TripletStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches of triplets drawn from per-class reservoirs through which a stream of images flows.

    The online form of section 5.1: images stream by, a bounded buffer for each class keeps the relevant ones, and
    triplets are drawn from the buffers by `StreamedTriplets`. A batch is images (B, 3, H, W) and labels (B,) in the
    order query, positive, negative, query, ...: for `DataLoader(stream, batch_size=None)` or `iter(stream)`, and PML's
    miner `EmbeddingsAlreadyPackagedAsTriplets`. Buffers hold encoded images; only what is in a batch is decoded.

    An epoch begins with empty buffers. They are filled from as many bytes as the budget (or from the whole stream, if
    it is smaller); then each batch is followed by its share of the stream, batch_size / 3 / triplets_per_image images,
    pass after pass. Draws are exact for what has been streamed so far, but for those that the buffers cannot supply
    exactly: they are counted as "inexact". An image of relevance 0 is only ever an out-of-class negative.

    - **Memory.** All that is held costs at most `byte_budget` (encoded images, features, 512 bytes an image), in this
      process or in its loader workers together. The classes seen so far share it equally (see `ImageBuffers`).
    - **Parts.** Every image belongs to one rank and one loader worker, which holds its own buffers and draws from them
      alone. Shards are dealt anew each epoch. Batch i comes from worker i % workers; every rank gives equally many.
    - **Shared** by the ranks of torch.distributed, the stream is one: each reads its part and tells the others of every
      sample but its image, so that all hold the same reservoirs and draw the same triplets, by the law of one stream.
      The images stay with who has read them, about `byte_budget` on each rank if all read equally many, beside features
      and 512 bytes of each image of all, and go to who needs them for a batch. No loader workers; in step.
    - **Bad images** (bytes that cannot be decoded, no label, NaN or no relevance) are counted, logged with shard and
      key, and skipped. A broken or truncated shard is an error always.
    - **Resume** as with the samplers: `epoch, start = stream.position` before a pass, `state_dict(epoch, start +
      batches_trained_on)` in it. The epoch is streamed again from its start, without decoding, and continues exactly;
      with as many loader workers as before, and for a callable, if it gives the same again.

    Args:
        source: A folder that `write_shards` wrote, a pattern or a list of tar shards (local files); or a callable that
            gives an iterable of (image bytes, uint8 array or PIL image; label; relevance[; feature]) for each pass,
            or an iterable of these that can be read again, such as a list.
        batch_size: Images a batch, a positive multiple of 3.
        byte_budget: Bytes; at least 16 times the largest image for each loader worker.
        out_of_class_ratio: Share of negatives from other classes; the rest needs `pair_relevance`.
        relevance_threshold: T_p of (7), above 0; None: none.
        relevance_margin: T_r of (8), at least 0.
        weighting: "relevance", or "uniform" as in Fig. 6, which needs no relevance in the stream.
        pair_relevance: r(i, j) of two arrays of features (n, F) -> (n,), or a `Kernel`, or the name of one without a
            bandwidth. None: positives are drawn in proportion to r_i.
        triplets_per_image: Triplets for each image that is streamed, above 0. At the default, with a budget of a tenth
            of the stream, nine triplets in ten were inexact (docs/benchmarks.md); a larger budget makes them fewer.
        batches_per_epoch: Of one rank; None: as many as the images make, which shards with a meta.json say.
        size: Shorter side resized to this, centre cropped to a square; None: all images must be of one size.
        max_bad_images: More in one epoch are an error, in each loader worker.
        seed: At least 0.
        exact: False: the paper's reading, uniform from the buffer.
        max_trials: In-class negatives tried for a triplet before it is discarded.
        shared: See above; alone, nothing changes.
        presplit: The callable is called with (part, parts), and gives this part's images alone. False: it is called
            without arguments, and its images are dealt out round robin.
        rank, world_size: None: those of torch.distributed where it is initialised, else 0 and 1.
    Shape:
        -> images (B, 3, H, W) uint8, labels (B,) long.
    Raises:
        ValueError: if an argument is out of range, a shard is missing or cut short, or there are fewer shards than
            parts; while streaming, if a shard is broken, nothing can be drawn, or the budget is too small.
    Example:
        >>> stream = TripletStream("shards", batch_size=300, byte_budget=200_000_000)  # doctest: +SKIP
        >>> for images, labels in DataLoader(stream, batch_size=None, num_workers=2): ...  # doctest: +SKIP
    References:
        Wang et al., Learning Fine-grained Image Similarity with Deep Ranking, CVPR 2014, section 5.1.
    """

    def __init__(
        self,
        source: Paths | Items | Iterable[Any],
        *,
        batch_size: int,
        byte_budget: int,
        out_of_class_ratio: float = 1.0,
        relevance_threshold: float | None = None,
        relevance_margin: float = 0.0,
        weighting: Weighting = "relevance",
        pair_relevance: PairRelevance | Kernel | str | None = None,
        triplets_per_image: float = 1 / 3,
        batches_per_epoch: int | None = None,
        size: int | None = None,
        max_bad_images: int = 0,
        seed: int = 0,
        exact: bool = True,
        max_trials: int = 100,
        shared: bool = False,
        presplit: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        check_whole("byte_budget", byte_budget, minimum=1)
        check_seed(seed)
        batches_per_epoch = check_whole_or_none("batches_per_epoch", batches_per_epoch, minimum=1)
        shared, presplit = check_flag("shared", shared), check_flag("presplit", presplit)
        self._ranks_given = world_size is not None
        self.rank, self.world_size = _ranks(rank, world_size)
        if shared and self.world_size not in (1, distributed.world_size()):
            raise ValueError(
                f"world_size: got {self.world_size} for a stream to be shared, expected {distributed.world_size()}, "
                "the processes of torch.distributed; leave rank and world_size out"
            )
        self._options = Options(
            batch_size=batch_size,
            out_of_class_ratio=out_of_class_ratio,
            relevance_threshold=relevance_threshold,
            relevance_margin=relevance_margin,
            weighting=weighting,
            pair_relevance=paired(pair_relevance),
            triplets_per_image=triplets_per_image,
            size=size,
            max_bad_images=max_bad_images,
            exact=exact,
            max_trials=max_trials,
            shared=shared,
        )
        self._options.check()
        self._shared_by_ranks = shared and self.world_size > 1
        self._source = source_of(source, presplit=presplit)
        self._source.check(self.world_size, 1)
        self.batch_size, self.byte_budget, self.seed = batch_size, byte_budget, seed
        self.batches_per_epoch = batches_per_epoch or self._default_batches()
        # Row 0: epoch, start batch, loader workers. Row w + 1, which worker w alone writes: passes begun since, and its
        # counters. In shared memory: workers hear of set_epoch, and this process of what they have done.
        self._shared = torch.zeros(1 + _WORKERS, 1 + len(_COUNTERS), dtype=torch.long).share_memory_()
        self._resumed_workers = 0  # loader workers that the loaded state's epoch had; 0: any will do
        self._fixed = {  # what must be the same for a state to continue the same batches
            "seed": seed,
            "batch_size": batch_size,
            "batches_per_epoch": self.batches_per_epoch,
            "byte_budget": byte_budget,
            "world_size": self.world_size,
            "source_crc32": self._source.identity,
        }

    def __len__(self) -> int:
        """Batches an epoch, also where a resumed epoch begins in its middle."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._ranks_given and _ranks(None, None) not in ((0, 1), (self.rank, self.world_size)):
            raise ValueError(
                "torch.distributed was initialised after the stream was made; expected it before"
            )
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if self._shared_by_ranks and info is not None:
            raise ValueError(
                f"num_workers: got {workers} for a stream that {self.world_size} ranks share, expected 0"
            )
        if workers > _WORKERS:
            raise ValueError(f"num_workers: got {workers}, expected at most {_WORKERS}")
        self._source.check(self.world_size, workers)
        begun = int(self._shared[1 + worker, 0])
        epoch, start = self._shared[0, :2].tolist()
        if begun == 0 and start > 0 and self._resumed_workers not in (0, workers):
            raise ValueError(
                f"num_workers: got {workers}, expected {self._resumed_workers} as in the epoch that is resumed"
            )
        self._shared[0, 2] = workers
        self._shared[1 + worker, 0] = begun + 1
        return self._batches(epoch + begun, start if begun == 0 else 0, worker, workers)

    def _batches(self, epoch: int, start: int, worker: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This loader worker's batches; a loader asks its worker 0 first, also where an epoch begins in its middle."""
        turn = (worker + start) % workers  # batch i is of the worker whose turn is i % workers
        counters = self._shared.numpy()[1 + worker, 1:]

        def count(name: str, number: int) -> None:
            counters[_COUNTERS.index(name)] += number

        part = StreamPart(
            self._source.part(self.rank * workers + turn, self.world_size * workers, (self.seed, epoch)),
            self._options,
            self.byte_budget // workers,
            (self.seed, epoch, 0 if self._shared_by_ranks else self.rank, turn),
            count,
            self._shared_by_ranks,
        )
        turns = range(turn, self.batches_per_epoch, workers)
        for index, places in zip(turns, part.batches(), strict=False):
            if index >= start:
                yield part.decode(places)

    @property
    def counters(self) -> dict[str, int]:
        """What was drawn and streamed since the stream was made, in this process and its loader workers together.

        Workers run ahead of the batches that were taken, and a resumed epoch is counted from its start. "streamed" are
        images, "bad_images" are counted once an epoch and worker, the others are triplets.
        """
        return dict(zip(_COUNTERS, self._shared[1:, 1:].sum(0).tolist(), strict=True))

    @property
    def position(self) -> tuple[int, int]:
        """The epoch that the next pass gives, and the batch it begins with (0 but for a resumed epoch)."""
        epoch, start = self._shared[0, :2].tolist()
        begun = int(self._shared[1:, 0].max())
        return epoch + begun, start if begun == 0 else 0

    def set_epoch(self, epoch: int, start_batch: int | None = None) -> None:
        """Make the next pass give this epoch, from `start_batch` on; loader workers hear of it too.

        Args:
            epoch: At least 0.
            start_batch: At least 0, below `len(self)`. None: 0, or the loaded position where the epoch is the
                loaded one, so that a loop which calls `set_epoch(epoch)` each time can be resumed.
        """
        epoch = check_whole("epoch", epoch, minimum=0)
        position = self.position
        if start_batch is None:
            start_batch = position[1] if epoch == position[0] else 0
        start_batch = check_whole("start_batch", start_batch, minimum=0, below=self.batches_per_epoch)
        self._shared[0, :2] = torch.tensor([epoch, start_batch])
        self._shared[1:, 0] = 0

    def state_dict(self, epoch: int | None = None, batches_consumed: int = 0) -> dict[str, int]:
        """The state from which `load_state_dict` continues; plain ints.

        Args:
            epoch: The epoch that is being trained on. None: the state between two passes.
            batches_consumed: How many batches of `epoch` were trained on, those before a resume included.
        """
        if epoch is None:
            if check_whole("batches_consumed", batches_consumed, minimum=0):
                raise ValueError(f"batches_consumed: got {batches_consumed} without epoch, expected both")
            epoch, batch = self.position
        else:
            epoch = check_whole("epoch", epoch, minimum=0)
            most = self.batches_per_epoch
            consumed = check_whole("batches_consumed", batches_consumed, minimum=0, below=most + 1)
            finished, batch = divmod(consumed, most)
            epoch += finished
        return {"epoch": epoch, "batch": batch, "workers": int(self._shared[0, 2]), **self._fixed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next pass continue where `state` was taken, exactly.

        Raises:
            ValueError: if `state` is of a stream with another source or other arguments: the batches would differ.
        """
        if missing := sorted({"epoch", "batch", "workers", *self._fixed} - state.keys()):
            raise ValueError(f"stream state: got no {', '.join(missing)}; expected what state_dict() gives")
        for key, expected in self._fixed.items():
            if state[key] != expected:
                raise ValueError(
                    f"stream state: {key}: got {state[key]}, expected {expected}; build the same stream"
                )
        self.set_epoch(state["epoch"], state["batch"])
        self._resumed_workers = state["workers"]

    def _default_batches(self) -> int:
        images = self._source.images
        if images is None:
            raise ValueError(
                "batches_per_epoch: got None for a source that does not say how many images it has, expected a "
                "number; shards with the meta.json of write_shards say it"
            )
        triplets = images * float(self._options.triplets_per_image)
        return max(1, math.ceil(3 * triplets / (self.batch_size * self.world_size) - 1e-9))


def _ranks(rank: int | None, world_size: int | None) -> tuple[int, int]:
    if rank is None and world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    if rank is None or world_size is None:
        raise ValueError(
            f"rank, world_size: got {shown(rank)}, {shown(world_size)}, expected both, and 0 <= rank < world_size"
        )
    world_size = check_whole("world_size", world_size, minimum=1, below=2**31)
    return check_whole("rank", rank, minimum=0, below=world_size), world_size
