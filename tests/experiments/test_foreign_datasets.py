"""PML's own data sets, unpacked by hand: no network is touched."""

import socket

import numpy as np
import pytest
import torch
from pytorch_metric_learning import datasets as pml

from dr_plugin.datasets import PackedImages
from dr_plugin.experiments.build import dataset_of
from dr_plugin.experiments.problems import RecipeError
from dr_plugin.experiments.schema import Slot

NAMES = ["CUB", "Cars196", "StanfordOnlineProducts"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network is touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def slot(name, root, **arguments):
    return Slot.model_validate({"type": name, "root": str(root), **arguments})


def loaded(dataset, index):
    """An item whose image's file is closed."""
    image, label = dataset[index]
    image.load()
    return image, label


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("split", "pml_split", "classes"), [("train", "train", 4), ("val", "test", 3)])
def test_splits_have_other_classes_and_labels_from_0(
    name, split, pml_split, classes, make_unpacked, tmp_path
):
    root = make_unpacked(name, tmp_path)
    found, raw = dataset_of(slot(name, root), split), getattr(pml, name)(str(root), split=pml_split)
    numbers = sorted(set(raw.labels))
    assert found.class_ids == [str(number) for number in numbers]
    assert len(numbers) == len(found.class_names) == classes
    assert [numbers[label] for label in found.labels] == raw.labels
    assert [loaded(found, i)[1] for i in range(len(found))] == found.labels
    assert found.paths == raw.paths


@pytest.mark.parametrize("name", NAMES)
def test_classes_of_the_two_splits_are_told_apart_by_their_ids(name, make_unpacked, tmp_path):
    root = make_unpacked(name, tmp_path)
    train, val = (dataset_of(slot(name, root), split) for split in ("train", "val"))
    assert not {*train.class_ids} & {*val.class_ids}
    assert not {*train.paths} & {*val.paths}


def test_classes_are_named_by_their_folders_where_each_has_one(make_unpacked, tmp_path):
    names = {
        name: dataset_of(slot(name, make_unpacked(name, tmp_path / name)), "val").class_names
        for name in NAMES
    }
    assert names["CUB"] == ["101.Bird_101", "102.Bird_102", "103.Bird_103"]
    assert names["Cars196"] == ["Car 99", "Car 100", "Car 101"]  # though in two folders of one name
    assert names["StanfordOnlineProducts"] == ["5", "6", "7"]  # a folder there is a kind of product


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_are_packed_as_rgb(name, make_unpacked, tmp_path):
    found = dataset_of(slot(name, make_unpacked(name, tmp_path / "data")), "val")
    assert loaded(found, 0)[0].mode == "L"  # PML converts nothing
    packed = PackedImages.build(found, tmp_path / "pack", size=16)
    images, labels = packed.batch(np.arange(len(packed)))
    assert images.shape == (18, 3, 16, 16)
    assert torch.equal(images[0, 0], images[0, 1])
    assert not torch.equal(images[1, 0], images[1, 1])
    assert labels.tolist() == found.labels


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("download", [False, True])
def test_folder_with_other_files_is_one_clear_error(name, download, tmp_path):
    """PML takes any file for the data set, and downloads nothing then."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        RecipeError, match=r"root: got .* which lacks .*(images|image_class_labels|names|Ebay)"
    ) as caught:
        dataset_of(slot(name, tmp_path, download=download), "train")
    assert ("folder that is empty" in str(caught.value)) == download
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", NAMES)
def test_archive_that_was_not_unpacked_whole_is_one_clear_error(name, make_unpacked, tmp_path):
    root = make_unpacked(name, tmp_path)
    found = dataset_of(slot(name, root), "val")
    for path in found.paths[2:4]:
        (root / path).unlink()
    with pytest.raises(RecipeError, match=r"lacks 2 of 18 images, such as .*; expected the whole archive"):
        dataset_of(slot(name, root), "val")


def test_split_without_an_image_is_one_clear_error(make_unpacked, tmp_path):
    root = make_unpacked("CUB", tmp_path, unseen=0)
    with pytest.raises(RecipeError, match="holds no image of the split 'test'"):
        dataset_of(slot("CUB", root), "val")
