"""The position-dependent similarity unit of PDDM."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, normalize, pad
from torch.utils.checkpoint import checkpoint

from dr_plugin.checks import check_whole
from dr_plugin.triplets.quadruplets import check_size

# Numbers of one (pairs, D) tensor: on the CPU 1 MiB in float32, which its caches hold; elsewhere 64 MiB, as many small
# tiles would leave an accelerator idle. Only the CPU's was measured.
_TILE_ELEMENTS = 1 << 18
_TILE_ELEMENTS_ELSEWHERE = 1 << 24


class PDDMUnit(torch.nn.Module):
    """How similar two embeddings are, by their difference and by where they lie: one number, higher is more.

    With x, y of unit norm, u = |x - y| and v = (x + y) / 2:

        u' = l2(ReLU(W_u u + b_u)),  v' = l2(ReLU(W_v v + b_v)),  c = ReLU(W_c [u'; v'] + b_c),  S = W_s c + b_s

    - Symmetric, to the last bit. Unbounded: only the order of similarities, and their differences, say something.
    - Embeddings are l2-normalised inside; one of norm 0 stays 0.
    - Computed in float32 at least, whatever the embeddings' type and under autocast too; in float64 where the
      embeddings or the weights are.
    - The weights begin as those of `torch.nn.Linear` do; how the paper's begin is not known.

    Memory: pairs are taken tile by tile. A tile is 2**18 numbers a tensor (pairs x D) on the CPU, 1 MiB in float32,
    and about ten such tensors; 2**24 on other devices, 64 MiB (only the CPU's size was measured). With gradients,
    tiles are computed again in the backward pass rather than kept (checkpointing), unless there is just one.

    Args:
        embedding_size: D of the embeddings.
    Attributes:
        difference, position, joint, similarity: `torch.nn.Linear`: W_u (D, D), W_v (D, D), W_c (D, 2D), W_s (1, D).
    Shape:
        x, y (N, D) -> (N,).
    Raises:
        ValueError: if the embedding size is not a whole number of at least 1, or the embeddings' is another.
    Example:
        >>> unit = PDDMUnit(embedding_size=4)
        >>> unit(torch.randn(3, 4), torch.randn(3, 4)).shape
        torch.Size([3])
        >>> unit.matrix(torch.randn(3, 4)).shape
        torch.Size([3, 3])

    References:
        Huang, Loy and Tang, Local Similarity-Aware Deep Feature Embedding, NIPS 2016.
    """

    def __init__(self, embedding_size: int) -> None:
        size = check_whole("embedding_size", embedding_size, minimum=1, below=2**31)
        super().__init__()
        self.embedding_size = size
        self.difference = torch.nn.Linear(size, size)
        self.position = torch.nn.Linear(size, size)
        self.joint = torch.nn.Linear(2 * size, size)
        self.similarity = torch.nn.Linear(size, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Similarity of each x to the y of the same row: (N, D), (N, D) -> (N,)."""
        if len(x) != len(y):
            raise ValueError(f"y: got {len(y)} rows, expected {len(x)}, as x; for all pairs use matrix(x, y)")
        rows = torch.arange(len(x), device=x.device)
        return self.pairs(x, y, rows, rows)

    def pairs(self, x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
        """Similarity of x[i] to y[j]: (N, D), (M, D), (T,), (T,) -> (T,). Memory: one tile, and the result."""
        weights = self._weights(x, y)

        def tile(x: Tensor, y: Tensor, i: Tensor, j: Tensor) -> Tensor:
            first, second = weights.unit_norm(x.index_select(0, i)), weights.unit_norm(y.index_select(0, j))
            return weights.similarities((first - second).abs(), weights.placed((first + second) / 2))

        size = self._tile_pairs(x.device)
        with torch.autocast(x.device.type, enabled=False):
            if len(i) == 0:
                return (x[:0] + y[:0]).to(weights.dtype).sum(1)
            starts = range(0, len(i), size)
            tiles = [(x, y, i[start : start + size], j[start : start + size]) for start in starts]
            return torch.cat([_computed(tile, len(tiles) > 1, *arguments) for arguments in tiles])

    def matrix(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Similarity of each x to each y; without y, of each x to each x: (N, D), (M, D) -> (N, M).

        The (N, M, D) tensors of all pairs are never built. Memory: one tile, and about three times the result (twice
        with y). Without y every pair counts once, in about half the time where there are many tiles, and the matrix is
        symmetric to the last bit.
        """
        weights = self._weights(x, x if y is None else y)
        with torch.autocast(x.device.type, enabled=False):
            rows = weights.unit_norm(x)
            columns = rows if y is None else weights.unit_norm(y)
            if len(rows) == 0 or len(columns) == 0:
                return rows @ columns.T
            strips = self._strips(weights, rows, columns, upper=y is None)
            if y is not None:
                return torch.cat(strips)
            upper = torch.cat([pad(strip, (len(rows) - strip.shape[1], 0)) for strip in strips])
            del strips
            return torch.where(torch.ones_like(upper, dtype=torch.bool).triu(), upper, upper.T)

    def candidates(self, query: Tensor, gallery: Tensor, indices: Tensor) -> Tensor:
        """Similarity of each query to its candidates in the gallery, as `metrics.nearest` finds them.

        Memory: one tile, the result, and as many indices.

        Shape:
            query (Q, D), gallery (N, D), indices (Q, K) long -> (Q, K).
        Raises:
            ValueError: if the indices are not one row for each query, or not all within the gallery.
        """
        if indices.ndim != 2 or len(indices) != len(query):
            raise ValueError(
                f"indices: got {tuple(indices.shape)}, expected ({len(query)}, K), a row for each query"
            )
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise ValueError(f"indices: got {indices.dtype}, expected integers")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < len(gallery):
            raise ValueError(
                f"indices: got {int(indices.min())} to {int(indices.max())}, expected indices of the gallery's "
                f"{len(gallery)} rows"
            )
        rows = torch.arange(len(query), device=query.device).repeat_interleave(indices.shape[1])
        return self.pairs(query, gallery, rows, indices.long().flatten()).view(indices.shape)

    def check_size(self, name: str, embeddings: Tensor) -> None:
        """A ValueError unless the embeddings, called `name`, are of the unit's size, (N, D)."""
        check_size(name, embeddings, self.embedding_size)

    def _strips(self, weights: "_Weights", x: Tensor, y: Tensor, upper: bool) -> list[Tensor]:
        """The matrix in strips of rows; under `upper`, a strip begins at its first row's column."""

        def tile(x: Tensor, y: Tensor, x_placed: Tensor, y_placed: Tensor) -> Tensor:
            difference = (x[:, None] - y[None]).abs().flatten(0, 1)  # (height x width, D)
            position = (x_placed[:, None] + y_placed[None]).flatten(0, 1)
            return weights.similarities(difference, position).view(len(x), len(y))

        # W_v v + b_v is linear: half of it for each row, once, instead of all of it for each pair.
        x_placed = weights.placed(x) / 2
        y_placed = x_placed if x is y else weights.placed(y) / 2
        size = self._tile_pairs(x.device)
        again = len(x) * len(y) > size
        strips, start = [], 0
        while start < len(x):
            begin = start if upper else 0
            width = min(size, len(y) - begin)
            rows = slice(start, start + max(1, size // width))
            columns = [slice(first, first + width) for first in range(begin, len(y), width)]
            tiles = [
                _computed(tile, again, x[rows], y[part], x_placed[rows], y_placed[part]) for part in columns
            ]
            strips.append(torch.cat(tiles, dim=1))
            start = rows.stop
        return strips

    def _tile_pairs(self, device: torch.device) -> int:
        elements = _TILE_ELEMENTS if device.type == "cpu" else _TILE_ELEMENTS_ELSEWHERE
        return max(1, elements // self.embedding_size)

    def _weights(self, x: Tensor, y: Tensor) -> "_Weights":
        """The weights in the type to compute in, after a look at the embeddings."""
        self.check_size("x", x)
        self.check_size("y", y)
        dtype = torch.float32
        for tensor in (x, y, self.joint.weight):
            dtype = torch.promote_types(dtype, tensor.dtype)
        joint = self.joint.weight.to(dtype)
        return _Weights(
            dtype,
            (self.difference.weight.to(dtype), self.difference.bias.to(dtype)),
            (self.position.weight.to(dtype), self.position.bias.to(dtype)),
            (joint[:, : self.embedding_size], self.joint.bias.to(dtype)),
            joint[:, self.embedding_size :],
            (self.similarity.weight.to(dtype), self.similarity.bias.to(dtype)),
        )


class _Weights(NamedTuple):
    """The unit's weights in one type, W_c in its halves."""

    dtype: torch.dtype
    difference: tuple[Tensor, Tensor]  # W_u, b_u
    position: tuple[Tensor, Tensor]  # W_v, b_v
    joint_difference: tuple[Tensor, Tensor]  # of W_c what meets u', b_c
    joint_position: Tensor  # of W_c what meets v'
    similarity: tuple[Tensor, Tensor]  # W_s, b_s

    def unit_norm(self, embeddings: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return normalize(embeddings.to(self.dtype))

    def placed(self, position: Tensor) -> Tensor:
        """W_v v + b_v: (N, D) -> (N, D)."""
        return linear(position, *self.position)

    def similarities(self, difference: Tensor, placed: Tensor) -> Tensor:
        """S from u and W_v v + b_v: (P, D), (P, D) -> (P,)."""
        joint = linear(normalize(linear(difference, *self.difference).relu()), *self.joint_difference)
        joint = torch.addmm(joint, normalize(placed.relu()), self.joint_position.T)
        return linear(joint.relu(), *self.similarity).squeeze(1)


def _computed(tile: Callable[..., Tensor], again: bool, *arguments: Tensor) -> Tensor:
    """The tile; under `again`, what its gradient needs is computed again rather than kept."""
    if not (again and torch.is_grad_enabled()):
        return tile(*arguments)
    values: Tensor = checkpoint(tile, *arguments, use_reentrant=False, preserve_rng_state=False)
    return values
