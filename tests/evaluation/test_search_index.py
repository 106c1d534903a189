import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from dr_plugin.evaluation import search_index
from dr_plugin.evaluation.search_gallery import Gallery, folder_gallery
from dr_plugin.evaluation.search_index import GalleryIndex
from dr_plugin.metrics import nearest

from .search_cases import MeanColour, by_loops, write_gallery, write_square


class Rows:
    """Images whose mean colours are given, as a gallery's."""

    def __init__(self, colours):
        self.colours = torch.as_tensor(colours)

    def __len__(self):
        return len(self.colours)

    def batch(self, indices):
        images = self.colours[torch.as_tensor(list(indices))][:, :, None, None]
        return images.expand(-1, 3, 2, 2), torch.zeros(len(images), dtype=torch.long)


def random_gallery(count, seed=0, fingerprint="one"):
    colours = np.random.default_rng(seed).integers(0, 256, (count, 3), dtype=np.uint8)
    return Gallery("random", fingerprint, [f"{i}.png" for i in range(count)], Rows(colours), (2, 2))


@pytest.fixture(params=["faiss", "torch"])
def backend(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setitem(sys.modules, "faiss", None)
    return request.param


def stores(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("queries", [4, 20])
@pytest.mark.parametrize(("count", "k"), [(2, 1), (2, 2), (60, 1), (60, 7), (60, 60)])
def test_nearest_are_those_of_loops(tmp_path, backend, count, k, queries):
    gallery = random_gallery(count)
    index = GalleryIndex.build(MeanColour(), gallery, tmp_path)
    query = torch.rand((queries, 3), generator=torch.Generator().manual_seed(1))
    distances, found = index.search(query, k)
    for number, row in enumerate(query):
        order, expected = by_loops(row, index.embeddings, k)
        assert found[number].tolist() == order
        np.testing.assert_allclose(distances[number], expected, rtol=1e-5, atol=1e-7)
    assert (tmp_path / stores(tmp_path)[0] / "index.faiss").exists() == (backend == "faiss")
    assert index.exact


def test_image_of_the_gallery_has_distance_zero_and_ties_go_by_index(tmp_path, backend):
    colours = np.array([[9, 9, 9], [200, 7, 3], [200, 7, 3], [201, 7, 3]], np.uint8)
    gallery = Gallery("ties", "f", list("abcd"), Rows(colours), (2, 2))
    index = GalleryIndex.build(MeanColour(), gallery, tmp_path)
    distances, found = index.search(torch.from_numpy(np.array(index.embeddings[2:3])), 4)
    assert found.tolist() == [[1, 2, 3, 0]]
    assert distances[0, :2].tolist() == [0.0, 0.0]


def test_far_from_the_origin_distances_are_still_right(tmp_path, backend):
    class Shifted(MeanColour):
        def embed(self, images, *, progress=None):
            return super().embed(images) / 100 + 1000

    index = GalleryIndex.build(Shifted(), random_gallery(8), tmp_path)
    distances, found = index.search(torch.from_numpy(np.array(index.embeddings)), 1)
    assert found[:, 0].tolist() == list(range(8))
    assert not distances.any()


def test_unreadable_images_are_left_out_and_the_others_keep_their_index(tmp_path, backend):
    write_gallery(tmp_path / "gallery")
    (tmp_path / "gallery" / "a broken one.png").write_text("no image")
    (tmp_path / "gallery" / "fractured.png").write_text("no image")
    gallery = folder_gallery(tmp_path / "gallery", 8)
    for _ in range(2):  # made, and found
        index = GalleryIndex.build(MeanColour(), gallery, tmp_path / "search")
        assert len(index) == 4
        assert sorted(index.unreadable) == ["a broken one.png", "fractured.png"]
        _, found = index.search(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]), 1)
        assert [gallery.names[row] for row in found[:, 0]] == ["green.png", "blue.png"]
        gallery = folder_gallery(tmp_path / "gallery", 8)


def test_the_same_gallery_is_embedded_once(tmp_path, backend):
    model = MeanColour()
    first = GalleryIndex.build(model, random_gallery(9), tmp_path)
    again = GalleryIndex.build(model, random_gallery(9), tmp_path)
    assert model.calls == [9]
    assert np.array_equal(first.embeddings, again.embeddings)


def test_other_gallery_or_model_replaces_the_store(tmp_path):
    seen = set()
    builds = [
        (MeanColour(), random_gallery(9)),
        (MeanColour(), random_gallery(10, fingerprint="two")),
        (MeanColour(fingerprint="2"), random_gallery(10, fingerprint="two")),
    ]
    for model, gallery in builds:
        GalleryIndex.build(model, gallery, tmp_path)
        assert model.calls == [len(gallery)]
        assert len(stores(tmp_path)) == 1
        seen.update(stores(tmp_path))
    assert len(seen) == 3


