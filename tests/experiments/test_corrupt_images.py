"""Damaged image files: every data set names the file, in one line, whatever the decoder made of it."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dr_plugin.datasets import ClassFolders, PackedImages, SimilarityTriplets, TinyImageNet
from dr_plugin.datasets.base import open_rgb
from dr_plugin.experiments.build import dataset_of
from dr_plugin.experiments.schema import Slot


def empty(content):
    return b""


def text(content):
    return b"<html>Please log in</html>\n"


def truncated(content):
    return content[: len(content) * 2 // 3]


def flipped_header(content):
    return content[:4] + bytes(byte ^ 0x55 for byte in content[4:40]) + content[40:]


@pytest.fixture
def sources(tmp_path, make_tiny_imagenet, make_rated_triplets, make_unpacked):
    """Every data set that reads image files, the way a recipe makes it."""

    def make(name):
        root = tmp_path / name
        if name == "TinyImageNet":
            return TinyImageNet(make_tiny_imagenet(root, classes=2, train=4, val=2, size=20))
        if name == "ClassFolders":
            for number in range(8):
                path = root / "ab"[number % 2] / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((8, 8, 3), 30 * number, np.uint8)).save(path)
            return ClassFolders(root)
        if name == "SimilarityTriplets":
            return SimilarityTriplets(make_rated_triplets(root, queries=2, triplets=2, size=24))
        return dataset_of(
            Slot.model_validate({"type": name, "root": str(make_unpacked(name, root))}), "train"
        )

    return make


NAMES = ["TinyImageNet", "ClassFolders", "SimilarityTriplets", "CUB", "Cars196", "StanfordOnlineProducts"]


@pytest.mark.parametrize("damage", [empty, text, truncated, flipped_header])
@pytest.mark.parametrize("name", NAMES)
def test_data_set_names_the_file(name, damage, sources, tmp_path):
    dataset = sources(name)
    path = Path(dataset.paths[1])
    path.write_bytes(damage(path.read_bytes()))
    if name in ("TinyImageNet", "ClassFolders", "SimilarityTriplets"):
        with pytest.raises(OSError, match="cannot read image") as caught:
            dataset[1]
        assert str(path) in str(caught.value)
    with pytest.raises(ValueError, match=r"^1 of \d+ images cannot be packed: ") as caught:
        PackedImages.build(dataset, tmp_path / "pack", size=8, indices=range(3))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in (tmp_path / "pack").iterdir()] == [".lock"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm"])
def test_any_damage_is_an_error_that_names_the_file_or_none(tmp_path, suffix):
    """Decoders raise SyntaxError, struct.error, zlib.error, ValueError and others on damaged bytes."""
    whole, path = tmp_path / f"whole.{suffix}", tmp_path / f"damaged.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole)
    content, draw = whole.read_bytes(), random.Random(suffix)
    refused = 0
    for _ in range(120):
        damaged = bytearray(content)
        for _ in range(draw.randrange(1, 8)):
            damaged[draw.randrange(min(len(damaged), 200))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.randrange(len(damaged))] if draw.random() < 0.3 else damaged)
        try:
            assert open_rgb(str(path)).mode == "RGB"
        except (OSError, ValueError) as error:
            refused += str(path) in str(error)
        else:
            refused += 1
    assert refused == 120
