"""Random numbers for the inside of a network, other ones on each of several processes that train together."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from dr_plugin import distributed


@contextmanager
def noise_of_rank(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Within the block, torch's global generators are seeded by (seed, step, rank); alone, they stay as they are.

    Afterwards they are as before: what is drawn in the block (dropout, CutMix) depends on how many images a process
    has, while what miners and samplers draw outside of it must be the same on all of them.
    """
    if distributed.world_size() == 1:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        sequence = np.random.SeedSequence([seed, step, distributed.rank()])
        torch.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))
        yield
