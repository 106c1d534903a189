"""What features that describe each image for itself share: images described batch by batch, and their size checked."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.utils.parallel import Parallel, delayed

from dr_plugin.relevance.image_rows import ImageRows

Progress = Callable[[str, int, int | None], None]
Images = npt.NDArray[np.uint8]  # (n, 3, H, W)
Features = npt.NDArray[np.float32]  # (n, F)


def describe_batches(
    describe: Callable[[Images], Features],
    images: Any,
    *,
    task: str,
    batch_size: int = 64,
    n_jobs: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """The features (N, F) of all images, each batch described for itself.

    Args:
        describe: Images (n, 3, H, W) uint8 -> (n, F) float32; picklable, where n_jobs is not 1.
        images: (N, 3, H, W) uint8, or an object with `len` and `batch(indices)`, such as PackedImages.
        task: What progress calls it.
        batch_size: Images in one piece of work.
        n_jobs: Processes, as everywhere in scikit-learn; None is 1, -1 all cores.
        progress: Called as progress(task, images done, images in all).
    """
    rows = ImageRows(images)
    indices = np.arange(len(rows))
    batches: Iterator[Images] = (
        rows.take(indices[start : start + batch_size]) for start in range(0, len(rows), batch_size)
    )
    parts: list[Features] = []
    done = 0
    for part in Parallel(n_jobs=n_jobs, return_as="generator")(delayed(describe)(batch) for batch in batches):
        parts.append(part)
        done += len(part)
        if progress is not None:
            progress(task, done, len(rows))
    return np.concatenate(parts)


def check_side(rows: ImageRows, side: int, what: str) -> None:
    """ValueError if the images are smaller than side x side pixels, which `what` tells of."""
    height, width = rows.take(np.zeros(1, np.int64)).shape[2:]
    if min(height, width) < side:
        raise ValueError(
            f"got images of {height} x {width} pixels, expected at least {side} x {side}, {what}"
        )
