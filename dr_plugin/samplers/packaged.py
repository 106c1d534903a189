"""What the samplers of packaged triplets share: checks, epochs, positions and their state."""

import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from dr_plugin.checks import as_array, check_seed, check_whole
from dr_plugin.triplets import RANDOM_BITS

Labels = Sequence[int] | npt.NDArray[np.integer] | Tensor


class PackagedTripletSampler(BatchSampler, ABC):
    """Batches that are flat lists query, positive, negative, query, ... of a data set's indices.

    A subclass writes `batch(epoch, index)`, which depends on the seed, its arguments and the data only. Each pass
    gives one epoch and the next pass the next one, so no `set_epoch` is needed.

    Args:
        images: N, how many the data set has.
        batch_size: Images a batch, three for each triplet: a positive multiple of 3.
        batches_per_epoch: Batches an epoch, at least 1.
        seed: At least 0.
        same: What else must be the same for a state to continue the same batches.
    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        images: int,
        *,
        batch_size: int,
        batches_per_epoch: int,
        seed: int,
        same: Mapping[str, Any],
    ) -> None:
        batch_size = check_batch_size(batch_size)
        batches_per_epoch = check_whole("batches_per_epoch", batches_per_epoch, minimum=1)
        seed = check_seed(seed)
        super().__init__(range(images), batch_size, drop_last=False)
        self.batches_per_epoch = batches_per_epoch
        self.seed = seed
        self._position = (0, 0)
        own = {"seed": seed, "batch_size": batch_size, "batches_per_epoch": batches_per_epoch}
        self._fixed = {**own, **same}

    @abstractmethod
    def batch(self, epoch: int, index: int) -> list[int]:
        """Batch `index` of `epoch`: query, positive, negative, query, ..."""

    def __len__(self) -> int:
        """Batches an epoch, also where a resumed epoch begins in its middle."""
        return self.batches_per_epoch

    def __iter__(self) -> Iterator[list[int]]:
        # The epoch is taken at the first next(), not by iter(), which a DataLoader with workers calls twice.
        epoch, start = self._position
        self._position = (epoch + 1, 0)
        yield from self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[list[int]]:
        """What a pass over `epoch` gives, from batch `start` on."""
        for index in range(start, self.batches_per_epoch):
            yield self.batch(epoch, index)

    @property
    def position(self) -> tuple[int, int]:
        """The epoch that the next pass gives, and the batch it begins with (0 but for a resumed epoch)."""
        return self._position

    def set_epoch(self, epoch: int, start_batch: int | None = None) -> None:
        """Make the next pass give this epoch, from `start_batch` on.

        Args:
            epoch: At least 0.
            start_batch: At least 0, below `len(self)`. None: 0, or the loaded position where the epoch is the
                loaded one, so that a loop which calls `set_epoch(epoch)` each time can be resumed.
        """
        epoch = check_whole("epoch", epoch, minimum=0)
        if start_batch is None:
            start_batch = self._position[1] if epoch == self._position[0] else 0
        start_batch = check_whole("start_batch", start_batch, minimum=0, below=self.batches_per_epoch)
        self._position = (epoch, start_batch)

    def state_dict(self, epoch: int | None = None, batches_consumed: int = 0) -> dict[str, Any]:
        """The state from which `load_state_dict` continues; plain numbers and strings.

        Args:
            epoch: The epoch that is being trained on. None: the state between two passes, from which a loaded
                sampler gives what the next pass of this one would.
            batches_consumed: How many batches of `epoch` were trained on, those before a resume included.
        """
        if epoch is None:
            if check_whole("batches_consumed", batches_consumed, minimum=0):
                raise ValueError(f"batches_consumed: got {batches_consumed} without epoch, expected both")
            epoch, batch = self._position
        else:
            epoch = check_whole("epoch", epoch, minimum=0)
            most = self.batches_per_epoch
            consumed = check_whole("batches_consumed", batches_consumed, minimum=0, below=most + 1)
            finished, batch = divmod(consumed, most)
            epoch += finished
        return {"epoch": epoch, "batch": batch, **self._fixed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next pass continue where `state` was taken, exactly.

        Raises:
            ValueError: if `state` is of a sampler built otherwise: the batches would differ.
        """
        if missing := sorted({"epoch", "batch", *self._fixed} - state.keys()):
            raise ValueError(f"sampler state: got no {', '.join(missing)}; expected what state_dict() gives")
        for key, expected in self._fixed.items():
            if state[key] != expected:
                raise ValueError(
                    f"sampler state: {key}: got {state[key]}, expected {expected}; build the same sampler"
                )
        self.set_epoch(state["epoch"], state["batch"])


class RandomBits:
    """Whole numbers uniform over 0, ..., 2**62 - 1, in any shape; numpy promises the same raw stream for good.

    Args:
        key: Is hashed: different keys give independent numbers.
    """

    def __init__(self, *key: int) -> None:
        self._source = np.random.PCG64(np.random.SeedSequence(key))

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """The next numbers, long."""
        raw = self._source.random_raw(shape) >> np.uint64(64 - RANDOM_BITS)
        return torch.from_numpy(raw.astype(np.int64))


def as_classes(labels: Labels) -> Tensor:
    """The labels as an integer tensor on the CPU; some."""
    if isinstance(labels, Tensor):
        classes = labels.cpu()
    else:
        array = as_array("labels", labels)
        if array.size and not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"labels: got {array.dtype}, expected integer classes")
        classes = torch.from_numpy(array.astype(np.int64))
    if classes.ndim != 1:
        raise ValueError(
            f"labels: got shape {tuple(classes.shape)}, expected one class per image, shape (N,)"
        )
    if classes.numel() == 0:
        raise ValueError("labels: got none, expected the class of each image of the data set")
    return classes


def checksum(classes: Tensor) -> int:
    """The same for the same classes."""
    return zlib.crc32(classes.long().numpy().tobytes())


def check_batch_size(batch_size: int) -> int:
    """ValueError unless a batch is whole triplets."""
    batch_size = check_whole("batch_size", batch_size, minimum=3, below=2**31)
    if batch_size % 3:
        raise ValueError(
            f"batch_size: got {batch_size}, expected a multiple of 3 (query, positive, negative)"
        )
    return batch_size
