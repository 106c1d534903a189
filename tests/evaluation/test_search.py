import os
import sys

import numpy as np
import pytest
from PIL import Image

from dr_plugin.evaluation import search as searching
from dr_plugin.evaluation.search import search, search_run
from dr_plugin.evaluation.search_gallery import folder_gallery

from .search_cases import COLOURS, MeanColour, by_loops, write_gallery, write_square


@pytest.fixture
def squares(tmp_path):
    return folder_gallery(write_gallery(tmp_path / "gallery"), 8)


def test_nearest_are_those_of_loops_for_several_queries(squares, tmp_path):
    queries = {"sky": (20, 40, 230), "fire": (255, 70, 10)}
    files = [str(write_square(tmp_path / f"{name}.png", colour)) for name, colour in queries.items()]
    result = search(MeanColour(), squares, files, tmp_path / "search", k=3)
    colours = [COLOURS[name.rpartition("/")[2].removesuffix(".png")] for name in squares.names]
    assert result.queries == files
    assert result.images == 4
    for colour, found in zip(queries.values(), result.neighbors, strict=True):
        order, distances = by_loops(np.array(colour) / 255, np.array(colours) / 255, 3)
        assert [one.index for one in found] == order
        assert [one.name for one in found] == [squares.names[index] for index in order]
        assert [one.class_name for one in found] == [None] * 3
        np.testing.assert_allclose([one.distance for one in found], distances, rtol=1e-5)
    assert not result.notes


def test_copy_and_image_of_the_gallery_find_themselves_first(squares, tmp_path):
    copy = tmp_path / "copy.png"
    copy.write_bytes((tmp_path / "gallery" / "warm" / "orange.png").read_bytes())
    result = search(
        MeanColour(), squares, [str(copy), "warm/orange.png", "blue.png"], tmp_path / "search", k=2
    )
    first = [(found[0].name, found[0].distance) for found in result.neighbors]
    assert first == [("warm/orange.png", 0.0)] * 2 + [("blue.png", 0.0)]


def test_picture_shows_the_query_and_what_was_found_in_order(squares, tmp_path):
    query = write_square(tmp_path / "q.png", (250, 100, 0), (30, 30))
    result = search(MeanColour(), squares, [str(query), "green.png"], tmp_path / "search", k=2)
    assert result.picture == tmp_path / "search" / "q-and-1-more.png"
    with Image.open(result.picture) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    middles = [8 + 64, 8 + 128 + 16 + 64, 8 + 128 + 16 + 136 + 64]  # of the query and the two found
    row = pixels.shape[0] // 2
    second = [one.name.rpartition("/")[2].removesuffix(".png") for one in result.neighbors[1]]
    assert [tuple(pixels[8 + 64, x]) for x in middles] == [(250, 100, 0), COLOURS["orange"], COLOURS["red"]]
    assert [tuple(pixels[row + 64, x]) for x in middles] == [COLOURS[name] for name in ["green", *second]]


def test_picture_takes_the_files_and_not_the_pixels_of_the_model(tmp_path):
    fine = np.zeros((100, 100, 3), np.uint8)
    fine[:, ::2] = 255  # grey at 8 pixels
    (tmp_path / "gallery").mkdir()
    for name in "ab":
        Image.fromarray(fine).save(tmp_path / "gallery" / f"{name}.png")
    gallery = folder_gallery(tmp_path / "gallery", 8)
    assert np.ptp(gallery.pixels(0).astype(int)) < 60
    result = search(MeanColour(), gallery, ["a.png"], tmp_path / "search", k=1)
    with Image.open(result.picture) as picture:
        assert np.ptp(np.asarray(picture.convert("L"))[60, 160:270].astype(int)) > 120


def test_output_names_the_picture(squares, tmp_path):
    output = tmp_path / "deep" / "found.png"
    result = search(MeanColour(), squares, ["blue.png"], tmp_path / "search", k=1, output=output)
    assert result.picture == output
    assert output.read_bytes().startswith(b"\x89PNG")
    assert not list((tmp_path / "search").glob("*.png"))


