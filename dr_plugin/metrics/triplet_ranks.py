"""Where the answers of rated triplets stand in their queries' rankings."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dr_plugin.checks import check_length, check_whole, shown
from dr_plugin.metrics.score_at_top_k import score_at_top_k

Pools = tuple[Tensor | NDArray[Any], Sequence[Tensor]]
Distances = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ScoreAtTopK:
    """A score at top K beside what it was counted on; ``int()`` of it is the score.

    Attributes:
        score: Right less wrong.
        counted: Triplets with an answer among the K nearest.
        triplets: Triplets in all.
        k: Smallest and largest K.
        pool_size: Smallest, median and largest number of images in a triplet's pool, the query not counted.
    """

    score: int
    counted: int
    triplets: int
    k: tuple[int, int]
    pool_size: tuple[int, float, int]

    def __int__(self) -> int:
        return self.score


@dataclass(frozen=True)
class TripletRanks:
    """Ranks of the triplets' answers in the pools of their queries.

    Attributes:
        positive: (T,) long, 1 + the number of the pool's images nearer to the query than the positive.
        negative: (T,) long, the same of the negative.
        pool_size: (T,) long, images in the pool, the query not counted.
    """

    positive: Tensor
    negative: Tensor
    pool_size: Tensor

    def score(self, k: int | Tensor) -> ScoreAtTopK:
        """``score_at_top_k`` of these ranks, with what it was counted on; k as there (``scaled_k(pool_size)``)."""
        score = score_at_top_k(self.positive, self.negative, k)
        limit = torch.as_tensor(k).cpu()  # where the ranks are
        sizes = self.pool_size
        return ScoreAtTopK(
            score=score,
            counted=int((torch.minimum(self.positive, self.negative) <= limit).sum()),
            triplets=len(sizes),
            k=(int(limit.min()), int(limit.max())),
            pool_size=(int(sizes.min()), float(sizes.double().quantile(0.5)), int(sizes.max())),
        )


def triplet_ranks(
    distances: Distances,
    triplets: Tensor | NDArray[Any],
    pools: Pools | None = None,
    *,
    chunk_size: int = 64,
) -> TripletRanks:
    """Ranks of each triplet's positive and negative among the images of its query's pool.

    rank(a) = 1 + |{j in pool : D(q, j) < D(q, a)}|

    - The query is no image of its own pool, unless it is an answer too (a triplet that is best looked at).
    - Images at one distance share the lowest rank of theirs: a model that cannot tell images apart puts all at rank 1.
    - Triplets are taken in the order of their queries, ``chunk_size`` at a time; never is there a Q x N matrix.

    Args:
        distances: Called with the indices of some queries (q,), gives their distances to all images, (q, N).
        triplets: Indices of query, positive and negative.
        pools: Which pool each triplet has, and the images of each pool; see ``pools_by_group``. None: one pool of all
            N images.
        chunk_size: Triplets at a time.
    Shape:
        triplets (T, 3) integer, pools ((T,) integer, list of (n,) integer), distances (q,) -> (q, N) -> TripletRanks.
    Raises:
        ValueError: if there is no triplet, an index is out of range, a pool is empty or has images twice, an answer
            is not in its triplet's pool, or ``distances`` gives the wrong shape, NaN or infinity.
    Example:
        >>> import torch
        >>> points = torch.tensor([0.0, 1.0, 3.0, 7.0])
        >>> ranks = triplet_ranks(lambda q: (points[q, None] - points).abs(), torch.tensor([[0, 1, 3], [2, 3, 1]]))
        >>> ranks.positive.tolist(), ranks.negative.tolist(), ranks.pool_size.tolist()
        ([1, 3], [3, 1], [3, 3])
        >>> int(ranks.score(k=2))
        0
    """
    if not callable(distances):
        raise ValueError(f"distances: got {shown(distances)}, expected a function of some queries' indices")
    rows = _checked_triplets(triplets)
    chunk_size = check_whole("chunk_size", chunk_size, minimum=1)
    which = None if pools is None else _checked_pools(rows, pools)
    order = torch.argsort(rows[:, 0], stable=True)
    parts = []
    for these in order.split(chunk_size):
        table, place = _distances_of(distances, rows[these])
        member = _members(table, rows[these], None if which is None else (which[0][these], which[1]))
        answers = table[place].gather(1, rows[these, 1:].to(table.device))  # (m, 2)
        nearer = [((table[place] < answers[:, i, None]) & member).sum(1) for i in (0, 1)]
        parts.append(torch.stack([1 + nearer[0], 1 + nearer[1], member.sum(1)]).cpu())
    ranks = torch.empty(3, len(rows), dtype=torch.long)
    ranks[:, order] = torch.cat(parts, 1)
    return TripletRanks(*ranks)


def pools_by_group(
    triplets: Tensor | NDArray[Any], groups: Sequence[Hashable]
) -> tuple[Tensor, list[Tensor]]:
    """For each triplet the pool of all images that the triplets of its group name, as those of its text query.

    Shape:
        triplets (T, 3), groups of length T -> (T,) long and one sorted (n,) long for each group.
    Raises:
        ValueError: if there is not one group for each triplet.
    Example:
        >>> import torch
        >>> which, pools = pools_by_group(torch.tensor([[0, 1, 2], [5, 6, 7], [0, 3, 2]]), ["car", "cat", "car"])
        >>> which.tolist(), [pool.tolist() for pool in pools]
        ([0, 1, 0], [[0, 1, 2, 3], [5, 6, 7]])
    """
    rows = _checked_triplets(triplets)
    if (count := check_length("groups", groups, "one for each triplet")) != len(rows):
        raise ValueError(f"got {count} groups, expected one for each of the {len(rows)} triplets")
    # A tensor's numbers are each an object of its own, and no two of them the same group.
    names = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    if not all(isinstance(name, Hashable) for name in names):
        raise ValueError(f"groups: got {shown(groups)}, expected names or numbers")
    number: dict[Hashable, int] = {}
    which = torch.tensor([number.setdefault(name, len(number)) for name in names])
    return which, [torch.unique(rows[these]) for these in _triplets_by_pool(which, len(number))]


def _checked_triplets(triplets: Tensor | NDArray[Any]) -> Tensor:
    rows = torch.as_tensor(triplets).cpu()
    if rows.ndim != 2 or rows.shape[1] != 3 or rows.is_floating_point() or rows.dtype == torch.bool:
        raise ValueError(
            f"got triplets {tuple(rows.shape)} of {rows.dtype}, expected (T, 3) integers: query, positive, negative"
        )
    if len(rows) == 0:
        raise ValueError("got no triplets, expected at least one")
    if bool((rows < 0).any()):
        raise ValueError(f"got triplets with index {int(rows.min())}, expected indices of images, 0 or more")
    return rows.long()


def _triplets_by_pool(which: Tensor, number: int) -> Iterator[Tensor]:
    """The triplets of each pool, in turn."""
    yield from which.argsort(stable=True).split(torch.bincount(which, minlength=number).tolist())


def _checked_pools(rows: Tensor, pools: Pools) -> tuple[Tensor, list[Tensor]]:
    """The pools, each with its images sorted, once it is known that every answer is in its triplet's pool."""
    if not isinstance(pools, list | tuple) or len(pools) != 2 or not isinstance(pools[1], list | tuple):
        raise ValueError(
            f"pools: got {shown(pools)}, expected which pool each triplet has, and a list of the pools' images"
        )
    which, members = torch.as_tensor(pools[0]).cpu(), [torch.as_tensor(pool).cpu() for pool in pools[1]]
    if which.shape != rows.shape[:1] or which.is_floating_point():
        raise ValueError(
            f"got pool ids {tuple(which.shape)} of {which.dtype}, expected ({len(rows)},) integers, one a triplet"
        )
    if int(which.min()) < 0 or int(which.max()) >= len(members):
        raise ValueError(
            f"got pool ids {int(which.min())}..{int(which.max())}, expected 0..{len(members) - 1}, "
            f"as there are {len(members)} pools"
        )
    for number, these in enumerate(_triplets_by_pool(which.long(), len(members))):
        pool = members[number]
        if len(pool) == 0 and len(these):
            raise ValueError(
                f"pool {number}: got no images, expected those that its triplets are ranked among"
            )
        if len(pool.unique()) != len(pool):
            raise ValueError(
                f"pool {number}: got an image twice, expected each once: it would count twice in a rank"
            )
        outside = ~torch.isin(rows[these, 1:], pool)
        outside &= rows[these, 1:] != rows[these, :1]  # the query as its own answer is in the pool by that
        if outside.any():
            triplet = int(these[outside.any(1)][0])
            raise ValueError(
                f"pool {number}: got triplet {triplet}, {rows[triplet].tolist()}, with an answer outside of the pool, "
                "expected the pool to hold the images that its triplets rank"
            )
    return which.long(), members


