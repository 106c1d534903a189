"""How alike two feature vectors are: kernels on torch tensors, for stored features and for current embeddings."""

import difflib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dr_plugin.checks import as_number, shown

KERNELS = ("gaussian", "laplacian", "cosine", "intersection")
_NORMS = {"gaussian": 2, "laplacian": 1}  # the kernels that have a bandwidth, and the norm that it scales
_BY_ROWS = 128  # from this dimension on, a pass for each row beats torch.cdist's city-block distance on a CPU


@dataclass(frozen=True)
class Kernel:
    """How alike two vectors x and y are: symmetric, between 0 and 1.

    - gaussian: exp(-|x - y|_2^2 / (2 h^2)), h the bandwidth.
    - laplacian: exp(-|x - y|_1 / h).
    - cosine: max(0, x.y / (|x| |y|)).
    - intersection, of histograms (no number below 0): sum_d min(x_d, y_d) / max(sum x, sum y).

    - A zero vector has nothing in common with any, itself included: cosine and intersection are 0.
    - Half precision and whole numbers are computed in float32, under autocast too. The squared distances of
      a gaussian block and the products of a cosine block are taken in float64 (where the device has it), so
      that near vectors far from the origin keep their difference.
    - Nothing is differentiated: a relevance weights the draws, it is not trained.

    Args:
        name: One of `KERNELS`.
        bandwidth: h > 0 of gaussian and laplacian; None for the others.
    Shape:
        kernel(x (n, D), y (m, D)) -> (n, m); kernel.paired(x (n, D), y (n, D)) -> (n,); float32, or float64
        where x or y is.
    Raises:
        ValueError: if the name is unknown, or the bandwidth is missing, superfluous or not above 0.
    Example:
        >>> Kernel("cosine")(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0], [-1.0, 0.0]]))
        tensor([[0.6000, 0.0000]])
    """

    name: str
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        check_kernel(self.name, self.bandwidth)
        if self.name in _NORMS and self.bandwidth is None:
            raise ValueError(f"bandwidth: got None, expected a number above 0 for {self.name!r}")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """All of x with all of y."""
        return self._compare(*_operands(x, y), paired=False)

    def paired(self, x: Tensor, y: Tensor) -> Tensor:
        """Each row of x with the same row of y."""
        return self._compare(*_operands(x, y), paired=True)

    @torch.no_grad()
    def _compare(self, x: Tensor, y: Tensor, paired: bool) -> Tensor:
        if self.bandwidth is not None:
            scaled = _distances(_NORMS[self.name], x, y, paired) / float(self.bandwidth)
            return torch.exp(scaled.square_().mul_(-0.5) if self.name == "gaussian" else scaled.neg_())
        if self.name == "cosine":
            unit = _unit(x)
            return _products(unit, unit if y is x else _unit(y), paired).clamp_(0, 1)
        sums, others = x.sum(1), y.sum(1)
        if not paired:
            sums = sums.unsqueeze(1)
        # min(a, b) = (a + b - |a - b|) / 2
        common = (sums + others - _distances(1, x, y, paired)) / 2
        largest = torch.maximum(sums, others)
        return torch.where(largest > 0, common / largest, 0).clamp_(0, 1)


def check_kernel(name: object, bandwidth: object = None) -> None:
    """ValueError unless the kernel exists and the bandwidth, where one is given, is one for it."""
    if not isinstance(name, str) or name not in KERNELS:
        near = difflib.get_close_matches(str(name), KERNELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"kernel: got {shown(name)}, expected one of {', '.join(KERNELS)}{hint}")
    if bandwidth is None:
        return
    if name not in _NORMS:
        raise ValueError(f"bandwidth: got {shown(bandwidth)}, expected None: {name!r} has none")
    if not 0 < as_number(bandwidth) < math.inf:
        raise ValueError(f"bandwidth: got {shown(bandwidth)}, expected a finite number above 0")


def has_bandwidth(name: str) -> bool:
    """Whether the kernel of this name needs one."""
    return name in _NORMS


def bandwidth_distances(name: str, x: Tensor, y: Tensor) -> Tensor:
    """The distances (n,) of paired rows that the bandwidth of this kernel is compared with."""
    x, y = _operands(x, y)
    return _distances(_NORMS[name], x, y, paired=True)


def median_bandwidth(distances: Tensor) -> Tensor:
    """The median of the distances above 0, as a tensor without dimensions; 1 where there are none.

    Copies of an image (distance 0) say nothing of how far different images are apart. Where all are copies,
    every bandwidth gives them relevance 1. NaN marks what is left out. The lower of two medians is taken.
    """
    median = torch.where(distances > 0, distances, torch.nan).nanmedian()
    return torch.where(median.isnan(), 1.0, median)


def _operands(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both (., D) in the dtype to compute in."""
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"got features {tuple(x.shape)} and {tuple(y.shape)}, expected (n, D) and (m, D)")
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    left = x.to(dtype)
    return left, left if y is x else y.to(dtype)


def _distances(norm: int, x: Tensor, y: Tensor, paired: bool) -> Tensor:
    """Of the Euclidean (2) or the city-block (1) norm."""
    if paired:
        difference: Tensor = torch.linalg.vector_norm(x - y, norm, dim=1)
        return difference
    if norm == 1:
        return _city_block(x, y)
    wide = x.to(_wide(x))
    others = wide if y is x else y.to(_wide(y))
    lengths, other_lengths = (torch.linalg.vector_norm(part, dim=1).square_() for part in (wide, others))
    with torch.autocast(x.device.type, enabled=False):
        # |x - y|^2 = |x|^2 - 2 x.y + |y|^2
        squares = torch.addmm(other_lengths, wide, others.T, alpha=-2).add_(lengths.unsqueeze(1))
    return squares.clamp_(min=0).sqrt_().to(x.dtype)


def _city_block(x: Tensor, y: Tensor) -> Tensor:
    if x.device.type != "cpu" or x.shape[1] < _BY_ROWS:
        return torch.cdist(x, y, p=1)
    if len(x) > len(y):
        return _city_block(y, x).T
    distances = x.new_empty((len(x), len(y)))
    for start in range(0, len(y), 512):  # few enough columns to stay in a core's cache from row to row
        part = y[start : start + 512]
        differences = torch.empty_like(part)
        for row, out in zip(x, distances[:, start : start + 512], strict=True):
            torch.sub(part, row, out=differences)
            torch.sum(differences.abs_(), 1, out=out)
    return distances


def _products(x: Tensor, y: Tensor, paired: bool) -> Tensor:
    if paired:
        return (x * y).sum(1)
    wide = x.to(_wide(x))
    others = wide if y is x else y.to(_wide(y))
    with torch.autocast(x.device.type, enabled=False):
        return (wide @ others.T).to(x.dtype)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1, or 0 where they are 0; scaled first, so that no square overflows or vanishes."""
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax(1, keepdim=True).clamp_(min=tiny)
    length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_(min=tiny)
    return x / length


def _wide(x: Tensor) -> torch.dtype:
    return x.dtype if x.device.type == "mps" else torch.float64
