import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from dr_plugin.metrics import ExactKNN, nearest


def draw(rows, dimension, seed=0):
    return torch.randn(rows, dimension, generator=torch.Generator().manual_seed(seed))


def sorted_by_hand(query, gallery, k, *, exclude_self=False, largest=False):
    """All distances in float64, sorted by (distance, index) in plain Python."""
    distances, indices = [], []
    for i, row in enumerate(cdist(query.double().numpy(), gallery.double().numpy())):
        order = sorted(
            (j for j in range(len(row)) if not (exclude_self and i == j)),
            key=lambda j: (-row[j] if largest else row[j], j),
        )[:k]
        indices.append(order)
        distances.append([row[j] for j in order])
    return torch.tensor(distances), torch.tensor(indices)


def assert_same(found, expected):
    assert found[0].dtype == torch.float32
    assert found[1].dtype == torch.long
    assert found[1].tolist() == expected[1].tolist()
    torch.testing.assert_close(found[0].double(), expected[0].double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 16, 50, 1000])
def test_nearest_against_sorted_distances(chunk_size, backend):
    query, gallery = draw(23, 6), draw(50, 6, seed=1)
    found = nearest(query, gallery, 5, chunk_size=chunk_size, backend=backend)
    assert_same(found, sorted_by_hand(query, gallery, 5))


@pytest.mark.parametrize("chunk_size", [None, 3, 16])
def test_farthest_against_sorted_distances(chunk_size):
    query, gallery = draw(9, 6), draw(50, 6, seed=1)
    found = nearest(query, gallery, 10, largest=True, chunk_size=chunk_size)
    assert_same(found, sorted_by_hand(query, gallery, 10, largest=True))


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_train_against_train_leaves_only_itself_out(chunk_size, largest):
    gallery = draw(40, 4)
    found = nearest(gallery, gallery, 6, exclude_self=True, largest=largest, chunk_size=chunk_size)
    assert_same(found, sorted_by_hand(gallery, gallery, 6, exclude_self=True, largest=largest))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("copies", [2, 9, 60])
def test_exclude_self_keeps_duplicates(copies, backend):
    # With 60 copies a search for k + 1 need not return the query's own row at all.
    gallery = torch.cat([draw(1, 5).repeat(copies, 1), draw(20, 5, seed=1) + 50])
    distances, indices = nearest(
        gallery, gallery, copies - 1, exclude_self=True, backend=backend, chunk_size=16
    )
    for i in range(copies):
        assert set(indices[i].tolist()) == set(range(copies)) - {i}
        assert distances[i].tolist() == [0.0] * (copies - 1)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_exclude_self_with_more_duplicates_than_neighbours(backend):
    gallery = draw(1, 5).repeat(100, 1)
    distances, indices = nearest(gallery, gallery, 3, exclude_self=True, backend=backend, chunk_size=32)
    assert distances.eq(0).all()
    for i, row in enumerate(indices.tolist()):
        assert i not in row
        assert len(set(row)) == 3


def test_exclude_self_of_the_first_rows_only():
    gallery = draw(30, 4)
    found = nearest(gallery[:8], gallery, 29, exclude_self=True, chunk_size=5)
    assert_same(found, sorted_by_hand(gallery[:8], gallery, 29, exclude_self=True))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_k_equal_to_the_gallery(backend):
    query, gallery = draw(4, 3), draw(33, 3, seed=1)
    assert_same(
        nearest(query, gallery, 33, backend=backend, chunk_size=8), sorted_by_hand(query, gallery, 33)
    )


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 2, 5])
def test_ties_go_to_the_lower_index(chunk_size, largest):
    gallery = torch.tensor([[3.0], [-1.0], [1.0], [-1.0], [1.0], [-3.0], [3.0]])
    found = nearest(torch.zeros(1, 1), gallery, 6, largest=largest, chunk_size=chunk_size)
    assert found[1].tolist() == [[0, 5, 6, 1, 2, 3] if largest else [1, 2, 3, 4, 0, 5]]


def test_tie_at_the_kth_place_goes_to_the_lower_index():
    gallery = torch.cat([draw(1, 8).repeat(9, 1), draw(20, 8, seed=1)])
    for chunk_size in (1, 4, 29):
        assert nearest(gallery[:1], gallery, 1, chunk_size=chunk_size)[1].item() == 0


