"""A damaged pack is rebuilt with a warning or refused; no damaged pixel or label ever comes in a batch."""

import json
import logging
import pickle
import random

import numpy as np
import pytest
import torch

from dr_plugin.datasets import PackedImages

IMAGES, SIZE = 12, 6
FLIPS = 250


LABELS = [index % 2 for index in range(IMAGES)]
NAMES = ["ant", "bee"]


class Noise:
    """Images of two classes."""

    def __init__(self):
        self.labels, self.class_names, self.class_ids = LABELS, NAMES, NAMES

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        if not 0 <= index < IMAGES:
            raise IndexError(index)
        pixels = np.random.default_rng(index).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        return pixels, self.labels[index]


@pytest.fixture
def folder(tmp_path):
    PackedImages.build(Noise(), tmp_path / "pack")
    return tmp_path / "pack"


def images_file(folder):
    (path,) = folder.glob("images-*.npy")
    return path


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def expected():
    return torch.stack([torch.from_numpy(Noise()[i][0].transpose(2, 0, 1).copy()) for i in range(IMAGES)])


def test_flipped_bit_anywhere_is_refused_or_changes_nothing(folder):
    """In the array, its header, the labels, the names, the checksums."""
    draw = random.Random(0)
    found = []
    for path in (folder / "meta.json", images_file(folder)):
        whole = path.read_bytes()
        for bit in draw.sample(range(8 * len(whole)), FLIPS):
            flip(path, bit)
            try:
                packed = PackedImages(folder)
                images, labels = packed.batch(range(IMAGES))
                names = packed.class_names, packed.class_ids
            except ValueError as error:
                found.append(str(error).startswith(str(folder)))
            else:
                assert torch.equal(images, expected())
                assert labels.tolist() == LABELS
                assert names == (NAMES, NAMES)
            path.write_bytes(whole)
    assert len(found) > FLIPS
    assert all(found)


def test_damaged_image_is_named_and_the_others_are_given(folder):
    path = images_file(folder)
    start = path.stat().st_size - IMAGES * 3 * SIZE**2
    flip(path, 8 * (start + 7 * 3 * SIZE**2) + 3)
    packed = PackedImages(folder)
    packed.batch([6, 8])
    for view in (packed, packed.subset([7]), pickle.loads(pickle.dumps(packed.select_classes([1])))):
        with pytest.raises(
            ValueError, match=r"pixels of image 7 are not those that were packed.*remove this folder"
        ):
            view.check()
    for path in folder.iterdir():
        path.unlink()
    assert torch.equal(PackedImages.build(Noise(), folder).batch(range(IMAGES))[0], expected())


def test_images_are_checked_once(folder, monkeypatch):
    packed = PackedImages(folder)
    packed.subset([3, 5]).batch([0, 1])
    checked = []
    check = PackedImages._check

    def count(self, images, rows):
        checked.append(rows[~self._checked[rows]].tolist())
        check(self, images, rows)

    monkeypatch.setattr(PackedImages, "_check", count)
    packed.batch([5, 4, 3, 4])
    packed.batch([4, 5])
    assert checked == [[4, 4]]
    seen = []
    packed.check(progress=lambda task, done, total: seen.append((task, done, total)))
    packed.check()
    assert len(checked) == 2
    assert seen == [("checking images", IMAGES, IMAGES)]


@pytest.mark.parametrize("damage", ["labels", "truncated", "older"])
def test_build_tells_that_it_replaces_a_damaged_pack(folder, caplog, damage):
    meta = json.loads((folder / "meta.json").read_text())
    if damage == "labels":
        meta["labels"][0] = 1
        (folder / "meta.json").write_text(json.dumps(meta))
    elif damage == "truncated":
        images_file(folder).write_bytes(images_file(folder).read_bytes()[:-1])
    else:
        (folder / "meta.json").write_text(json.dumps({**meta, "format": 2}))
    with caplog.at_level(logging.WARNING):
        packed = PackedImages.build(Noise(), folder)
    (record,) = caplog.records
    assert str(folder) in record.message
    assert "build it again" in record.message
    assert packed.batch(range(IMAGES))[1].tolist() == LABELS
    caplog.clear()
    PackedImages.build(Noise(), folder)
    assert not caplog.records


def test_header_of_the_array_is_not_needed(folder):
    path = images_file(folder)
    content = path.read_bytes()
    path.write_bytes(bytes(len(content) - IMAGES * 3 * SIZE**2) + content[-IMAGES * 3 * SIZE**2 :])
    assert torch.equal(PackedImages(folder).batch(range(IMAGES))[0], expected())
