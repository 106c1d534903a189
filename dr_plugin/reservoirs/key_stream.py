"""A reservoir's own random numbers, and whose keys it holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dr_plugin.checks import shown

Seed = int | Sequence[int] | None


class KeyStream:
    """A generator, and the names of all generators that a reservoir's keys came from.

    A merge is right only if the keys of the two were drawn independently: two generators of one seed, a copy
    of a reservoir and a reservoir that it was merged from are therefore refused.

    Args:
        seed: At least 0, or several such numbers, as (7, worker); None: from the system's entropy.
    """

    def __init__(self, seed: Seed) -> None:
        numbers = list(seed) if isinstance(seed, Sequence) else [] if seed is None else [seed]
        if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
            raise ValueError(f"seed: got {shown(seed)}, expected None, or whole numbers, at least 0")
        sequence = np.random.SeedSequence(numbers or None)
        self.generator = np.random.Generator(np.random.PCG64(sequence))
        self._names = [_name(sequence)]

    def merged(self, other: "KeyStream") -> "KeyStream":
        """A third stream, for the reservoir that holds the keys of both; the same whichever is asked."""
        names = sorted({*self._names, *other._names})
        if len(names) < len(self._names) + len(other._names):
            raise ValueError(
                "merge: got two reservoirs of the same seed, a copy, or one that was merged before; "
                "expected independent keys: give each its own seed, or None"
            )
        third = KeyStream(names)
        third._names += names
        return third

    def state(self) -> dict[str, Any]:
        """Plain ints and strings."""
        return {"generator": self.generator.bit_generator.state, "names": list(self._names)}

    def load(self, state: dict[str, Any]) -> None:
        """Continue where `state` was taken."""
        self.generator.bit_generator.state = state["generator"]
        self._names = list(state["names"])


def _name(sequence: np.random.SeedSequence) -> int:
    """128 bits that differ wherever the seeds do."""
    return int.from_bytes(sequence.generate_state(4, np.uint32).astype("<u4").tobytes(), "little")
