"""Approximate neighbours behind ExactKNN's signature, and the recall they report, against loops."""

import sys

import numpy as np
import pytest
import torch

from dr_plugin.metrics import ApproximateKNN, ExactKNN, approximate_recall, build_index, nearest, search_index
from dr_plugin.metrics.approximate_knn import _without


def draw(rows, dimension=12, seed=0):
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))


def found_share(found, exact):
    """Of the true neighbours, one by one."""
    hits = [i in row for row, true in zip(found.tolist(), exact.tolist(), strict=True) for i in true]
    return sum(hits) / len(hits)


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("alone", [False, True])
def test_with_full_effort_it_is_exact(kind, alone):
    reference, query = draw(200), draw(30, seed=1)
    settings = {"ivf": {"lists": 5, "probes": 5}, "hnsw": {"search_effort": 200}}.get(kind, {})
    knn = ApproximateKNN(kind, **settings)
    if alone:
        query = reference[:30]
    distances, indices = knn(query, 6, reference, alone)
    expected = ExactKNN()(query, 6, reference, alone)
    assert torch.equal(indices, expected[1])
    assert torch.allclose(distances, expected[0], rtol=1e-5)
    assert knn.recall_ == 1


@pytest.mark.parametrize("alone", [False, True])
def test_recall_is_the_share_of_true_neighbours_found(alone):
    reference = draw(1500)
    query = reference[:50] if alone else draw(50, seed=1)
    knn = ApproximateKNN("ivf", lists=30, probes=2, sample=50)
    found = knn(query, 10, reference, alone)[1]
    exact = ExactKNN()(query, 10, reference, alone)[1]
    assert knn.recall_ == pytest.approx(found_share(found, exact))
    assert 0.1 < knn.recall_ < 0.9
    assert not alone or not (found == torch.arange(50)[:, None]).any()


def test_duplicates_at_one_distance_count_as_found():
    reference = draw(5).repeat(40, 1)  # 40 of each, all as near: any 10 of them are right
    index = build_index(reference, "ivf", lists=2)
    assert approximate_recall(index, reference, reference[:5], 10) == 1


def test_own_row_is_left_out_by_its_index_and_other_copies_stay():
    reference = draw(5).repeat(3, 1)  # row 8 is found after row 3, its copy
    distances, indices = ApproximateKNN("flat")(reference, 2, reference, True)
    assert indices[8].tolist() == [3, 13]
    assert torch.equal(indices, ExactKNN()(reference, 2, reference, True)[1])
    assert torch.equal(distances, torch.zeros(15, 2))


def test_own_row_that_was_not_found_costs_the_last_neighbour():
    distances, indices = torch.tensor([[0.0, 1, 2], [3, 4, 5]]), torch.tensor([[7, 0, 4], [5, 6, 8]])
    less = _without(distances, indices, torch.tensor([0, 1]))
    assert [each.tolist() for each in less] == [[[0, 2], [3, 4]], [[7, 4], [5, 6]]]


def test_function_equals_the_loop_and_grows_with_effort():
    gallery, query = draw(1500), draw(60, seed=1)
    index = build_index(gallery, "ivf", lists=30, probes=1)
    exact = nearest(query, gallery, 10)[1]
    recalls = []
    for effort in (1, 4, 30):
        recalls.append(approximate_recall(index, gallery, query, 10, sample=60, effort=effort))
        assert recalls[-1] == pytest.approx(
            found_share(search_index(index, query, 10, effort=effort)[1], exact)
        )
    assert recalls[0] < recalls[1] < recalls[2] == 1
    assert approximate_recall(index, gallery.numpy(), query.numpy(), 10, sample=60) == recalls[0]


def test_sample_is_seeded_and_without_replacement():
    gallery, query = draw(1500), draw(60, seed=1)
    index = build_index(gallery, "ivf", lists=30, probes=2)
    some = [approximate_recall(index, gallery, query, 10, sample=8, seed=seed) for seed in (0, 0, 1, 2, 3)]
    assert some[0] == some[1]
    assert len(set(some)) > 1
    all_of_them = {approximate_recall(index, gallery, query, 10, sample=60, seed=seed) for seed in range(3)}
    assert len(all_of_them) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_embeddings_of_any_type(dtype):
    reference = draw(100).to(dtype)
    knn = ApproximateKNN("flat")
    distances, indices = knn(reference[:9], 4, reference, True)
    assert torch.equal(indices, ExactKNN()(reference[:9], 4, reference, True)[1])
    assert (distances.dtype, knn.recall_) == (torch.float32, 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"kind": "pq"}, "kind='pq'"),
        ({"probe": 3}, "probe=3.*did you mean probes?"),
        ({"sample": 0}, "sample: got 0, expected a whole number, at least 1"),
        ({"seed": 1.5}, "seed: got 1.5"),
        ({"kind": "hnsw", "links": -3}, "links: got -3"),
    ],
)
def test_bad_construction_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        ApproximateKNN(**options)


def test_bad_calls_are_refused():
    knn, reference = ApproximateKNN("flat"), draw(10)
    with pytest.raises(ValueError, match=r"k: got 10, expected at most 9: .*the query's own left out"):
        knn(reference[:2], 10, reference, True)
    with pytest.raises(ValueError, match="k: got 0"):
        knn(reference[:2], 0, reference, False)
    with pytest.raises(ValueError, match=r"expected reference\[:len\(query\)\] to be the query"):
        knn(draw(2, seed=5), 3, reference, True)
    with pytest.raises(ValueError, match="lists=9 for 10 images"):
        ApproximateKNN("ivf", lists=9)(reference[:2], 3, reference)
    assert knn.recall_ is None


def test_an_index_of_another_gallery_is_refused():
    with pytest.raises(ValueError, match="index of 10 images and 9 embeddings"):
        approximate_recall(build_index(draw(10)), draw(9), draw(2), 1)
    with pytest.raises(ValueError, match="sample: got 0"):
        approximate_recall(build_index(draw(10)), draw(10), draw(2), 1, sample=0)
    with pytest.raises(ValueError, match="seed: got -1"):
        approximate_recall(build_index(draw(10)), draw(10), draw(2), 1, seed=-1)


def test_numpy_integers_are_taken():
    gallery = draw(200)
    one, three, seed = np.int64(1), np.int32(3), np.uint8(5)
    knn = ApproximateKNN("ivf", sample=three, seed=seed, lists=three, probes=three)
    found = knn(gallery[:9], three, gallery, True)
    assert torch.equal(found[1], ExactKNN(chunk_size=three)(gallery[:9], three, gallery, True)[1])
    index = build_index(gallery, "hnsw", seed=seed, links=np.int64(8))
    assert search_index(index, gallery[:2], one, effort=np.int64(50))[1].tolist() == [[0], [1]]
    assert approximate_recall(index, gallery, gallery, one, sample=three, seed=seed) == 1


def test_missing_faiss_is_named_at_the_call(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    knn = ApproximateKNN("hnsw")
    with pytest.raises(ImportError, match="an index needs faiss: pip install faiss-cpu"):
        knn(draw(2), 1, draw(5))
    assert ExactKNN()(draw(2), 1, draw(5))[1].shape == (2, 1)
