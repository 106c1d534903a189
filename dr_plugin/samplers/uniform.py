"""Batches of uniform triplets of a data set."""

import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from dr_plugin.triplets import RANDOM_BITS, UniformTriplets


class UniformTripletSampler(BatchSampler):
    """Batches of uniform triplets: a flat list query, positive, negative, query, ... of a data set's indices.

    The query is uniform over the images that have a positive, the positive uniform over the other images of
    its class, the negative uniform over all images of the other classes; all draws are independent. For PML's
    `MetricLossOnly(sampler=...)` with the miner `EmbeddingsAlreadyPackagedAsTriplets`.

    Batch b of epoch e depends on (seed, e, b) and the labels only, and can be had directly: `batch(e, b)`.
    Each pass gives one epoch and the next pass the next one, so no `set_epoch` is needed.

    To resume: loader workers ask for batches well ahead of the training, so where in which epoch the training
    is only its loop can say. It takes `epoch, start = sampler.position` before each pass, and saves
    `sampler.state_dict(epoch, start + batches_trained_on)` in the middle of one, or `state_dict()` between
    two.

    Args:
        labels: The data set's classes, in its order; any integers.
        batch_size: Images a batch, three for each triplet: a positive multiple of 3.
        batches_per_epoch: Batches an epoch; None: as many as it takes to draw as many images as there are.
        seed: At least 0.
    Shape:
        labels (N,) -> lists of batch_size ints.
    Raises:
        ValueError: if labels are not 1-D integers, are empty, hold one class only or no class with two
            images, or if another argument is out of range.
    Example:
        >>> sampler = UniformTripletSampler([0, 0, 1, 1, 1], batch_size=6, seed=0)
        >>> len(sampler), [len(batch) for batch in sampler]
        (1, [6])
    """

    def __init__(
        self,
        labels: Sequence[int] | npt.NDArray[np.integer] | Tensor,
        *,
        batch_size: int,
        batches_per_epoch: int | None = None,
        seed: int = 0,
    ) -> None:
        _check_whole("batch_size", batch_size, minimum=3)
        if batch_size % 3:
            raise ValueError(
                f"batch_size: got {batch_size}, expected a multiple of 3 (query, positive, negative)"
            )
        if batches_per_epoch is not None:
            _check_whole("batches_per_epoch", batches_per_epoch, minimum=1)
        _check_whole("seed", seed, minimum=0)
        classes = _as_classes(labels)
        if classes.numel() == 0:
            raise ValueError("labels: got none, expected the class of each image of the data set")
        self._triplets = UniformTriplets(classes)
        if len(self._triplets.queries) == 0:
            raise ValueError(_why_no_query(classes))
        super().__init__(range(len(classes)), batch_size, drop_last=False)
        self.batches_per_epoch = batches_per_epoch or -(-len(classes) // batch_size)
        self.seed = seed
        self._position = (0, 0)
        self._fixed = {  # what must be the same for a state to continue the same batches
            "seed": seed,
            "batch_size": batch_size,
            "batches_per_epoch": self.batches_per_epoch,
            "labels_crc32": zlib.crc32(classes.long().numpy().tobytes()),
        }

    def __len__(self) -> int:
        """Batches an epoch, also where a resumed epoch begins in its middle."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        # The epoch is taken at the first next(), not by iter(), which a DataLoader with workers calls twice.
        epoch, start = self._position
        self._position = (epoch + 1, 0)
        for index in range(start, self.batches_per_epoch):
            yield self.batch(epoch, index)

    @property
    def position(self) -> tuple[int, int]:
        """The epoch that the next pass gives, and the batch it begins with: 0 but for a resumed epoch."""
        return self._position

    def batch(self, epoch: int, index: int) -> list[int]:
        """Batch `index` of `epoch`: query, positive, negative, query, ..."""
        bits = _random_bits((self.seed, epoch, index), (3, self.batch_size // 3))
        queries = self._triplets.draw_queries(bits[0])
        positives, negatives = self._triplets.draw(queries, bits[1:])
        batch: list[int] = torch.stack((queries, positives, negatives), dim=1).flatten().tolist()
        return batch

    def set_epoch(self, epoch: int, start_batch: int | None = None) -> None:
        """Make the next pass give this epoch, from `start_batch` on.

        Args:
            epoch: At least 0.
            start_batch: At least 0, below `len(self)`. None: 0, or the loaded position where the epoch is the
                loaded one, so that a loop which calls `set_epoch(epoch)` each time can be resumed.
        """
        _check_whole("epoch", epoch, minimum=0)
        if start_batch is None:
            start_batch = self._position[1] if epoch == self._position[0] else 0
        _check_whole("start_batch", start_batch, minimum=0, below=self.batches_per_epoch)
        self._position = (epoch, start_batch)

    def state_dict(self, epoch: int | None = None, batches_consumed: int = 0) -> dict[str, int]:
        """The state from which `load_state_dict` continues; plain ints.

        Args:
            epoch: The epoch that is being trained on. None: the state between two passes, from which a loaded
                sampler gives what the next pass of this one would.
            batches_consumed: How many batches of `epoch` were trained on, those before a resume included.
        """
        if epoch is None:
            if batches_consumed:
                raise ValueError(f"batches_consumed: got {batches_consumed} without epoch, expected both")
            epoch, batch = self._position
        else:
            _check_whole("epoch", epoch, minimum=0)
            _check_whole("batches_consumed", batches_consumed, minimum=0, below=self.batches_per_epoch + 1)
            finished, batch = divmod(batches_consumed, self.batches_per_epoch)
            epoch += finished
        return {"epoch": epoch, "batch": batch, **self._fixed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next pass continue where `state` was taken, exactly.

        Raises:
            ValueError: if `state` is of a sampler with another seed, size or labels: the batches would
                differ.
        """
        if missing := sorted({"epoch", "batch", *self._fixed} - state.keys()):
            raise ValueError(f"sampler state: got no {', '.join(missing)}; expected what state_dict() gives")
        for key, expected in self._fixed.items():
            if state[key] != expected:
                raise ValueError(
                    f"sampler state: {key}: got {state[key]}, expected {expected}; build the same sampler"
                )
        self.set_epoch(state["epoch"], state["batch"])


def _as_classes(labels: Sequence[int] | npt.NDArray[np.integer] | Tensor) -> Tensor:
    if isinstance(labels, Tensor):
        return labels.cpu()
    array = np.asarray(labels)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels: got {array.dtype}, expected integer classes")
    return torch.from_numpy(array.astype(np.int64))


def _random_bits(key: tuple[int, int, int], shape: tuple[int, int]) -> Tensor:
    """Uniform over 0, ..., 2**62 - 1; `key` is hashed, and numpy promises the same raw stream for good."""
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(shape) >> np.uint64(64 - RANDOM_BITS)
    return torch.from_numpy(raw.astype(np.int64))


def _why_no_query(labels: Tensor) -> str:
    if len(labels.unique()) == 1:
        return f"labels: got one class only ({int(labels[0])}), expected at least two: there are no negatives"
    return f"labels: got {len(labels)} images, no two of one class, expected some: there are no positives"


def _check_whole(name: str, value: int, *, minimum: int, below: int | None = None) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < minimum or (below is not None and value >= below):
        limit = "" if below is None else f" and below {below}"
        raise ValueError(f"{name}: got {value!r}, expected a whole number, at least {minimum}{limit}")
