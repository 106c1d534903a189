"""Ranked triplets on given distances; against loops in tests/miners/test_ranked.py."""

import pytest
import torch
from pytorch_metric_learning import distances

from dr_plugin.triplets.ranked import RankedTriplets, compare

LABELS = torch.tensor([0, 0, 0, 1, 2, 3])
DISTANCES = torch.tensor([[0.0, 0.5, 0.2, 0.3, 0.3, 0.1]])
ITSELF = torch.tensor([[True, False, False, False, False, False]])


def _of(rule, bits=None):
    return torch.stack(rule.of(DISTANCES, LABELS[:1], LABELS, ITSELF, bits)).T.tolist()


def test_negatives_come_by_rank_and_ties_by_index():
    assert _of(RankedTriplets(2)) == [[0, 1, 5], [0, 1, 3]]
    assert _of(RankedTriplets(2, choose="least_similar")) == [[0, 1, 3], [0, 1, 4]]
    assert _of(RankedTriplets(1, positive="most_similar")) == [[0, 2, 5]]
    assert _of(RankedTriplets(1, positive="every")) == [[0, 1, 5], [0, 2, 5]]


def test_each_class_has_one_negative_and_ranks_are_of_classes():
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    matrix = torch.tensor([[0.0, 0.5, 0.2, 0.1, 0.4, 0.3, 0.3]])
    own = torch.arange(7).unsqueeze(0) == 0

    def negatives(*rule):
        return RankedTriplets(*rule).of(matrix, labels[:1], labels, own)[2].tolist()

    assert negatives(5) == [3, 5, 6]
    assert negatives(2) == [3, 5]
    assert negatives(2, "least_similar") == [5, 6]
    assert negatives(2, "most_similar", "least_similar", False) == [3, 2]
    matrix[0, 4] = torch.nan
    assert negatives(1) == negatives(1, "least_similar") == [4]
    matrix[0, 4:] = matrix[0, 2:4] = torch.inf
    assert negatives(5) == [2, 4, 6]  # as far as can be, and yet of a class each


@pytest.mark.parametrize(("bits", "positive"), [(0, 1), (2**61 - 1, 1), (2**61, 2), (2**62 - 1, 2)])
def test_random_bits_number_the_positives(bits, positive):
    assert _of(RankedTriplets(1, positive="random"), torch.tensor([bits])) == [[0, positive, 5]]


def test_random_positive_without_bits_is_refused():
    with pytest.raises(ValueError, match="random_bits: got none"):
        _of(RankedTriplets(positive="random"))


def test_similarities_become_distances_and_the_image_itself_is_found():
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    matrix, itself = compare(distances.CosineSimilarity(), embeddings, embeddings)
    assert matrix.tolist() == [[-1, 0], [0, -1]]
    assert itself.tolist() == [[True, False], [False, True]]
    references = torch.tensor([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]])
    matrix, itself = compare(distances.CosineSimilarity(), embeddings, references)
    assert matrix.tolist() == [[0, -1, -1], [-1, 0, 0]]
    assert itself.tolist() == [[False, True, False], [True, False, False]]


def test_references_of_another_size_are_refused():
    with pytest.raises(ValueError, match="ref_emb: got size 7, expected 8, as embeddings"):
        compare(distances.CosineSimilarity(), torch.ones(2, 8), torch.ones(3, 7))


@pytest.mark.parametrize("per_class", [0, None, "class"])
def test_per_class_is_true_or_false(per_class):
    with pytest.raises(ValueError, match=r"per_class: got .*, expected True or False"):
        RankedTriplets(per_class=per_class)
