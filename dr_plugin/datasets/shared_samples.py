"""One stream that several processes read together: all know every sample, its image only who has read it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from dr_plugin import distributed

from .shard_reader import BadSample, Sample, Samples

_CHUNK = 64  # samples that each process reads between two exchanges


@dataclass(frozen=True)
class Elsewhere:
    """The encoded image of a sample that another process has read.

    Attributes:
        size: Its bytes.
        rank: Whose it is.
    """

    size: int
    rank: int

    def __len__(self) -> int:
        return self.size


def shared(samples: Samples) -> Samples:
    """The samples of all processes, in turns; all must read on together. `samples` are this one's."""

    def one_pass() -> Iterator[Sample | BadSample]:
        own = samples()
        while True:
            read = list(islice(own, _CHUNK))
            parts = distributed.from_all([_without_image(one) for one in read])
            if not any(parts):
                return
            parts[distributed.rank()] = read
            for number in range(max(map(len, parts))):
                yield from (part[number] for part in parts if number < len(part))

    return one_pass


def with_images(wanted: Sequence[Sequence[Sample]]) -> list[Sample]:
    """This process's samples of ``wanted``, which names those of each process in rank order, with their images.

    All must ask for the same. An image goes from the process that has read it to those that want it.
    """
    here = distributed.rank()
    outgoing = [
        b"".join(one.image for one in samples if isinstance(one.image, bytes) and rank != here)
        for rank, samples in enumerate(wanted)
    ]
    owners = [one.image.rank if isinstance(one.image, Elsewhere) else here for one in wanted[here]]
    sizes = [
        sum(len(one.image) for one, owner in zip(wanted[here], owners, strict=True) if owner == rank != here)
        for rank in range(distributed.world_size())
    ]
    incoming = distributed.swapped(outgoing, sizes)
    read = np.zeros(len(incoming), np.int64)  # bytes
    found = []
    for one, owner in zip(wanted[here], owners, strict=True):
        if owner != here:
            start = int(read[owner])
            read[owner] += len(one.image)
            one = one._replace(image=incoming[owner][start : start + len(one.image)])
        found.append(one)
    return found


def _without_image(sample: Sample | BadSample) -> Sample | BadSample:
    if isinstance(sample, BadSample):
        return sample
    return sample._replace(image=Elsewhere(len(sample.image), distributed.rank()))
