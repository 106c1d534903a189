"""Hard quadruplets and hard triplets, against explicit loops over a table of similarities."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.triplets.quadruplets import hard_quadruplets, hard_triplets


class Table:
    """Similarities read from a table; an embedding is the row's (or the column's) number."""

    embedding_size = 1

    def __init__(self, values):
        self.values, self.compared = values, 0

    def __call__(self, x, y):
        self.compared += len(x)
        return self.values[x.squeeze(1).long(), y.squeeze(1).long()]

    def matrix(self, x, y=None):
        y = x if y is None else y
        self.compared += len(x) * len(y)
        return self.values[x.squeeze(1).long()][:, y.squeeze(1).long()]


def _numbers(numbers):
    return torch.tensor([*numbers], dtype=torch.float32).unsqueeze(1)


def _random_table(size, seed, values=1000):
    generator = torch.Generator().manual_seed(seed)
    table = torch.randint(values, (size, size), generator=generator) - values / 2.0
    return table.triu() + table.triu(1).T


def _first(candidates, key):
    """The first candidate of the smallest key."""
    best = None
    for candidate in candidates:
        if best is None or key(candidate) < key(best):
            best = candidate
    return best


def _triplets_by_loops(table, labels, count):
    """Of the hardest pairs, one after the other, the two triplets."""
    table, found = table.tolist(), []
    left = [(i, j) for i, j in itertools.combinations(range(len(labels)), 2) if labels[i] == labels[j]]
    while left and len(found) < 2 * count:
        i, j = _first(left, lambda pair: table[pair[0]][pair[1]])
        left.remove((i, j))
        for anchor, positive in ((i, j), (j, i)):
            negatives = [n for n in range(len(labels)) if labels[n] != labels[anchor]]
            if not negatives:
                return []
            negative = _first(negatives, lambda n, anchor=anchor: -table[anchor][n])
            found.append((anchor, positive, negative))
    return found


def _as_list(triplets):
    return list(zip(*(indices.tolist() for indices in triplets), strict=True))


LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=12)
# A reference is an image of the batch, as in a memory, or another one (12 and above) and its class.
REFERENCES = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4)), min_size=1, max_size=9)


def _referred(labels, references):
    """Numbers and classes of the references, those of the batch being of its classes."""
    numbers = [number if number < len(labels) else 12 + number for number, _ in references]
    return numbers, [
        labels[number] if number < len(labels) else label
        for number, (_, label) in zip(numbers, references, strict=True)
    ]


@settings(max_examples=60)
@given(LABELS, st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([3, 1000]))
def test_quadruplets_are_those_of_loops(labels, seed, count, values):
    table = _random_table(len(labels), seed, values)  # of 3 values there are many ties
    embeddings = _numbers(range(len(labels)))
    mined = hard_quadruplets(Table(table), embeddings, torch.tensor(labels), count=count)
    assert all(indices.dtype == torch.long for indices in mined)
    assert _as_list(mined) == _triplets_by_loops(table, labels, count)


@settings(max_examples=60)
@given(LABELS, REFERENCES, st.integers(0, 10**6), st.integers(1, 8))
def test_with_references_each_pair_gives_one_triplet_of_them(labels, references, seed, count):
    table, (numbers, ref_labels) = _random_table(43, seed), _referred(labels, references)
    between, expected = table[: len(labels), numbers].tolist(), []
    pairs = [
        (i, j)
        for i, j in itertools.product(range(len(labels)), range(len(numbers)))
        if labels[i] == ref_labels[j] and numbers[j] != i and set(ref_labels) != {labels[i]}
    ]
    while pairs and len(expected) < count:
        i, j = _first(pairs, lambda pair: between[pair[0]][pair[1]])
        pairs.remove((i, j))
        negatives = [n for n in range(len(ref_labels)) if ref_labels[n] != labels[i]]
        expected.append((i, j, _first(negatives, lambda n, i=i: -between[i][n])))
    batch = (_numbers(range(len(labels))), torch.tensor(labels), _numbers(numbers), torch.tensor(ref_labels))
    assert _as_list(hard_quadruplets(Table(table), *batch, count=count)) == expected


@settings(max_examples=60)
@given(LABELS, st.none() | REFERENCES, st.integers(0, 10**6))
def test_hard_triplets_are_the_hardest_of_each_anchor(labels, references, seed):
    table, expected = _random_table(43, seed, 20), []
    numbers, ref_labels = (
        (range(len(labels)), labels) if references is None else _referred(labels, references)
    )
    between = table[: len(labels), list(numbers)].tolist()
    for a, label in enumerate(labels):
        positives = [p for p, other in enumerate(ref_labels) if other == label and numbers[p] != a]
        negatives = [n for n, other in enumerate(ref_labels) if other != label]
        if positives and negatives:
            nearest = _first(negatives, lambda n, a=a: -between[a][n])
            expected.append((a, _first(positives, lambda p, a=a: between[a][p]), nearest))
    others = () if references is None else (_numbers(numbers), torch.tensor(ref_labels))
    mined = hard_triplets(Table(table), _numbers(range(len(labels))), torch.tensor(labels), *others)
    assert _as_list(mined) == expected


def test_two_classes_of_two_images_are_closed_form():
    table = Table(torch.tensor([[9.0, 3, 5, 4], [3, 9, 6, 7], [5, 6, 9, 2], [4, 7, 2, 9]]))
    embeddings, labels = _numbers(range(4)), torch.tensor([0, 0, 1, 1])
    # (2, 3) is less similar (2) than (0, 1) (3); 2's most similar negative is 1 (6), 3's is 1 (7).
    hardest = [(2, 3, 1), (3, 2, 1)]
    assert _as_list(hard_quadruplets(table, embeddings, labels)) == hardest
    assert _as_list(hard_quadruplets(table, embeddings, labels, count=5)) == [*hardest, (0, 1, 2), (1, 0, 3)]


def test_negative_similarities_do_not_let_the_mask_through():
    """Masked by 0 instead of by infinity, the diagonal and other classes would win."""
    table = -1 - _random_table(6, 0).abs()
    anchors, positives, negatives = hard_quadruplets(
        Table(table), _numbers(range(6)), torch.arange(6) % 2, count=9
    )
    assert (anchors != positives).all()
    assert (anchors % 2 == positives % 2).all()
    assert (anchors % 2 != negatives % 2).all()
    assert len(anchors) == 12


def test_only_positive_pairs_and_the_found_rows_are_compared():
    table, labels = Table(_random_table(60, 0)), torch.arange(60) % 20
    hard_quadruplets(table, _numbers(range(60)), labels, count=2)
    assert table.compared <= 20 * 3 + 4 * 60


@pytest.mark.parametrize("mine", [hard_quadruplets, hard_triplets])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"embeddings": torch.zeros(4, 8)},
            r"embeddings: got embeddings of shape \(4, 8\), expected \(N, 1\)",
        ),
        ({"ref_emb": torch.zeros(2, 8)}, r"ref_emb: got embeddings of shape \(2, 8\), expected \(N, 1\)"),
        ({"ref_emb": torch.zeros(2, 1)}, "ref_labels: got none with ref_emb"),
        ({"labels": torch.zeros(4)}, "labels: got torch.float32, expected integer classes"),
        (
            {"ref_emb": torch.zeros(2, 1), "ref_labels": torch.zeros(2)},
            "ref_labels: got torch.float32, expected integer classes",
        ),
    ],
)
def test_bad_input_is_refused(mine, arguments, message):
    batch = {"embeddings": _numbers(range(4)), "labels": torch.arange(4) % 2}
    with pytest.raises(ValueError, match=message):
        mine(Table(_random_table(4, 0)), **{**batch, **arguments})
