"""Ranks of triplets' answers against loops over the pool."""

import numpy as np
import pytest
import torch

from dr_plugin.metrics import pools_by_group, scaled_k, score_at_top_k, triplet_ranks


def loop(table, triplets, pools):
    """Image by image. pools: for each triplet a list of images."""
    ranks = []
    for (query, positive, negative), pool in zip(triplets.tolist(), pools, strict=True):
        others = [i for i in pool if i != query or query in (positive, negative)]
        ranks.append(
            [1 + sum(bool(table[query, i] < table[query, a]) for i in others) for a in (positive, negative)]
            + [len(others)]
        )
    return torch.tensor(ranks).T


@pytest.fixture
def made():
    """A table of distances with many ties, triplets of 8 groups, two of them about the query itself."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randint(9, (40, 40), generator=generator).float()
    groups = [f"text {i % 8}" for i in range(60)]
    offsets = torch.arange(60)[:, None] % 8 * 5
    within = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(60)])
    triplets = offsets + within
    triplets[7, 1] = triplets[7, 0]
    triplets[20, 2] = triplets[20, 0]
    return table, triplets, groups


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_ranks_among_all_images_equal_the_loop(made, chunk_size):
    table, triplets, _ = made
    ranks = triplet_ranks(lambda q: table[q], triplets, chunk_size=chunk_size)
    expected = loop(table, triplets, [range(40)] * 60)
    assert torch.equal(torch.stack([ranks.positive, ranks.negative, ranks.pool_size]), expected)
    assert ranks.positive.dtype == torch.long


@pytest.mark.parametrize("chunk_size", [1, 7, 64])
def test_ranks_in_pools_equal_the_loop(made, chunk_size):
    table, triplets, groups = made
    which, pools = pools_by_group(triplets, groups)
    ranks = triplet_ranks(lambda q: table[q], triplets, (which, pools), chunk_size=chunk_size)
    expected = loop(table, triplets, [pools[w].tolist() for w in which.tolist()])
    assert torch.equal(torch.stack([ranks.positive, ranks.negative, ranks.pool_size]), expected)
    assert ranks.pool_size.max() < 6  # not the whole gallery


def test_the_query_is_no_image_of_its_pool():
    table = torch.tensor([[0.0, 1, 2, 3]]).expand(4, 4)
    ranks = triplet_ranks(lambda q: table[q], torch.tensor([[0, 1, 3]]))
    assert (ranks.positive.item(), ranks.negative.item(), ranks.pool_size.item()) == (1, 3, 3)


def test_images_at_one_distance_share_the_lowest_rank_and_score_nothing():
    ranks = triplet_ranks(lambda q: torch.ones(len(q), 5), torch.tensor([[0, 1, 2], [3, 4, 1]]))
    assert ranks.positive.tolist() == ranks.negative.tolist() == [1, 1]
    assert int(ranks.score(30)) == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_distances_of_any_type(made, dtype):
    table, triplets, _ = made
    ranks = triplet_ranks(lambda q: table[q].to(dtype), triplets)
    assert torch.equal(ranks.positive, triplet_ranks(lambda q: table[q], triplets).positive)


def test_each_query_is_asked_for_once_a_chunk_and_never_all_together(made):
    table, triplets, _ = made
    asked = []

    def distances(queries):
        asked.append(queries)
        return table[queries]

    triplet_ranks(distances, triplets, chunk_size=10)
    assert max(map(len, asked)) <= 10
    assert all(len(each.unique()) == len(each) for each in asked)
    assert len(torch.cat(asked)) <= len(triplets[:, 0].unique()) + 5


def test_score_says_what_it_was_counted_on(made):
    table, triplets, groups = made
    ranks = triplet_ranks(lambda q: table[q], triplets, pools_by_group(triplets, groups))
    for k in (2, scaled_k(ranks.pool_size, 0.5)):
        score = ranks.score(k)
        assert int(score) == score.score == score_at_top_k(ranks.positive, ranks.negative, k)
        limit = torch.as_tensor(k).expand(60).tolist()
        pairs = zip(ranks.positive.tolist(), ranks.negative.tolist(), limit, strict=True)
        assert score.counted == sum(min(p, n) <= most for p, n, most in pairs)
        assert score.k == (min(limit), max(limit))
    sizes = sorted(ranks.pool_size.tolist())
    assert score.pool_size == (sizes[0], (sizes[29] + sizes[30]) / 2, sizes[-1])
    assert score.triplets == 60


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_score_takes_a_k_of_each_triplet_from_the_gpu(made):
    table, triplets, _ = made
    ranks = triplet_ranks(lambda q: table.cuda()[q.cuda()], triplets)
    k = scaled_k(ranks.pool_size, 0.5)
    assert ranks.score(k.cuda()) == ranks.score(k)


def test_numpy_chunk_size_is_taken(made):
    table, triplets, _ = made
    ranks = triplet_ranks(lambda q: table[q], triplets, chunk_size=np.int64(7))
    assert torch.equal(ranks.positive, triplet_ranks(lambda q: table[q], triplets).positive)


def test_pools_hold_the_images_of_their_group(made):
    _, triplets, groups = made
    which, pools = pools_by_group(triplets, groups)
    for number, name in enumerate(dict.fromkeys(groups)):
        rows = [i for i in range(60) if groups[i] == name]
        assert (which[rows] == number).all()
        assert pools[number].tolist() == sorted({i for row in rows for i in triplets[row].tolist()})


def equal_distances(queries):
    return torch.ones(len(queries), 5)


TRIPLETS = torch.tensor([[0, 1, 2], [2, 3, 4]])


@pytest.mark.parametrize(
    ("triplets", "pools", "match"),
    [
        (TRIPLETS[:0], None, "got no triplets"),
        (TRIPLETS[:, :2], None, r"triplets \(2, 2\)"),
        (TRIPLETS.float(), None, "of torch.float32"),
        (TRIPLETS - 1, None, "index -1"),
        (TRIPLETS + 1, None, "index 5, expected less than 5"),
        (TRIPLETS, ([0, 1], [[0, 1, 2], []]), "pool 1: got no images"),
        (
            TRIPLETS,
            ([0, 1], [[0, 1, 2], [2, 3]]),
            r"pool 1: got triplet 1, \[2, 3, 4\], with an answer outside",
        ),
        (TRIPLETS, ([0, 0], [[0, 1, 2], [2, 3, 4]]), "pool 0: got triplet 1"),
        (TRIPLETS, ([0, 0], [[0, 1, 2, 3, 4, 4]]), "pool 0: got an image twice"),
        (TRIPLETS, ([0, 0], [[0, 1, 2, 3, 4, 5]]), r"pool 0: got images 0..5, expected 0..4"),
        (TRIPLETS, ([0, 2], [[0, 1, 2], [2, 3, 4]]), "pool ids 0..2, expected 0..1"),
        (TRIPLETS, ([0], [[0, 1, 2]]), r"pool ids \(1,\)"),
    ],
)
def test_bad_input_is_refused(triplets, pools, match):
    if pools is not None:
        pools = torch.tensor(pools[0]), [torch.tensor(pool, dtype=torch.long) for pool in pools[1]]
    with pytest.raises(ValueError, match=match):
        triplet_ranks(equal_distances, triplets, pools)


@pytest.mark.parametrize(
    ("distances", "match"),
    [
        (lambda q: torch.ones(len(q)), r"distances \(2,\) for 2 queries"),
        (lambda q: torch.ones(1, 5), r"distances \(1, 5\) for 2 queries"),
        (
            lambda q: torch.where(q[:, None] == 2, float("nan"), torch.ones(5)),
            "distance of nan for query 2, expected",
        ),
        (lambda q: torch.where(q[:, None] == 2, float("inf"), torch.ones(5)), "distance of inf for query 2"),
        (lambda q: torch.where(q[:, None] == 0, -float("inf"), torch.ones(5)).half(), "of -inf for query 0"),
    ],
)
def test_bad_distances_are_refused(distances, match):
    with pytest.raises(ValueError, match=match):
        triplet_ranks(distances, TRIPLETS)


def test_bad_groups_and_chunks_are_refused():
    with pytest.raises(ValueError, match="1 groups, expected one for each of the 2"):
        pools_by_group(TRIPLETS, ["a"])
    with pytest.raises(ValueError, match="chunk_size: got 0"):
        triplet_ranks(equal_distances, TRIPLETS, chunk_size=0)
