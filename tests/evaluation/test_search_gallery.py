import os

import numpy as np
import pytest
import torch
from PIL import Image

from dr_plugin.datasets.base import open_rgb
from dr_plugin.datasets.packing import pixels_of
from dr_plugin.evaluation.search_gallery import (
    FileImages,
    fitted,
    folder_gallery,
    run_gallery,
    thumbnail,
)
from dr_plugin.experiments.recipe import load_recipe

from .search_cases import COLOURS, write_gallery, write_square


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_folder_holds_images_of_all_depths_and_kinds_by_path(tmp_path):
    for name in ("b.JPG", "a/z.jpeg", "c.png", "d.bmp", "a/deep/e.webp"):
        write_square(tmp_path / name)
    for name in (".hidden.png", ".cache/f.png", "search/old.png"):
        write_square(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    gallery = folder_gallery(tmp_path, 8, leave_out=tmp_path / "search")
    assert gallery.names == ["a/deep/e.webp", "a/z.jpeg", "b.JPG", "c.png", "d.bmp"]
    assert len(gallery) == 5
    assert gallery.places["c.png"] == 3
    assert gallery.image_size == (8, 8)


def test_images_are_prepared_as_packed_images_are(tmp_path):
    files = []
    for number, (height, width) in enumerate([(30, 20), (8, 8), (5, 9)]):
        files.append(tmp_path / f"{number}.png")
        noise(height, width, number).save(files[-1])
    images, labels = FileImages(files, 8).batch([2, 0])
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0, 0]
    for pixels, file in zip(images, [files[2], files[0]], strict=True):
        with Image.open(file) as image:
            assert np.array_equal(pixels, pixels_of(image, 8))


@pytest.mark.parametrize(("mode", "colour"), [("L", 90), ("RGBA", (9, 8, 7, 255)), ("P", 3), ("1", 1)])
def test_every_mode_becomes_rgb(tmp_path, mode, colour):
    Image.new(mode, (10, 10), colour).save(tmp_path / "a.png")
    gallery = folder_gallery(tmp_path, 4)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)[:, :4, :4]
    assert np.array_equal(gallery.pixels(0), expected)
    assert not gallery.unreadable


def test_unreadable_files_are_remembered_with_the_reason(tmp_path):
    write_square(tmp_path / "good.png", (255, 255, 255))
    whole = write_square(tmp_path / "whole.jpg", size=(64, 64)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "sixteen.png")
    gallery = folder_gallery(tmp_path, 8)
    images, _ = gallery.images.batch(range(5))
    bad = [gallery.places[name] for name in ("cut.jpg", "sixteen.png", "text.png")]
    assert sorted(gallery.unreadable) == sorted(bad)
    assert "truncated" in gallery.unreadable[bad[0]].lower()
    assert "8 bits a channel" in gallery.unreadable[bad[1]]
    assert not images[bad].any()
    assert images[gallery.places["good.png"]].min() == 255
    with pytest.raises(ValueError, match=r"text\.png: got an unreadable image"):
        gallery.pixels(bad[2])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed(tmp_path, orientation):
    upright = Image.new("RGB", (40, 24), (255, 255, 255))
    upright.paste((255, 0, 0), (0, 0, 20, 12))  # one corner
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that the orientation undoes
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(open_rgb(str(tmp_path / "a.png")), upright)
    assert np.array_equal(folder_gallery(tmp_path, 24).pixels(0), pixels_of(upright, 24))
    shown = np.asarray(thumbnail(tmp_path / "a.png", 20)).astype(int)
    assert shown.shape == (12, 20, 3)
    assert abs(shown[1, 1] - (255, 0, 0)).max() < 30
    assert shown[-2, -2].min() > 225


def test_image_of_the_wanted_size_is_left_as_it_is():
    for height, width in [(6, 6), (6, 9)]:
        image = noise(height, width)
        assert np.array_equal(fitted(image, (height, width)), np.asarray(image).transpose(2, 0, 1))
    assert fitted(noise(20, 50), (6, 9)).shape == (3, 6, 9)