def test_exif_orientation_of_a_query_is_followed(tmp_path):
    class LeftHalf(MeanColour):
        def embed(self, images, *, progress=None):
            pixels = images.batch(range(len(images)))[0].numpy() if hasattr(images, "batch") else images
            return super().embed(pixels[..., :4])

    image = np.zeros((16, 16, 3), np.uint8)
    image[:, :8] = 255
    (tmp_path / "gallery").mkdir()
    Image.fromarray(image).save(tmp_path / "gallery" / "left.png")
    Image.fromarray(image[:, ::-1]).save(tmp_path / "gallery" / "right.png")
    exif = Image.Exif()
    exif[0x0112] = 2  # mirrored
    Image.fromarray(image).save(tmp_path / "query.png", exif=exif)
    gallery = folder_gallery(tmp_path / "gallery", 8)
    result = search(LeftHalf(), gallery, [str(tmp_path / "query.png")], tmp_path / "search", k=1)
    assert result.neighbors[0][0].name == "right.png"


def test_second_search_embeds_the_query_only(squares, tmp_path):
    model = MeanColour()
    for _ in range(2):
        search(model, squares, ["blue.png"], tmp_path / "search", k=1)
    assert model.calls == [4, 1, 1]


@pytest.mark.parametrize("colour", ["blue", "white"])
def test_changed_gallery_is_embedded_again(squares, tmp_path, colour):
    model = MeanColour()
    search(model, squares, ["blue.png"], tmp_path / "search", k=1)
    write_square(tmp_path / "gallery" / f"{colour}.png", (255, 255, 255), (5, 5))
    changed = folder_gallery(tmp_path / "gallery", 8)
    query = write_square(tmp_path / "query.png", (255, 255, 255))
    result = search(model, changed, [str(query)], tmp_path / "search", k=1)
    assert [one.name for one in result.neighbors[0]] == [f"{colour}.png"]
    assert model.calls == [4, 1, len(changed), 1]
    assert len([path for path in (tmp_path / "search").iterdir() if path.is_dir()]) == 1


def test_unreadable_files_of_the_gallery_are_told(tmp_path):
    write_gallery(tmp_path / "gallery")
    for number in range(5):
        (tmp_path / "gallery" / f"bad{number}.jpg").write_text("no image")
    gallery = folder_gallery(tmp_path / "gallery", 8)
    result = search(MeanColour(), gallery, ["blue.png"], tmp_path / "search", k=4)
    assert result.images == 4
    (note,) = result.notes
    assert note.startswith("5 unreadable files of the gallery left out: bad0.jpg (")
    assert note.endswith("; and 2 more")
    with pytest.raises(ValueError, match="k: got 5, expected 1 to 4"):
        search(MeanColour(), gallery, ["blue.png"], tmp_path / "search", k=5)
    with pytest.raises(ValueError, match=r"query: bad3\.jpg: got an unreadable image"):
        search(MeanColour(), gallery, ["bad3.jpg"], tmp_path / "search", k=1)


def test_missing_faiss_is_told_and_changes_nothing(squares, tmp_path, monkeypatch):
    with_faiss = search(MeanColour(), squares, ["blue.png"], tmp_path / "one", k=4)
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = search(MeanColour(), squares, ["blue.png"], tmp_path / "two", k=4)
    assert without.neighbors == with_faiss.neighbors
    assert not with_faiss.notes
    assert (
        [note for note in without.notes if note.startswith("faiss is not installed")] == without.notes != []
    )


def test_approximate_search_is_told_with_its_recall(squares, tmp_path, monkeypatch):
    monkeypatch.setattr("dr_plugin.evaluation.search_index.FLAT", 3)
    monkeypatch.setattr("dr_plugin.evaluation.search_index._RECALL_AT", 2)
    result = search(MeanColour(), squares, ["blue.png"], tmp_path / "search", k=1)
    assert "the search is approximate, 100.0% of the true" in result.notes[0]


