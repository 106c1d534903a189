"""Where the relevances of a class are in one long row of numbers."""

import torch
from torch import Tensor

from dr_plugin.triplets.relevances import Relevance
from dr_plugin.triplets.uniform import checked_labels

_CHUNK = 1 << 20  # pairs asked of a relevance at once


class ClassLayout:
    """Ragged rows, one for each query: the references of its class, in the sorted order of the references.

    Rows of one class follow one another, classes ascend, and within a class rows and entries ascend by index.
    So a class of n images, when the images are their own references, is one n x n matrix, row by row, the
    diagonal included: what `blocks` gives, class after class. Memory O(images), not O(entries).

    - With `reference_labels`, a class is a matrix of its queries by its references; a class without
      references has empty rows.
    - One label for all is graded relevance: one class, N x N entries.

    Args:
        labels: The queries' classes; any integers.
        reference_labels: The references' classes; None: the images are their own references.
    Attributes:
        size: E, the entries of all rows.
        own: Whether the images are their own references.
        queries: (B,) the image of each row.
        references: (M,) the references in sorted order.
        start: (B,) where in `references` a row's class begins.
        count: (B,) the entries of each row.
        offset: (B + 1,) where each row begins among the entries.
        itself: (B,) the place in its row of the image itself, -1 where the references are others.
    Shape:
        labels (B,), reference_labels (M,) integer tensors.
    Raises:
        ValueError: if labels are not 1-D integers.
    Example:
        >>> layout = ClassLayout(torch.tensor([1, 0, 1]))
        >>> layout.pairs()
        (tensor([1, 0, 0, 2, 2]), tensor([1, 0, 2, 0, 2]))
    """

    def __init__(self, labels: Tensor, reference_labels: Tensor | None = None) -> None:
        labels = checked_labels(labels, "labels")
        self.own = reference_labels is None
        classes, self.queries = torch.sort(labels, stable=True)
        if reference_labels is None:
            blocks, self.references = classes, self.queries
        else:
            others = checked_labels(reference_labels, "reference_labels").to(labels.device)
            blocks, self.references = torch.sort(others, stable=True)
        self.start = torch.searchsorted(blocks, classes)
        self.count = torch.searchsorted(blocks, classes, right=True) - self.start
        self.offset = torch.nn.functional.pad(self.count.cumsum(0), (1, 0))
        self.size = int(self.offset[-1])
        place = torch.arange(len(labels), device=labels.device) - self.start
        self.itself = place if self.own else torch.full_like(place, -1)

    def pairs(self, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Query and reference of each entry from `start` to before `stop`, as indices into labels and references.

        An image's pair with itself is among them; `RelevantTriplets` ignores the value there.

        Shape:
            -> 2 tensors (stop - start,) long.
        """
        if not 0 <= start <= self.size or (stop is not None and not start <= stop <= self.size):
            raise ValueError(f"got entries {start} to {stop}, expected a range within 0 to {self.size}")
        entries = torch.arange(start, self.size if stop is None else stop, device=self.offset.device)
        row = torch.searchsorted(self.offset, entries, right=True) - 1
        place = entries - self.offset[row] + self.start[row]
        return self.queries[row], self.references[place]


def relevance_values(layout: ClassLayout, relevance: Relevance, images: Tensor, references: Tensor) -> Tensor:
    """r of each entry of the layout, asked of a relevance by image index; 0 for an image with itself.

    Args:
        layout: On the CPU, as the images and references are.
        relevance: Asked for pairs of one class.
        images: The layout's queries as indices of the relevance's images.
        references: The layout's references, likewise.
    Shape:
        images (B,), references (M,) long -> (E,) float32.
    Raises:
        ValueError: if one is negative or not finite.
    """
    values = torch.zeros(layout.size)
    for start in range(0, layout.size, _CHUNK):
        stop = min(start + _CHUNK, layout.size)
        i, j = layout.pairs(start, stop)
        first, second = images[i], references[j]
        differ = first != second
        found = torch.as_tensor(relevance.pairs(first[differ].numpy(), second[differ].numpy())).float()
        if len(found) and not bool((found.isfinite() & (found >= 0)).all()):
            raise ValueError("relevance: got one that is not, expected every r(i, j) finite and at least 0")
        values[start:stop].masked_scatter_(differ, found)
    return values
