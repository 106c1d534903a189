import numpy as np
import pytest
import torch

from dr_plugin.metrics import precision_at_k, recall_at_k, recalls_at_k

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


def test_recalls_in_one_call_equal_each_by_itself():
    generator = torch.Generator().manual_seed(1)
    neighbor_labels = torch.randint(40, (60, 32), generator=generator)
    query_labels = torch.randint(40, (60,), generator=generator)
    recalls = recalls_at_k(neighbor_labels, query_labels)
    assert list(recalls) == [1, 2, 4, 8, 16, 32]
    for k, value in recalls.items():
        found = [
            query in row[:k]
            for row, query in zip(neighbor_labels.tolist(), query_labels.tolist(), strict=True)
        ]
        assert value.item() == pytest.approx(sum(found) / 60)
    each = recalls_at_k(neighbor_labels, query_labels, ks=(3,), reduction="none")
    assert torch.equal(each[3], recall_at_k(neighbor_labels, query_labels, 3, reduction="none"))


def test_recalls_at_numpy_ks_are_named_by_ints():
    recalls = recalls_at_k(NEIGHBORS, QUERIES, ks=np.array([1, 3]))
    assert recalls == recalls_at_k(NEIGHBORS, QUERIES, ks=(1, 3))
    assert [type(k) for k in recalls] == [int, int]


def test_recalls_beyond_the_neighbours_at_hand_are_refused():
    with pytest.raises(ValueError, match="k: got 4, expected at most 3"):
        recalls_at_k(NEIGHBORS, QUERIES)
    with pytest.raises(ValueError, match="ks: got 0"):
        recalls_at_k(NEIGHBORS, QUERIES, ks=(1, 0))
    with pytest.raises(ValueError, match="got no ks"):
        recalls_at_k(NEIGHBORS, QUERIES, ks=())
