"""What processes that train together must have in common, and what must be each one's own."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from dr_plugin import distributed

from . import checkpoint


def check_divisible(models: Mapping[str, torch.nn.Module], miners: Mapping[str, Any]) -> None:
    """See that several processes can divide what PML's trainers may have.

    Raises:
        ValueError: if they cannot.
    """
    if distributed.world_size() == 1:
        return
    if "subset_batch_miner" in miners:
        raise ValueError(
            "subset_batch_miner: got one on several processes, expected none: each has a part of a batch's images"
        )
    embedder = models.get("embedder")  # PML puts one without weights where there is none
    if embedder is not None and any(True for _ in embedder.parameters()):
        raise ValueError(
            "models: got an embedder on several processes, expected a trunk alone: make it the trunk's last part"
        )


def check_same_batches(
    batches: Sequence[torch.Tensor], miners: Mapping[str, torch.nn.Module], device: torch.device, epoch: int
) -> None:
    """See that all processes are about to train on the same batches, with the same random numbers and miners.

    Raises:
        ValueError: if they are not: a sampler or a miner draws from what differs between processes.
    """
    if distributed.world_size() == 1:
        return
    state = [checkpoint.module_state(miner) for miner in miners.values()]
    found = distributed.from_all(_checksum([list(batches), checkpoint.generators_state(device), state]))
    if other := next((number for number, one in enumerate(found) if one != found[0]), 0):
        raise ValueError(
            f"ranks 0 and {other} drew other batches for epoch {epoch}, expected the same on all: seed the sampler and "
            "the miner with a number of their own, not with the rank or the time"
        )


def _checksum(value: Any, before: int = 0) -> int:
    """Of nested plain values and tensors."""
    if isinstance(value, torch.Tensor):
        return zlib.crc32(
            value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), before
        )
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if not isinstance(value, list | tuple):
        return zlib.crc32(repr(value).encode(), before)
    for part in value:
        before = _checksum(part, before)
    return before


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
