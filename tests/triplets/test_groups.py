"""Groups of triplets against union-find over their text queries and images."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.triplets.groups import triplet_groups


def union_find(text_queries, images):
    """For each triplet the root of its tree, every triplet joined to its text query and to its images."""
    parent = {}

    def root(node):
        while parent.setdefault(node, node) != node:
            node = parent[node]
        return node

    for number, (text, row) in enumerate(zip(text_queries, images, strict=True)):
        for node in (("text", text), *(("image", image) for image in row)):
            parent[root(node)] = root(("triplet", number))
    return [root(("triplet", number)) for number in range(len(images))]


def check(text_queries, images):
    groups = triplet_groups(text_queries, np.array(images))
    roots = union_find(text_queries, images)
    assert groups.shape == (len(images),)
    assert groups.dtype == np.int64
    assert sorted(set(groups.tolist())) == list(range(len(set(roots))))
    # The same partition: each root has one number, and each number one root.
    assert len(set(zip(roots, groups.tolist(), strict=True))) == len(set(roots))
    return groups


# numpy's strings end at their last character that is not NUL.
TEXTS = st.text(st.characters(exclude_characters="\0"), max_size=3)


@settings(deadline=None)
@given(st.data())
def test_groups_equal_union_find_with_any_text_queries(data):
    texts = data.draw(st.lists(TEXTS, min_size=1, max_size=8))
    rows = st.lists(
        st.tuples(st.sampled_from(texts), *[st.integers(0, data.draw(st.integers(2, 60)))] * 3),
        min_size=1,
        max_size=25,
    )
    drawn = data.draw(rows)
    check([row[0] for row in drawn], [row[1:] for row in drawn])


@pytest.mark.parametrize("seed", range(6))
def test_groups_equal_union_find_on_random_graphs(seed):
    # About as many images as triplets have places: from many small groups to one large one.
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 300 * (seed + 1), (200, 3))
    texts = [f"text {number}" for number in generator.integers(0, 400, 200)]
    groups = check(texts, images.tolist())
    assert 1 <= groups.max() + 1 <= 200


def test_one_triplet():
    assert triplet_groups(["cat"], np.array([[5, 7, 9]])).tolist() == [0]
    assert triplet_groups([""], np.array([[5, 5, 5]])).tolist() == [0]


def test_a_text_query_that_reads_like_an_image_is_none():
    assert triplet_groups(["3", "0"], np.array([[0, 1, 2], [3, 4, 5]])).tolist() in ([0, 1], [1, 0])


def test_triplets_are_joined_by_way_of_others():
    chain = np.array([[0, 1, 2], [2, 3, 4], [4, 5, 6], [7, 8, 9]])
    assert len(set(triplet_groups(["a", "b", "c", "d"], chain).tolist())) == 2
    assert len(set(triplet_groups(["a", "b", "c", "a"], chain).tolist())) == 1


def test_large_image_numbers_and_numpy_strings():
    images = np.array([[2**62, 1, 2], [2**62, 3, 4], [5, 6, 7]])
    assert triplet_groups(np.array(["a", "b", "c"]), images).tolist() == [0, 0, 1]