def _distances_of(distances: Distances, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of the chunk's queries to all images (q, N), and each triplet's row therein (m,)."""
    queries, place = rows[:, 0].unique(return_inverse=True)
    table = torch.as_tensor(distances(queries)).detach()
    if table.ndim != 2 or len(table) != len(queries):
        raise ValueError(
            f"got distances {tuple(table.shape)} for {len(queries)} queries, expected ({len(queries)}, N), "
            "one to each image"
        )
    if int(rows.max()) >= table.shape[1]:
        raise ValueError(
            f"got triplets with index {int(rows.max())}, expected less than {table.shape[1]}, the number of images"
        )
    ends = torch.stack(torch.aminmax(table))  # a NaN shows in them, and one pass finds them
    if not torch.isfinite(ends).all():
        bad = (~torch.isfinite(table)).nonzero()[0].cpu()
        raise ValueError(
            f"got a distance of {table[bad[0], bad[1]].item()} for query {int(queries[bad[0]])}, expected finite "
            "numbers: see what made the embeddings (a diverged model, float16 overflow)"
        )
    return table, place.to(table.device)


def _members(table: Tensor, rows: Tensor, pools: tuple[Tensor, list[Tensor]] | None) -> Tensor:
    """Which images each triplet is ranked among: its pool without its query, (m, N) bool."""
    if pools is None:
        member = torch.ones(len(rows), table.shape[1], dtype=torch.bool)
    else:
        member = torch.zeros(len(rows), table.shape[1], dtype=torch.bool)
        for number in pools[0].unique().tolist():
            pool = pools[1][number]
            if int(pool.min()) < 0 or int(pool.max()) >= table.shape[1]:
                raise ValueError(
                    f"pool {number}: got images {int(pool.min())}..{int(pool.max())}, expected "
                    f"0..{table.shape[1] - 1}, as there are {table.shape[1]} images"
                )
            these = (pools[0] == number).nonzero()  # (m', 1)
            member[these, pool.long()] = True
    member.scatter_(1, rows[:, :1], (rows[:, :1] == rows[:, 1:]).any(1, keepdim=True))
    return member.to(table.device)
