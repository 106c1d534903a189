"""A trunk that takes images as they are: their normalisation is part of it, and of its state dict."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dr_plugin.checks import check_per_channel, shown


class NormalizedTrunk(nn.Module):
    """A trunk with the normalisation of its images in front: trunk((x / 255 - mean) / std).

    ``mean`` and ``std`` are buffers: a state dict brings those that its trunk was trained with, and nothing has to be
    remembered beside it. `dr export` writes such a state dict.

    Args:
        trunk: Takes normalised images (B, 3, S, S) float32.
        mean: Of each colour in 0..1.
        std: Of each colour, > 0. The defaults leave images in 0..1, until a state dict is loaded.
    Shape:
        images (B, 3, S, S) uint8 -> (B, D) float32.
    Raises:
        ValueError: if the trunk is no module, there are not three numbers of each, a deviation is not above 0, or
            images are no uint8 batch.
    Example:
        >>> trunk = NormalizedTrunk(nn.Flatten(), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
        >>> trunk(torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1))
        tensor([[-1.0000,  1.0000, -0.6000]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        mean: Sequence[float] = (0.0, 0.0, 0.0),
        std: Sequence[float] = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__()
        if not isinstance(trunk, nn.Module):
            raise ValueError(f"trunk: got {shown(trunk)}, expected a torch.nn.Module")
        means, deviations = check_per_channel("mean", mean), check_per_channel("std", std)
        if min(deviations) <= 0:
            raise ValueError(f"std: got {deviations}, expected positive numbers")
        for name, values in (("mean", means), ("std", deviations)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1))
        self.trunk = trunk

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of the images."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images: got {shown(images)}, expected uint8 (B, 3, S, S) in 0..255, not normalised"
            )
        embeddings: Tensor = self.trunk((images.to(torch.float32) / 255 - self.mean) / self.std)
        return embeddings.to(torch.float32)
