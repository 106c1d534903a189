"""Which rated triplets belong together: what is split, resampled or held out must not tear these apart."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dr_plugin.triplets.relevances import Indices


def triplet_groups(text_queries: Sequence[str] | npt.NDArray[np.str_], images: Indices) -> Indices:
    """A number for each triplet, the same for those that share a text query or an image, also by way of others.

    Shape:
        text_queries (T,), images (T, 3) numbers of images -> (T,) int64, 0 to G - 1.
    Example:
        >>> triplet_groups(["cat", "cat", "dog", "car"], np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8], [8, 9, 10]]))
        array([0, 0, 1, 1])
    """
    text = np.unique(np.asarray(text_queries, dtype=str), return_inverse=True)[1].reshape(-1)
    image = np.unique(images, return_inverse=True)[1].reshape(-1) + text.max() + 1
    nodes = int(image.max()) + 1  # text queries and images are the nodes of one graph, joined by the triplets
    edges = text.repeat(3), image
    graph = coo_array((np.ones(len(image), np.int8), edges), shape=(nodes, nodes))
    part = connected_components(graph, directed=False)[1][text]
    groups: Indices = np.unique(part, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return groups
