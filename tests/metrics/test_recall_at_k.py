import pytest
import torch

from dr_plugin.metrics import precision_at_k, recall_at_k

NEIGHBORS = torch.tensor([[2, 2, 1], [2, 1, 1], [3, 3, 3]])
QUERIES = torch.tensor([1, 2, 1])


@pytest.mark.parametrize(("k", "expected"), [(1, [0, 1, 0]), (2, [0, 1, 0]), (3, [1, 1, 0])])
def test_values_by_hand(k, expected):
    assert recall_at_k(NEIGHBORS, QUERIES, k, reduction="none").tolist() == expected
    assert recall_at_k(NEIGHBORS, QUERIES, k).item() == pytest.approx(sum(expected) / 3)


def test_class_means_follow_the_sorted_labels():
    assert recall_at_k(NEIGHBORS, QUERIES, 3, reduction="class").tolist() == [0.5, 1.0]


def test_equals_precision_at_one_and_grows_with_k():
    generator = torch.Generator().manual_seed(0)
    neighbor_labels = torch.randint(5, (200, 16), generator=generator)
    query_labels = torch.randint(5, (200,), generator=generator)
    values = [recall_at_k(neighbor_labels, query_labels, k) for k in (1, 2, 4, 8, 16)]
    assert values[0] == precision_at_k(neighbor_labels, query_labels, 1)
    assert values == sorted(values)
    assert values[-1] > 0.9  # 1 - 0.8^16 is 0.97
