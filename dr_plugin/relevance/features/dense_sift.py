"""SIFT descriptors on a dense grid at several scales, from which SIFTHistogram and FisherVector are made."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from dr_plugin.checks import check_flag, check_whole, check_wholes
from dr_plugin.relevance.features.batches import Features, Images
from dr_plugin.relevance.features.codebook import sampled_descriptors
from dr_plugin.relevance.image_rows import ImageRows

ORIENTATIONS = 8
CELLS = 4  # a side of a descriptor
_LENGTH = CELLS * CELLS * ORIENTATIONS
_MAGNIFICATION = (
    6  # a cell is this many standard deviations of the image's smoothing, as VLFeat's phow has it
)
# Of gradients (luminance 0 to 1 a pixel) times the cells' weights, summed and over the patch's pixels: at most this
# is flat. The weights are 0.74 in the mean, so the weighted mean gradient is then at most 1.35e-3.
_FLAT = 1e-3
_CLIPPED = 0.2


@dataclass(frozen=True)
class DenseSIFT:
    """Upright SIFT descriptors of the luminance at every `step`-th pixel, for each size of cell.

    1. The luminance smoothed by a Gaussian of sigma cell / 6; central differences.
    2. 4 x 4 cells x 8 directions over 360 degrees, interpolated linearly in direction and both ways in space; a
       cell is weighted by a Gaussian of sigma 2 cells round the patch's middle.
    3. Scaled to length 1, clipped at 0.2, scaled again; `root`: to the square roots of shares (RootSIFT).

    - The grid of a size is centred; patches are 4 cells wide and lie within the image.
    - A flat patch is all 0: one whose weighted mean gradient is at most 1.35e-3 a pixel, of luminance 0 to 1.
    - The order: sizes, then rows, then columns; in a descriptor cells row by row, then directions, of which
      the first is brighter to the right, the third brighter downwards.

    Differs from Lowe's in: the weight is one a cell instead of one a pixel, which makes all patches of a size two
    matrix products (VLFeat's flat window).

    Args:
        cell_sizes: In pixels, different.
        step: Pixels between patches.
        root: As above.
    Shape:
        images (n, 3, H, W) uint8 -> (n, K, 128) float32.
    Raises:
        ValueError: if an argument is out of its range, or images are smaller than the largest patch.
    References:
        Lowe, Object Recognition from Local Scale-Invariant Features, ICCV 1999.
        Arandjelovic and Zisserman, Three Things Everyone Should Know to Improve Object Retrieval, CVPR 2012.
    """

    cell_sizes: tuple[int, ...]
    step: int
    root: bool = True

    def __post_init__(self) -> None:
        check_whole("step", self.step, minimum=1, below=2**31)
        check_flag("root", self.root)
        if not check_wholes("cell_sizes", self.cell_sizes, minimum=1):
            raise ValueError(f"cell_sizes: got {self.cell_sizes!r}, expected a tuple of at least one")
        if len(set(self.cell_sizes)) < len(self.cell_sizes):
            raise ValueError(f"cell_sizes: got {self.cell_sizes}, expected different sizes")

    def __call__(self, images: Images) -> Tensor:
        """The descriptors of all patches."""
        self._check_size(*images.shape[2:])
        red, green, blue = images.astype(np.float32).swapaxes(0, 1)
        # differences first: of grey they are exactly 0
        luminance = (green + 0.299 * (red - green) + 0.114 * (blue - green)) / 255
        parts = [self._of_size(luminance, cell) for cell in self.cell_sizes]
        return torch.cat(parts, dim=1)

    def places(self, height: int, width: int) -> npt.NDArray[np.float64]:
        """Middle of each patch, as shares of height and width, of images of this size: (K, 2)."""
        self._check_size(height, width)
        parts = []
        for cell in self.cell_sizes:
            middles = (
                (_starts(length, cell, self.step) + CELLS * cell / 2) / length for length in (height, width)
            )
            parts.append(np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 2))
        return np.concatenate(parts)

    def sample(self, rows: ImageRows, images: int, count: int, seed: int) -> Tensor:
        """At most so many descriptors that are not flat, evenly of at most so many images, both seeded: (n, 128)."""

        def textured(batch: Images) -> list[Features]:
            return [of_image[of_image.any(dim=1)].numpy() for of_image in self(batch)]

        sample = sampled_descriptors(textured, rows, images=images, samples=count, seed=seed)
        return torch.from_numpy(sample)

    def _of_size(self, luminance: npt.NDArray[np.float32], cell: int) -> Tensor:
        """(n, H, W) -> (n, K, 128) of one size of cell."""
        sigma = cell / _MAGNIFICATION
        smooth = torch.from_numpy(gaussian_filter(luminance, (0, sigma, sigma), mode="nearest"))
        maps = _orientation_maps(smooth)  # (n, 8, H, W)
        down, across = (_windows(length, cell, self.step) for length in luminance.shape[1:])
        sums = down @ maps @ across.T  # (n, 8, rows 4, columns 4)
        count = len(luminance)
        patches = sums.view(count, ORIENTATIONS, -1, CELLS, sums.shape[-1] // CELLS, CELLS)
        descriptors = patches.permute(0, 2, 4, 3, 5, 1).reshape(count, -1, _LENGTH)
        mass = descriptors.sum(dim=2, keepdim=True)
        textured = mass > _FLAT * (CELLS * cell) ** 2
        descriptors = torch.where(textured, descriptors, 0)
        descriptors = torch.nn.functional.normalize(descriptors, dim=2).clamp_(max=_CLIPPED)
        if self.root:
            return torch.nn.functional.normalize(descriptors, p=1, dim=2).sqrt_()
        return torch.nn.functional.normalize(descriptors, dim=2)

    def _check_size(self, height: int, width: int) -> None:
        side = CELLS * max(self.cell_sizes)
        if min(height, width) < side:
            raise ValueError(
                f"got images of {height} x {width} pixels, expected at least {side} x {side}, the largest patch: "
                f"lower cell_sizes={self.cell_sizes}"
            )


def _orientation_maps(smooth: Tensor) -> Tensor:
    """The gradient's length, shared between the two nearest of 8 directions: (n, H, W) -> (n, 8, H, W)."""
    down, across = torch.gradient(smooth, dim=(1, 2))
    direction = torch.atan2(down, across).mul_(ORIENTATIONS / (2 * math.pi))  # -4 to 4
    length = torch.hypot(down, across)
    maps = smooth.new_empty((len(smooth), ORIENTATIONS, *smooth.shape[1:]))
    for number in range(ORIENTATIONS):
        away = (direction - number).abs_()  # of one turn or the other
        away = torch.minimum(away, (ORIENTATIONS - away).abs_())
        torch.mul((1 - away).clamp_(min=0), length, out=maps[:, number])
    return maps


def _starts(length: int, cell: int, step: int) -> npt.NDArray[np.float64]:
    """Where patches begin along an axis, the left-over pixels shared between both ends."""
    left = length - CELLS * cell
    return left % step / 2 + step * np.arange(left // step + 1.0)


@functools.lru_cache(64)
def _windows(length: int, cell: int, step: int) -> Tensor:
    """The weight of each pixel in each cell of each patch along an axis: (patches 4, length)."""
    middles = (np.arange(CELLS) + 0.5) * cell
    cells = (_starts(length, cell, step)[:, None] + middles).reshape(-1, 1)
    triangles = (1 - np.abs(np.arange(length) + 0.5 - cells) / cell).clip(min=0)
    gaussian = np.exp(-0.5 * ((np.arange(CELLS) - (CELLS - 1) / 2) / (CELLS / 2)) ** 2)
    weighted = triangles.reshape(-1, CELLS, length) * gaussian[:, None]
    return torch.from_numpy(weighted.reshape(-1, length).astype(np.float32))
