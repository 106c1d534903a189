"""Indexes against exact search by loops, what they do where they find too little, and their files."""

import importlib
import sys

import faiss
import numpy as np
import pytest
import torch

from dr_plugin.metrics import build_index, load_index, nearest, save_index, search_index

KINDS = ["flat", "ivf", "hnsw"]


@pytest.fixture(autouse=True)
def one_thread():
    """More threads add to a graph in whatever order they come."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def clustered(rows, dimension=8, seed=0, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(10, dimension, generator=torch.Generator().manual_seed(99)) * 4
    return centres[torch.arange(rows) % 10] + torch.randn(rows, dimension, generator=generator) + offset


def brute_force(query, gallery, k):
    distances, indices = [], []
    for q in query.double().tolist():
        all_of_them = sorted(
            (sum((a - b) ** 2 for a, b in zip(q, g, strict=True)) ** 0.5, i)
            for i, g in enumerate(gallery.double().tolist())
        )
        distances.append([d for d, _ in all_of_them[:k]])
        indices.append([i for _, i in all_of_them[:k]])
    return torch.tensor(distances), torch.tensor(indices)


@pytest.mark.parametrize(("kind", "effort"), [("flat", None), ("ivf", 1000), ("hnsw", 300)])
def test_search_with_full_effort_equals_loops(kind, effort):
    gallery, query = clustered(300), clustered(12, seed=1)
    distances, indices = search_index(build_index(gallery, kind), query, 7, effort=effort)
    expected = brute_force(query, gallery, 7)
    assert torch.equal(indices, expected[1])
    assert torch.allclose(distances, expected[0], rtol=1e-5)
    assert (distances.dtype, indices.dtype) == (torch.float32, torch.long)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.uint8])
def test_embeddings_of_any_type_and_numpy(kind, dtype):
    gallery = (clustered(200) * 10 + 128).clamp(0, 255).to(dtype)
    query = gallery[::20].clone()
    found = search_index(build_index(gallery, kind), query, 3, effort=200)
    expected = nearest(query, gallery, 3)
    assert torch.equal(found[1][:, 0], expected[1][:, 0])
    assert torch.allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    if dtype != torch.bfloat16:  # which numpy does not have
        again = search_index(build_index(gallery.numpy(), kind), query.numpy(), 3, effort=200)
        assert torch.equal(again[1], found[1])


@pytest.mark.parametrize("kind", KINDS)
def test_far_from_the_origin_distances_are_right_and_a_duplicate_is_at_zero(kind):
    gallery = clustered(300, offset=5000.0)
    distances, indices = search_index(build_index(gallery, kind), gallery, 4, effort=300)
    expected = nearest(gallery, gallery, 4)
    assert torch.equal(distances[:, 0], torch.zeros(300))
    assert torch.equal(indices[:, 0], torch.arange(300))
    assert torch.allclose(distances, expected[0], rtol=1e-3)


def test_ties_go_to_the_lower_index():
    gallery = torch.tensor([[1.0], [2.0], [1.0], [2.0], [0.0]])
    assert search_index(build_index(gallery), torch.tensor([[1.0], [2.0]]), 3)[1].tolist() == [
        [0, 2, 1],
        [1, 3, 0],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_gallery_of_one_image_and_k_of_all(kind):
    index = build_index(torch.tensor([[3.0, 4.0]]), kind)
    distances, indices = search_index(index, torch.zeros(2, 2), 1)
    assert (distances.tolist(), indices.tolist()) == ([[5.0], [5.0]], [[0], [0]])
    gallery = clustered(90)
    assert (
        search_index(build_index(gallery, kind), gallery[:2], 90)[1].sort(1).values.tolist()
        == [list(range(90))] * 2
    )


def test_a_list_that_holds_too_few_is_not_the_end_of_the_search():
    gallery = clustered(400)
    index = build_index(gallery, "ivf", lists=10, probes=1)
    raw = faiss.downcast_index(index.index)
    assert (raw.search((gallery[:5] - gallery.mean(0)).numpy(), 150)[1] < 0).any()
    distances, indices = search_index(index, gallery[:5], 150)
    assert indices.min() >= 0
    assert all(len(set(row.tolist())) == 150 for row in indices)
    assert torch.isfinite(distances).all()
    assert raw.nprobe == 1  # as it was


def test_a_graph_that_has_fallen_apart_is_an_error():
    index = build_index(torch.zeros(300, 4), "hnsw", links=4)
    with pytest.raises(
        ValueError, match="fewer than k=100 neighbours for 2 of 2 queries from an index of 300"
    ):
        search_index(index, torch.zeros(2, 4), 100)


def test_only_the_queries_that_lack_neighbours_are_searched_wider():
    # Two lists: one of 300 images, one of 50. With one probe the first finds 60, the other cannot.
    gallery = torch.cat(
        [torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), torch.full((50, 4), 99.0)]
    )
    gallery[300:] += torch.arange(50)[:, None] / 100
    index = build_index(gallery, "ivf", lists=2, probes=1)
    query = torch.stack([gallery[0], gallery[300]])
    distances, indices = search_index(index, query, 60)
    expected = nearest(query, gallery, 60)
    assert torch.equal(indices, expected[1])
    assert torch.allclose(distances, expected[0], rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_result_and_the_global_state_is_left_alone(kind):
    gallery, query = clustered(1000), clustered(40, seed=1)
    state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = search_index(build_index(gallery, kind, seed=3), query, 20)
    second = search_index(build_index(gallery, kind, seed=3), query, 20)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(state[0], torch.random.get_rng_state())
    assert (state[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_seed_reaches_the_training_and_the_graph():
    gallery = clustered(1000)
    for kind in ("ivf", "hnsw"):
        one, other = (faiss.serialize_index(build_index(gallery, kind, seed=seed)) for seed in (0, 1))
        assert one.shape != other.shape or (one != other).any()


@pytest.mark.parametrize("size", [1, 39, 77, 78, 156, 5000])
def test_small_galleries_get_fewer_lists(size):
    whole = build_index(clustered(size), "ivf")  # kept: it owns what is looked at
    index = faiss.downcast_index(whole.index)
    assert index.nlist == max(1, min(round(4 * size**0.5), size // 39))
    assert 1 <= index.nprobe <= index.nlist


def test_training_is_quiet_and_on_a_part_of_a_large_gallery(capfd):
    gallery = clustered(3000)
    calls = []
    index = build_index(gallery, "ivf", lists=4, progress=lambda *call: calls.append(call))
    assert index.ntotal == 3000
    assert calls[-1] == ("indexing", 3000, 3000)
    for size in (5, 60, 400):
        build_index(gallery[:size], "ivf")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS)
def test_index_comes_back_from_its_file(kind, tmp_path):
    gallery, query = clustered(500), clustered(20, seed=1)
    index = build_index(gallery, kind)
    save_index(index, tmp_path / "new" / "gallery.index")
    again = load_index(str(tmp_path / "new" / "gallery.index"))
    for one, other in zip(search_index(index, query, 9), search_index(again, query, 9), strict=True):
        assert torch.equal(one, other)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["gallery.index"]


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "gallery.index"
    save_index(build_index(clustered(50)), path)
    before = path.read_bytes()

    def fails(index, writer):
        writer(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(faiss, "write_index", fails)
    monkeypatch.setattr(faiss, "PyCallbackIOWriter", lambda write: write)
    with pytest.raises(OSError, match="disk full"):
        save_index(build_index(clustered(60)), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_hold_no_index_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.index: no such index"):
        load_index(tmp_path / "gone.index")
    damaged = tmp_path / "damaged.index"
    save_index(build_index(clustered(50)), damaged)
    damaged.write_bytes(damaged.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"damaged\.index: no faiss index, or a damaged one"):
        load_index(damaged)
    other = tmp_path / "other.index"
    faiss.write_index(faiss.IndexFlatIP(4), str(other))
    with pytest.raises(ValueError, match="type IndexFlatIP, expected one that build_index has made"):
        load_index(other)


@pytest.mark.parametrize(
    ("embeddings", "kind", "options", "match"),
    [
        (torch.zeros(3), "flat", {}, r"embeddings \(3,\)"),
        (torch.zeros(0, 3), "flat", {}, r"embeddings \(0, 3\)"),
        (torch.zeros(3, 2, dtype=torch.long), "flat", {}, "embeddings of torch.int64"),
        (
            torch.tensor([[1.0], [float("nan")]]),
            "flat",
            {},
            r"NaN, infinity or a norm above 1e\+18 in embeddings\[1\]",
        ),
        (torch.zeros(3, 2), "pq", {}, "kind='pq', expected 'flat', 'ivf' or 'hnsw'"),
        (torch.zeros(3, 2), "ivf", {"list": 1}, "list=1 for kind='ivf'.*did you mean lists?"),
        (torch.zeros(3, 2), "flat", {"lists": 1}, "lists=1 for kind='flat', expected one of no settings"),
        (torch.zeros(3, 2), "hnsw", {"links": 0}, "links: got 0, expected a whole number, at least 1"),
        (torch.zeros(3, 2), "hnsw", {"links": 1}, "links=1, expected at least 2"),
        (torch.zeros(100, 2), "ivf", {"lists": 3}, "lists=3 for 100 images, expected at most 2"),
        (torch.zeros(100, 2), "ivf", {"lists": 2, "probes": 3}, "probes=3, expected at most the 2 lists"),
        (
            torch.zeros(3, 2),
            "flat",
            {"seed": -1},
            "seed: got -1, expected .* at least 0 and below 2147483648",
        ),
    ],
)
def test_bad_galleries_and_settings_are_refused(embeddings, kind, options, match):
    with pytest.raises(ValueError, match=match):
        build_index(embeddings, kind, **options)


@pytest.mark.parametrize(
    ("query", "k", "options", "match"),
    [
        (torch.zeros(1, 3), 1, {}, r"query \(1, 3\), expected \(Q, 2\)"),
        (torch.zeros(0, 2), 1, {}, r"query \(0, 2\)"),
        (torch.zeros(1, 2), 0, {}, "k: got 0, expected a whole number, at least 1"),
        (torch.zeros(1, 2), 5, {}, "k: got 5, expected at most 4: the index holds 4"),
        (torch.zeros(1, 2), True, {}, "k: got True"),
        (torch.full((1, 2), float("inf")), 1, {}, r"in query\[0\]"),
        (torch.zeros(1, 2), 1, {"effort": 0}, "effort: got 0, expected .* or None"),
    ],
)
def test_bad_queries_are_refused(query, k, options, match):
    with pytest.raises(ValueError, match=match):
        search_index(build_index(torch.zeros(4, 2)), query, k, **options)


def test_a_bare_faiss_index_is_refused():
    with pytest.raises(ValueError, match="type IndexFlatL2, expected one that build_index has made"):
        search_index(faiss.IndexFlatL2(2), torch.zeros(1, 2), 1)


def test_missing_faiss_is_named_only_when_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        ImportError, match=r"an index needs faiss: pip install faiss-cpu, or use dr_plugin\.metrics"
    ):
        build_index(torch.zeros(4, 2))
    with pytest.raises(ImportError, match="an index needs faiss"):
        load_index("gallery.index")


def test_metrics_import_without_faiss(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("dr_plugin.metrics")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "faiss", None)
    afresh = importlib.import_module("dr_plugin.metrics")
    assert afresh.build_index is not build_index
    assert afresh.ApproximateKNN("hnsw").recall_ is None