def test_galleries_of_different_places_stay_beside_one_another(tmp_path):
    model = MeanColour()
    for key in ("train", "train-12ab34cd"):
        other = Gallery(key, "f", ["a", "b"], Rows(np.eye(3, dtype=np.uint8)[:2]), (2, 2))
        GalleryIndex.build(model, other, tmp_path)
    assert {name.rpartition("-")[0] for name in stores(tmp_path)} == {"train", "train-12ab34cd"}
    (tmp_path / "pictures-of-mine").mkdir()  # whatever a user puts here
    other = Gallery("pictures", "f", ["a", "b"], Rows(np.eye(3, dtype=np.uint8)[:2]), (2, 2))
    GalleryIndex.build(model, other, tmp_path)
    assert len(stores(tmp_path)) == 4


@pytest.mark.parametrize("file", ["files.json", "embeddings.npy", "index.faiss"])
@pytest.mark.parametrize("harm", ["removed", "cut", "emptied"])
def test_damaged_store_is_made_again(tmp_path, file, harm):
    model, gallery = MeanColour(), random_gallery(50)
    GalleryIndex.build(model, gallery, tmp_path)
    damaged = tmp_path / stores(tmp_path)[0] / file
    whole = damaged.read_bytes()
    if harm == "removed":
        damaged.unlink()
    else:
        damaged.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
    index = GalleryIndex.build(model, gallery, tmp_path)
    assert damaged.read_bytes() == whole
    assert index.search(torch.from_numpy(np.array(index.embeddings[7:8])), 1)[1].tolist() == [[7]]
    assert model.calls == ([50] if file == "index.faiss" else [50, 50])  # the index comes from the embeddings


def test_index_is_made_when_faiss_comes_later(tmp_path, monkeypatch):
    model, gallery = MeanColour(), random_gallery(9)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "faiss", None)
        assert GalleryIndex.build(model, gallery, tmp_path).index is None
    assert GalleryIndex.build(model, gallery, tmp_path).index is not None
    assert (tmp_path / stores(tmp_path)[0] / "index.faiss").exists()
    assert model.calls == [9]


def test_large_gallery_is_searched_approximately_and_its_recall_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(search_index, "FLAT", 100)
    gallery = random_gallery(500)
    for _ in range(2):
        index = GalleryIndex.build(MeanColour(), gallery, tmp_path)
        assert not index.exact
        assert index.recall > 0.9
        hits = 0
        probes = np.array(index.embeddings[::25])
        found = index.search(torch.from_numpy(probes), 5)[1]
        for probe, row in zip(probes, found.tolist(), strict=True):
            hits += len(set(row) & set(by_loops(probe, index.embeddings, 5)[0]))
        assert hits > 0.9 * 5 * len(probes)


