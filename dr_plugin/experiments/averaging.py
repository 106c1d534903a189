"""Averaged weights: what a stage hands on in the place of its last step's."""

import copy
import itertools
from typing import Any

import torch
from torch import nn


class AveragedWeights:
    """An exponential moving average of a module's weights and buffers.

    Like ``torch.optim.swa_utils.AveragedModel`` with an exponential rule, but nothing in ``update`` waits for the
    device. The decay grows as (1 + n) / (10 + n) with the n updates before, up to ``decay``, so that short runs
    forget their first weights. Counters, such as those of batch normalisation, are copied.

    Args:
        module: What to average; ``self.module`` is its averaged copy.
        decay: Share of the average that one update keeps, in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take the module's present weights in; the first ones are taken whole."""
        keep = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.updates else 0.0
        pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floats], [new for _, new in floats], 1 - keep)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights and the number of updates."""
        return {"module": self.module.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state``."""
        self.module.load_state_dict(state["module"])
        self.updates = state["updates"]


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [tensor.detach() for tensor in itertools.chain(module.parameters(), module.buffers())]