def test_spare_candidates_are_for_rounding_only(monkeypatch):
    monkeypatch.setattr(sys.modules[nearest.__module__], "SPARE", 0)
    gallery = draw(40, 4)
    for k in (1, 6, 39):
        found = nearest(gallery, gallery, k, exclude_self=True, chunk_size=7)
        assert_same(found, sorted_by_hand(gallery, gallery, k, exclude_self=True))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_far_from_the_origin_distances_keep_their_digits(backend):
    # |q|^2 is 3e7 here and the distances are below 1: the plain expanded form would lose them all.
    query, gallery = (torch.round(draw(20, 32, seed=s) * 128) / 1024 + 1000 for s in (0, 1))
    found = nearest(query, gallery, 4, backend=backend, chunk_size=8)
    assert_same(found, sorted_by_hand(query, gallery, 4))


def test_distance_to_a_duplicate_is_exactly_zero():
    gallery = torch.nn.functional.normalize(draw(200, 64))
    distances, indices = nearest(gallery[50:60], gallery, 2)
    assert indices[:, 0].tolist() == list(range(50, 60))
    assert distances[:, 0].tolist() == [0.0] * 10
    assert (distances[:, 1] > 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_float_types_are_widened(dtype, backend):
    query, gallery = draw(10, 6).to(dtype), draw(40, 6, seed=1).to(dtype)
    assert_same(nearest(query, gallery, 3, backend=backend), sorted_by_hand(query, gallery, 3))


def test_uint8_pixels_do_not_wrap_around():
    generator = torch.Generator().manual_seed(0)
    query, gallery = (torch.randint(0, 256, (n, 12), generator=generator, dtype=torch.uint8) for n in (5, 30))
    assert_same(nearest(query, gallery, 4, chunk_size=7), sorted_by_hand(query, gallery, 4))


def test_float64_separates_what_float32_cannot():
    gallery = torch.tensor([[1.0 + 2e-12], [1.0 + 1e-12], [2.0]], dtype=torch.float64)
    assert nearest(torch.ones(1, 1), gallery, 2)[1].tolist() == [[1, 0]]


def test_autocast_around_the_search_changes_nothing():
    query, gallery = draw(10, 2), draw(5000, 2, seed=1)  # too dense for bfloat16 to find the candidates
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest(query, gallery, 5)
    assert_same(found, sorted_by_hand(query, gallery, 5))


def test_embeddings_that_require_gradients_give_plain_results():
    gallery = draw(10, 3).requires_grad_()
    distances, _ = nearest(gallery, gallery, 2)
    assert not distances.requires_grad


def test_inputs_are_left_as_they_are():
    query, gallery = draw(10, 3), draw(20, 3, seed=1)
    copies = query.clone(), gallery.clone()
    nearest(query, gallery, 5, device="cpu")
    assert torch.equal(query, copies[0])
    assert torch.equal(gallery, copies[1])


def test_noncontiguous_views_are_searched_as_they_read():
    query, gallery = draw(6, 10).T, draw(6, 44, seed=1).T[::2]
    assert_same(nearest(query, gallery, 3, chunk_size=4), sorted_by_hand(query, gallery, 3))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(2, 40),
    dimension=st.integers(1, 5),
    chunk_size=st.integers(1, 45),
    seed=st.integers(0, 2**31),
    largest=st.booleans(),
    exclude_self=st.booleans(),
    data=st.data(),
)
def test_property_distances_are_those_of_the_best(
    rows, columns, dimension, chunk_size, seed, largest, exclude_self, data
):
    # Few distinct coordinates: many ties and duplicates, all distances exact.
    generator = torch.Generator().manual_seed(seed)
    gallery = torch.randint(-2, 3, (columns, dimension), generator=generator).float()
    query = torch.randint(-2, 3, (rows, dimension), generator=generator).float()
    if exclude_self:
        query = gallery[:rows].clone()
    k = data.draw(st.integers(1, columns - exclude_self))
    distances, indices = nearest(
        query, gallery, k, chunk_size=chunk_size, largest=largest, exclude_self=exclude_self
    )
    expected, _ = sorted_by_hand(query, gallery, k, largest=largest, exclude_self=exclude_self)
    torch.testing.assert_close(distances.double(), expected.double(), rtol=1e-6, atol=0)
    for i, row in enumerate(indices.tolist()):
        assert len(set(row)) == k
        assert not (exclude_self and i in row)
        torch.testing.assert_close(distances[i], torch.linalg.vector_norm(query[i] - gallery[row], dim=1))


