"""What the metrics of rated triplets share: clusters of triplets, and bootstrap intervals over them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_plugin.checks import as_array, as_number, check_seed, check_whole, shown

Groups = Sequence[str] | Sequence[int] | Tensor | NDArray[Any]
Array = NDArray[np.float64]

_CHUNK_ELEMENTS = 1 << 22  # of one (resamples, kinds of clusters) table of counts


def cluster_sums(values: Array, counted: Array, groups: Groups | None) -> tuple[Array, Array]:
    """Sum of the values and number of the counted triplets, for each group; each triplet is one without groups.

    Shape:
        values (T,), counted (T,), groups T names or ids -> (G,), (G,).
    Raises:
        ValueError: if there is not one group for each triplet, or they cannot be sorted, as names and None.
    """
    if groups is None:
        return values, counted
    names = groups.cpu().numpy() if isinstance(groups, Tensor) else as_array("groups", groups)
    if names.shape != values.shape:
        raise ValueError(
            f"groups: got shape {names.shape}, expected one for each of the {len(values)} triplets"
        )
    try:
        inverse = np.unique(names, return_inverse=True)[1].reshape(-1)
    except TypeError as error:
        kinds = sorted({type(name).__name__ for name in names.tolist()})
        raise ValueError(
            f"groups: got values of {', '.join(kinds)}, expected names or ids, of one kind: give triplets without a "
            "group one each"
        ) from error
    sums, counts = np.bincount(inverse, values), np.bincount(inverse, counted)
    return sums.astype(np.float64), counts.astype(np.float64)


def bootstrap_interval(
    sums: Array, counts: Array, *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile interval of sum(sums) / sum(counts), whole clusters drawn with replacement, as many as there are.

    Clusters of one sum and one count are the same to the ratio: only how often each kind is drawn matters, which is
    multinomial. So 10,000 resamples of right and wrong triplets are 10,000 draws, not 10,000 x T.

    - Fewer than two clusters: nothing to resample, NaN.
    - Resamples that count nothing have no value and are left out; if all are such, NaN.

    Shape:
        sums (G,), counts (G,) -> low, high.
    Raises:
        ValueError: if the confidence is not inside (0, 1), or resamples or seed are not such integers.
    """
    check_resampling(confidence, resamples, seed)
    if len(sums) < 2:
        return float("nan"), float("nan")
    kinds, sizes = np.unique(np.stack([sums, counts], 1), axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    parts = []
    step = max(1, _CHUNK_ELEMENTS // len(kinds))
    for start in range(0, resamples, step):
        drawn = generator.multinomial(len(sums), sizes / len(sums), size=min(step, resamples - start))
        total, number = (drawn @ kinds).T
        parts.append(total[number > 0] / number[number > 0])
    shares = np.concatenate(parts)
    if len(shares) == 0:
        return float("nan"), float("nan")
    tail = (1 - float(confidence)) / 2
    low, high = np.quantile(shares, [tail, 1 - tail])
    return float(low), float(high)


def check_resampling(confidence: float, resamples: int, seed: int) -> None:
    """Refuse what no interval can be computed by."""
    if not 0 < as_number(confidence) < 1:
        raise ValueError(f"got confidence={shown(confidence)}, expected a number inside (0, 1), as 0.95")
    check_whole("resamples", resamples, minimum=1)
    check_seed(seed)


def one_per_triplet(**named: Any) -> list[Tensor]:
    """The arguments as tensors on the CPU, one-dimensional, of one length that is not 0, real and finite."""
    tensors = {name: torch.as_tensor(value).detach().cpu() for name, value in named.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if any(len(shape) != 1 for shape in shapes.values()) or len(set(shapes.values())) != 1:
        raise ValueError(f"got shapes {shapes}, expected one shape (T,), one value for each triplet")
    for name, tensor in tensors.items():
        if len(tensor) == 0:
            raise ValueError(
                f"{name}: got no triplets, expected at least one: the mean of nothing is no number"
            )
        if tensor.is_complex():
            raise ValueError(f"{name}: got {tensor.dtype}, expected real numbers, which have an order")
        bad = (~torch.isfinite(tensor)).nonzero()
        if len(bad):
            raise ValueError(
                f"{name}: got {tensor[bad[0, 0]].item()} for triplet {int(bad[0, 0])} ({len(bad)} such in all), "
                "expected finite numbers: see what made them (a diverged model, float16 overflow)"
            )
    return list(tensors.values())