@pytest.mark.parametrize("size", [(400, 300), (30, 60)])
def test_thumbnail_keeps_the_shape_and_enlarges_nothing(tmp_path, size):
    write_square(tmp_path / "a.jpg", (0, 200, 0), size)
    small = thumbnail(tmp_path / "a.jpg", 100)
    assert small.size == ((100, 75) if size == (400, 300) else (30, 60))


def change_nothing(folder):
    pass


def add(folder):
    write_square(folder / "warm" / "pink.png")


def remove(folder):
    (folder / "blue.png").unlink()


def rename(folder):
    (folder / "blue.png").rename(folder / "navy.png")


def overwrite(folder):
    write_square(folder / "blue.png", COLOURS["red"])


def touch(folder):
    os.utime(folder / "blue.png", ns=(0, 10**18))


@pytest.mark.parametrize("change", [change_nothing, add, remove, rename, overwrite, touch])
def test_fingerprint_changes_with_the_files(tmp_path, change):
    before = folder_gallery(write_gallery(tmp_path), 8)
    change(tmp_path)
    after = folder_gallery(tmp_path, 8)
    assert (after.fingerprint == before.fingerprint) == (change is change_nothing)
    assert after.key == before.key


def test_folders_of_one_name_have_different_keys(tmp_path):
    first, second = (folder_gallery(write_gallery(tmp_path / name / "my photos"), 8) for name in "ab")
    assert first.fingerprint != "" != second.fingerprint
    assert first.key != second.key
    assert first.key.startswith("my_photos-")


def test_missing_or_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an existing folder of images"):
        folder_gallery(tmp_path / "nowhere", 8)
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"without an image, expected files that end in \.bmp"):
        folder_gallery(tmp_path, 8)


@pytest.fixture
def recipe(tmp_path):
    """Of a data set of files: two classes, three images each to train on."""
    for split in ("train", "val"):
        for label in ("cats", "dogs"):
            for number in range(3):
                write_square(tmp_path / "pets" / split / label / f"{number}.png", (number, 0, 0), (20, 12))
    return load_recipe(
        "quickstart",
        [
            f"data.dataset={{type: ClassFolders, root: {tmp_path / 'pets'}}}",
            "data.packed_size=10",
            f"data.cache={tmp_path / 'cache'}",
            "data.selection=1",
        ],
    )


def test_training_images_are_those_of_the_run(recipe, tmp_path):
    gallery = run_gallery(recipe)
    assert gallery.key == "train"
    assert gallery.names == [f"{label}/{number}.png" for label in ("cats", "dogs") for number in range(3)]
    assert gallery.classes == ["cats"] * 3 + ["dogs"] * 3
    assert gallery.image_size == (10, 10)
    assert gallery.pixels(4)[0, 0, 0] == 1
    assert gallery.thumbnail(4, 100).size == (20, 12)  # the file, not the packed image
    gallery.files[4].unlink()
    assert gallery.thumbnail(4, 100).size == (10, 10)


def test_training_images_are_of_the_classes_that_the_run_keeps(recipe):
    kept = recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": ["dogs"]})})
    gallery = run_gallery(kept)
    assert gallery.classes == ["dogs"] * 3
    assert [file.parent.name for file in gallery.files] == ["dogs"] * 3
    assert gallery.fingerprint != run_gallery(recipe).fingerprint


def test_training_images_without_files_are_named_by_their_index(tmp_path):
    recipe = load_recipe("quickstart", [f"data.cache={tmp_path}"])
    gallery = run_gallery(recipe)
    assert gallery.names[:3] == ["0", "1", "2"]
    assert gallery.thumbnail(2, 100).size == gallery.image_size
    assert run_gallery(recipe).fingerprint == gallery.fingerprint
