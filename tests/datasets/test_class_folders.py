import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from dr_plugin.datasets import ClassFolders


def write_class(folder, count, value=0, suffix="png"):
    """Write ``count`` images, every third of them in a folder further down."""
    for i in range(count):
        path = folder / ("deeper/still" if i % 3 == 2 else "") / f"{i:02}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if i == 0 else "RGB", (4, 4), value).save(path)


@pytest.fixture
def flat(tmp_path):
    root = tmp_path / "flat"
    for value, (name, count) in enumerate([("rose", 20), ("daisy", 11), ("tulip", 2), ("weed", 1)]):
        write_class(root / name, count, value)
    (root / "README.jpg").touch()  # beside the class folders: not theirs
    (root / "rose" / "notes.txt").touch()
    (root / "rose" / "._00.png").touch()
    (root / ".cache" / "x").mkdir(parents=True)
    return root


@pytest.fixture
def split_folders(tmp_path):
    root = tmp_path / "split"
    for split, count in (("train", 5), ("val", 3), ("test", 1)):
        for name in ("cat", "ant"):
            write_class(root / split / name, count, suffix="JPG")
    return root


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_folders_equal_image_folder(split_folders, split):
    data = ClassFolders(split_folders, split)
    oracle = ImageFolder(split_folders / split)
    assert list(zip(data.paths, data.labels, strict=True)) == oracle.samples
    assert data.class_ids == data.class_names == oracle.classes == ["ant", "cat"]
    assert {image.mode for image, _ in data} == {"RGB"}


def test_hold_out_parts_each_class_in_two(flat):
    train, val = (ClassFolders(flat, split, val_fraction=0.25) for split in ("train", "val"))
    assert train.class_ids == val.class_ids == ["daisy", "rose", "tulip", "weed"]
    assert np.bincount(train.labels, minlength=4).tolist() == [8, 15, 1, 1]
    assert np.bincount(val.labels, minlength=4).tolist() == [3, 5, 1, 0]  # weed's only image is for training
    shown = [path for path in flat.rglob("*.png") if not path.name.startswith(".")]
    assert sorted(train.paths + val.paths) == sorted(map(str, shown))
    for path, label in zip(train.paths + val.paths, train.labels + val.labels, strict=True):
        assert path.startswith(str(flat / train.class_ids[label]))
    assert train.paths == sorted(train.paths)


@pytest.mark.parametrize(("val_fraction", "counts"), [(0.001, [1, 1, 1, 0]), (0.999, [10, 19, 1, 0])])
def test_hold_out_leaves_one_of_each_class_on_both_sides(flat, val_fraction, counts):
    val = ClassFolders(flat, "val", val_fraction=val_fraction)
    assert np.bincount(val.labels, minlength=4).tolist() == counts


def test_hold_out_depends_on_seed_and_names_only(flat, tmp_path):
    val = ClassFolders(flat, "val", val_fraction=0.3)
    assert ClassFolders(flat, "val", val_fraction=0.3).paths == val.paths
    assert ClassFolders(flat, "val", val_fraction=0.3, seed=1).paths != val.paths
    shutil.copytree(flat, tmp_path / "elsewhere")
    moved = ClassFolders(tmp_path / "elsewhere", "val", val_fraction=0.3)
    assert [path.replace("elsewhere", "flat") for path in moved.paths] == val.paths


def test_hold_out_moves_few_images_when_some_are_added(tmp_path):
    for name in ("a", "b"):
        write_class(tmp_path / name, 60)
    before = set(ClassFolders(tmp_path, "val", val_fraction=0.2).paths)
    for name in ("a", "b"):
        Image.new("RGB", (4, 4)).save(tmp_path / name / "new.png")
    after = set(ClassFolders(tmp_path, "val", val_fraction=0.2).paths)
    assert len(after - before) <= 2


def test_hold_out_is_uniform_over_the_images(tmp_path):
    for name in ("a", "b"):
        write_class(tmp_path / name, 8)
    names = [path for split in ("train", "val") for path in ClassFolders(tmp_path, split).paths]
    seeds = 400
    counts = dict.fromkeys(names, 0)
    for seed in range(seeds):
        for path in ClassFolders(tmp_path, "val", val_fraction=0.25, seed=seed).paths:
            counts[path] += 1
    expected = seeds * 2 / 8
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_square < 29.1  # the 99th percentile at 14 degrees of freedom


def test_data_set_applies_transforms_and_survives_pickling(flat):
    data = pickle.loads(pickle.dumps(ClassFolders(str(flat), transform=np.asarray, target_transform=str)))
    image, label = data[len(data) - 1]
    np.testing.assert_array_equal(image, np.full((4, 4, 3), 3) * [1, 1, 1])
    assert label == "3"


@pytest.mark.parametrize("val_fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_val_fraction_out_of_range_is_refused(flat, val_fraction):
    with pytest.raises(ValueError, match=r"got val_fraction=.*expected a number between 0 and 1"):
        ClassFolders(flat, val_fraction=val_fraction)


def test_unknown_split_and_missing_root_are_refused(flat):
    with pytest.raises(ValueError, match="got split='test', expected 'train' or 'val'"):
        ClassFolders(flat, "test")
    with pytest.raises(ValueError, match=r"ClassFolders: got root=.*expected an existing folder"):
        ClassFolders(flat / "none")


def test_too_few_classes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got 0 class folders in .* \(none\), expected at least 2"):
        ClassFolders(tmp_path)
    write_class(tmp_path / "only", 3)
    with pytest.raises(ValueError, match=r"got 1 class folders in .* \(only\), expected at least 2"):
        ClassFolders(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_class_without_an_image_is_refused(flat, split):
    for name in ("a", "b", "c", "d"):
        (flat / name).mkdir()
    (flat / "a" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"got 4 class folders without an image in .*: a, b, c and 1 more"):
        ClassFolders(flat, split)


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_folders_with_different_classes_are_refused(split_folders, split):
    (split_folders / "val" / "cat").rename(split_folders / "val" / "dog")
    with pytest.raises(ValueError, match=r"different classes.*only in train/: cat; only in val/: dog"):
        ClassFolders(split_folders, split)


@pytest.mark.parametrize("present", ["train", "val"])
def test_one_split_folder_without_the_other_is_refused(split_folders, present):
    shutil.rmtree(split_folders / ({"train", "val"} - {present}).pop())
    with pytest.raises(ValueError, match=f"with {present}/ only, expected both train/ and val/"):
        ClassFolders(split_folders)