def test_picture_of_many_is_cut_and_that_is_told(squares, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "MOST_ROWS", 2)
    monkeypatch.setattr(searching, "MOST_COLUMNS", 3)
    queries = ["blue.png", "red.png", "green.png"]
    result = search(MeanColour(), squares, queries, tmp_path / "search", k=4)
    assert [len(found) for found in result.neighbors] == [4, 4, 4]
    assert result.notes == ["the picture shows the first 2 queries and 3 images of each"]
    with Image.open(result.picture) as picture:
        assert picture.width == 8 + 128 + 16 + 3 * 136 + 8


@pytest.mark.parametrize(
    ("queries", "options", "message"),
    [
        ([], {}, "query: got none, expected at least one"),
        (["purple.png"], {}, r"query: got purple\.png, no file .* such as blue\.png, green\.png"),
        (["warm"], {}, "query: got warm, no file"),
        (["."], {}, r"query: got \., a folder; expected an image file"),
        (["text.png"], {}, r"query: got text\.png, expected an image file: cannot identify"),
        (["blue.png"], {"k": 0}, "k: got 0, expected 1 to 4, the images of the gallery"),
        (["blue.png"], {"k": -1}, "k: got -1, expected 1 to 4"),
        (["blue.png"], {"k": 5}, "k: got 5, expected 1 to 4"),
        (
            ["blue.png"],
            {"output": "found.jpg"},
            r"output: got .*found\.jpg, expected a file name that ends in \.png",
        ),
        (["blue.png"], {"output": "folder.png"}, r"output: got .*folder\.png"),
    ],
)
def test_mistake_is_one_error_before_the_gallery_is_embedded(
    squares, tmp_path, monkeypatch, queries, options, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    if "output" in options:
        options = {"output": tmp_path / options["output"]}
    model = MeanColour()
    with pytest.raises(ValueError, match=message) as caught:
        search(model, squares, queries, tmp_path / "search", **{"k": 2} | options)
    assert "\n" not in str(caught.value)
    assert not model.calls
    assert not (tmp_path / "search").exists()


def test_gallery_with_one_image_is_refused(tmp_path):
    write_square(tmp_path / "gallery" / "only.png")
    gallery = folder_gallery(tmp_path / "gallery", 8)
    with pytest.raises(ValueError, match="gallery: got 1 image, expected at least 2"):
        search(MeanColour(), gallery, ["only.png"], tmp_path / "search", k=1)


def test_model_with_another_distance_is_refused(squares, tmp_path):
    model = MeanColour()
    model.distance = "chi2"
    with pytest.raises(ValueError, match="distance='chi2', expected 'euclidean'"):
        search(model, squares, ["blue.png"], tmp_path / "search", k=1)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run whose model is the mean colour."""
    monkeypatch.setattr(searching, "open_model", lambda spec, *, device: MeanColour(spec))
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def test_run_searches_a_folder_and_keeps_its_index_beside_itself(run, tmp_path):
    write_gallery(tmp_path / "gallery")
    result = search_run(run, ["blue.png"], gallery=tmp_path / "gallery", k=2)
    assert result.picture == run / "search" / "blue.png"
    assert result.neighbors[0][0].name == "blue.png"


def test_run_inside_its_gallery_does_not_find_its_own_pictures(run, tmp_path):
    write_gallery(tmp_path)
    for _ in range(2):
        result = search_run(run, ["blue.png"], gallery=tmp_path, k=4)
        assert result.images == 4
    assert len([path for path in (run / "search").iterdir() if path.is_dir()]) == 1


def test_run_without_a_gallery_or_a_folder_is_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"RUN: got .*nowhere, expected the folder of a finished run"):
        search_run(tmp_path / "nowhere", ["a.png"])
    with pytest.raises(ValueError, match="k: got 0, expected 1 or more"):
        search_run(tmp_path / "nowhere", ["a.png"], k=0)
    with pytest.raises(ValueError, match="only a run has images of its own"):
        search_run(run, ["a.png"])
    assert os.listdir(run) == []
