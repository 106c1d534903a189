"""Running counters of a sampler's triplets, also as of an earlier batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dr_plugin.triplets import TripletDraw

_NAMES = ("accepted", "in_class", "out_of_class", "rejected", "discarded", "inexact")
_NEVER = np.iinfo(np.int32).max


class TripletCounts:
    """What was counted of all batches given, and which images were used.

    A sampler is asked for batches ahead of the training, so what counts in a checkpoint is what was counted up to
    some batch of the present pass.

    Args:
        images: N.
    """

    def __init__(self, images: int) -> None:
        self._before = dict.fromkeys(_NAMES, 0)  # the pass
        # (N,) -1: before the pass; else the batch of the pass.
        self._first_use = np.full(images, _NEVER, np.int32)
        self._batches: list[tuple[int, ...]] = []  # of the pass, from `_start` on
        self._epoch, self._start = 0, 0

    def begin(self, epoch: int, start: int) -> None:
        """A pass over `epoch` begins at batch `start`."""
        self._before = self._sums(len(self._batches))
        self._first_use[self._first_use < _NEVER] = -1
        self._batches = []
        self._epoch, self._start = epoch, start

    def add(self, draw: TripletDraw) -> None:
        """Count the pass's next batch."""
        images = np.concatenate([draw.query, draw.positive, draw.negative])
        self._first_use[images] = np.minimum(self._first_use[images], len(self._batches))
        self._batches.append(tuple(draw.counters[name] for name in _NAMES))

    def all(self) -> dict[str, int]:
        """The counters as of the last batch."""
        return self._as_of(len(self._batches))[0]

    def state(self, epoch: int | None, batches_consumed: int) -> dict[str, Any]:
        """The counters and images as of a batch of the present pass; of any other epoch, as of the last batch."""
        given = len(self._batches)
        if epoch == self._epoch:
            given = min(given, max(0, batches_consumed - self._start))
        counters, used = self._as_of(given)
        return {"counters": counters, "used_images": np.packbits(used).tobytes().hex()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Count on from `state`.

        Raises:
            ValueError: if it lacks counters, or is of another number of images.
        """
        if missing := sorted({"counters", "used_images"} - state.keys()):
            raise ValueError(f"sampler state: got no {', '.join(missing)}; expected what state_dict() gives")
        packed = np.frombuffer(bytes.fromhex(state["used_images"]), np.uint8)
        if len(packed) != -(-len(self._first_use) // 8):
            raise ValueError(
                f"sampler state: used_images: got {len(packed)} bytes, expected them of {len(self._first_use)} images"
            )
        used = np.unpackbits(packed, count=len(self._first_use))
        self._before = {name: state["counters"][name] for name in _NAMES}
        self._first_use = np.where(used, -1, _NEVER).astype(np.int32)
        self._batches = []

    def _as_of(self, given: int) -> tuple[dict[str, int], np.ndarray[Any, np.dtype[np.bool_]]]:
        used = self._first_use < given
        return {**self._sums(given), "distinct_images": int(np.count_nonzero(used))}, used

    def _sums(self, given: int) -> dict[str, int]:
        sums = np.array(self._batches[:given], np.int64).reshape(-1, len(_NAMES)).sum(axis=0).tolist()
        return {name: self._before[name] + more for name, more in zip(_NAMES, sums, strict=True)}