def test_recall_is_the_share_of_true_neighbours_found(tmp_path, monkeypatch):
    monkeypatch.setattr(search_index, "FLAT", 10)

    def half(index, query, count, *, effort=None):
        distances, exact = nearest(query, embeddings, count)
        exact[:, 1 + (count - 1) // 2 :] = -1  # itself and half of the others
        distances[:, 1 + (count - 1) // 2 :] = torch.inf
        return distances, exact

    gallery = random_gallery(60)
    embeddings = MeanColour().embed(gallery.images)
    monkeypatch.setitem(search_index.approximate_recall.__globals__, "search_index", half)
    assert GalleryIndex.build(MeanColour(), gallery, tmp_path).recall == pytest.approx(0.5)


MOMENTS = ["embedding", "embeddings", "files", "store", "index"]
KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.evaluation.search_cases import MeanColour
from dr_plugin.evaluation import search_index
from dr_plugin.evaluation.search_gallery import folder_gallery

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

replace = os.replace
for moment, folder in zip(sys.argv[3::2], sys.argv[4::2]):
    if child := os.fork():  # forked, to import torch only once
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        continue
    names = {"embeddings": "embeddings.npy", "files": "files.json", "index": "index.faiss"}
    def dying(source, target):
        last = Path(target).name
        if last == names.get(moment) or (moment == "store" and Path(source).is_dir()):
            die()
        replace(source, target)
    os.replace = dying
    gallery, progress = folder_gallery(Path(sys.argv[2]), 8), die if moment == "embedding" else None
    search_index.GalleryIndex.build(MeanColour(), gallery, Path(folder), progress=progress)
"""


def test_build_that_is_killed_leaves_nothing_that_counts(tmp_path):
    old = folder_gallery(write_gallery(tmp_path / "gallery"), 8)
    empty, used = ([tmp_path / f"{kind} {moment}" for moment in MOMENTS] for kind in ("empty", "used"))
    for folder in used:
        GalleryIndex.build(MeanColour(), old, folder)
    write_square(tmp_path / "gallery" / "white.png", (255, 255, 255))
    pairs = [
        word for row in (empty, used) for pair in zip(MOMENTS, map(str, row), strict=True) for word in pair
    ]
    command = [sys.executable, "-c", KILLED, os.getcwd(), str(tmp_path / "gallery"), *pairs]
    subprocess.run(command, check=True, timeout=300)
    new = folder_gallery(tmp_path / "gallery", 8)
    for folder in (*empty, *used):
        model = MeanColour()
        index = GalleryIndex.build(model, new, folder)
        # By then the embeddings are safe.
        assert model.calls == ([] if folder.name.endswith("index") else [5])
        assert index.search(torch.ones((1, 3)), 1)[1].tolist() == [[new.places["white.png"]]]
        assert len(stores(folder)) == 1
        kept = {path.name for path in (folder / stores(folder)[0]).iterdir()}
        assert kept == {"embeddings.npy", "files.json", "index.faiss"}


def test_build_that_fails_leaves_the_older_store(tmp_path):
    old = GalleryIndex.build(MeanColour(), random_gallery(9), tmp_path).folder

    class Failing(MeanColour):
        def embed(self, images, *, progress=None):
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        GalleryIndex.build(Failing(fingerprint="2"), random_gallery(9), tmp_path)
    assert stores(tmp_path) == [old.name]
    assert len(GalleryIndex(old)) == 9


TWICE = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.evaluation.search_cases import MeanColour
from dr_plugin.evaluation.search_gallery import folder_gallery
from dr_plugin.evaluation.search_index import GalleryIndex

children = []
for number in "01":
    if child := os.fork():  # forked, to import torch only once
        children.append(child)
        continue
    model = MeanColour(seconds=1)
    index = GalleryIndex.build(model, folder_gallery(Path(sys.argv[2]), 8), Path(sys.argv[3]))
    Path(sys.argv[3], number).write_text(f"{len(model.calls)} {len(index)}")
    os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
"""


def test_two_processes_embed_a_gallery_once(tmp_path):
    gallery, folder = write_gallery(tmp_path / "gallery"), tmp_path / "search"
    command = [sys.executable, "-c", TWICE, os.getcwd(), str(gallery), str(folder)]
    subprocess.run(command, check=True, timeout=300)
    assert sorted((folder / number).read_text() for number in "01") == ["0 4", "1 4"]
    assert len(stores(folder)) == 1


@pytest.mark.parametrize(
    ("embeddings", "message"),
    [
        (torch.zeros(8, 3), r"got embeddings \(8, 3\), expected \(9, D\)"),
        (torch.zeros(9), r"got embeddings \(9,\), expected \(9, D\)"),
        (torch.zeros(9, 0), r"got embeddings \(9, 0\), expected \(9, D\)"),
        (torch.full((9, 3), torch.nan), r"not finite for 0\.png \(9 images in all\)"),
    ],
)
def test_wrong_embeddings_are_refused_and_leave_nothing(tmp_path, embeddings, message):
    model = MeanColour()
    model.embed = lambda images, progress=None: embeddings
    with pytest.raises(ValueError, match=message):
        GalleryIndex.build(model, random_gallery(9), tmp_path)
    assert not stores(tmp_path)


@pytest.mark.parametrize("good", [0, 1])
def test_gallery_that_cannot_be_read_is_refused_with_names(tmp_path, good):
    for number in range(good):
        write_square(tmp_path / "gallery" / f"good{number}.png")
    (tmp_path / "gallery").mkdir(exist_ok=True)
    for number in range(12):
        (tmp_path / "gallery" / f"bad{number:02}.png").write_text("no image")
    with pytest.raises(ValueError, match=rf"got {good} images that can be read.*bad00\.png") as caught:
        GalleryIndex.build(MeanColour(), folder_gallery(tmp_path / "gallery", 8), tmp_path / "search")
    assert "bad09.png" in str(caught.value)
    assert "bad10.png" not in str(caught.value)
    assert not stores(tmp_path / "search")


@pytest.mark.parametrize(
    ("query", "k", "message"),
    [
        (torch.zeros(1, 3), 0, "k: got 0, expected 1 to 9"),
        (torch.zeros(1, 3), 10, "k: got 10, expected 1 to 9"),
        (torch.zeros(1, 4), 2, r"got .*\(1, 4\)"),
        (torch.full((1, 3), torch.nan), 2, "finite"),
    ],
)
def test_bad_search_is_refused(tmp_path, backend, query, k, message):
    index = GalleryIndex.build(MeanColour(), random_gallery(9), tmp_path)
    with pytest.raises(ValueError, match=message):
        index.search(query, k)


def test_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no whole gallery index"):
        GalleryIndex(tmp_path)
    store = GalleryIndex.build(MeanColour(), random_gallery(9), tmp_path).folder
    meta = json.loads((store / "files.json").read_text())
    (store / "files.json").write_text(json.dumps(meta | {"format": 0}))
    with pytest.raises(ValueError, match="another format"):
        GalleryIndex(store)