@pytest.mark.parametrize(
    ("query", "gallery", "options", "match"),
    [
        (draw(2, 3), draw(4, 5), {}, r"query \(2, 3\) and gallery \(4, 5\).*same D"),
        (draw(2, 3)[0], draw(4, 3), {}, r"expected \(Q, D\)"),
        (draw(0, 3), draw(4, 3), {}, "at least one row"),
        (draw(2, 3), draw(0, 3), {}, "at least one row"),
        (draw(2, 0), draw(4, 0), {}, "one column"),
        (draw(2, 3).long(), draw(4, 3), {}, "query of torch.int64"),
        (draw(2, 3), draw(4, 3), {"k": 5}, "k: got 5, expected at most 4: the gallery holds 4 rows"),
        (draw(2, 3), draw(4, 3), {"k": 0}, "k: got 0, expected a whole number, at least 1"),
        (draw(2, 3), draw(4, 3), {"k": True}, "k: got True"),
        (draw(2, 3), draw(4, 3), {"k": 2.0}, "k: got 2.0"),
        (draw(4, 3), draw(4, 3), {"k": 4, "exclude_self": True}, "at most 3: .* its own row left out"),
        (draw(1, 3), draw(1, 3), {"k": 1, "exclude_self": True}, "k: got 1, expected at most 0"),
        (draw(5, 3), draw(4, 3), {"k": 2, "exclude_self": True}, "5 queries and 4 gallery rows"),
        (draw(4, 3), draw(4, 3, seed=1), {"exclude_self": True}, "not the gallery's first rows"),
        (draw(4, 3).flip(0), draw(4, 3), {"exclude_self": True, "chunk_size": 2}, "not the gallery's first"),
        (draw(2, 3), draw(4, 3), {"chunk_size": 0}, "chunk_size: got 0, expected .* or None"),
        (draw(2, 3), draw(4, 3), {"backend": "annoy"}, "'annoy', expected 'torch' or 'faiss'"),
        (draw(2, 3), draw(4, 3), {"backend": "faiss", "largest": True}, "largest=True with backend='faiss'"),
        (
            draw(2, 3),
            draw(4, 3),
            {"backend": "faiss", "device": "meta"},
            "device='meta' with backend='faiss'",
        ),
    ],
)
def test_bad_arguments_are_refused(query, gallery, options, match):
    with pytest.raises(ValueError, match=match):
        nearest(query, gallery, **{"k": 1, **options})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30, 2e18])
@pytest.mark.parametrize(("side", "row"), [("query", 3), ("gallery", 11)])
@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_values_that_are_no_embeddings_are_refused(value, side, row, backend):
    sides = {"query": draw(6, 3), "gallery": draw(12, 3)}
    sides[side][row, 1] = value
    with pytest.raises(ValueError, match=rf"NaN, infinity .* in {side}\[{row}\]"):
        nearest(**sides, k=1, chunk_size=4, backend=backend)


def test_missing_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu, or use backend='torch'"):
        nearest(draw(2, 3), draw(4, 3), 1, backend="faiss")


def test_torch_backend_does_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    query, gallery = draw(2, 3), draw(4, 3)
    assert_same(nearest(query, gallery, 1), sorted_by_hand(query, gallery, 1))


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("ref_includes_query", [False, True])
def test_exact_knn_is_nearest_in_pml_words(ref_includes_query, backend):
    gallery = draw(20, 4)
    found = ExactKNN(chunk_size=6, backend=backend)(gallery[:7], 3, gallery, ref_includes_query)
    assert_same(found, sorted_by_hand(gallery[:7], gallery, 3, exclude_self=ref_includes_query))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cpu_embeddings_are_searched_on_the_gpu():
    query, gallery = draw(50, 16), draw(700, 16, seed=1)
    found = nearest(query, gallery, 5, device="cuda", chunk_size=100)
    assert found[1].device.type == "cpu"
    assert_same(found, sorted_by_hand(query, gallery, 5))
