"""write_shards: what it writes, that it is written whole or not at all, and when it is left as it is."""

import io
import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from webdataset.tariterators import group_by_keys, tar_file_expander

from dr_plugin.datasets import PackedImages, write_shards
from dr_plugin.datasets.shard_reader import find_shards
from dr_plugin.triplets import TableRelevance

N = 12
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (N, 3, 5, 7), dtype=np.uint8)
LABELS = np.arange(N) // 4 * 10 - 10  # classes -10, 0, 10
TOTALS = RANDOM.random(N) * 10.0 ** RANDOM.integers(-20, 20, N)
FEATURES = RANDOM.normal(size=(N, 3))


class Totals:
    """A relevance of which only the totals are asked for."""

    def __init__(self, totals):
        self._totals = np.asarray(totals)

    def __len__(self):
        return len(self._totals)

    def pairs(self, i, j):
        raise AssertionError("not needed")

    def total(self, i):
        return self._totals[i]


def _write(folder, images=IMAGES, labels=LABELS, **changes):
    arguments = {"relevance": Totals(TOTALS), "features": FEATURES, "images_per_shard": 5} | changes
    return write_shards(images, labels, folder, **arguments)


def _read(shards):
    """All samples by key, by WebDataset's own reader."""
    samples = {}
    for shard in shards:
        with open(shard, "rb") as file:
            members = tar_file_expander([{"url": str(shard), "stream": file}])
            samples |= {int(sample["__key__"]): sample for sample in group_by_keys(members)}
    return samples


def _pixels(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded))).transpose(2, 0, 1)


@pytest.mark.parametrize("convert", [np.asarray, torch.from_numpy], ids=["array", "tensor"])
def test_samples_hold_what_was_given_exactly(tmp_path, convert):
    shards = _write(tmp_path, convert(IMAGES), torch.from_numpy(LABELS))
    assert [shard.name for shard in shards] == ["images-000000.tar", "images-000001.tar", "images-000002.tar"]
    samples = _read(shards)
    assert sorted(samples) == list(range(N))
    for index, sample in samples.items():
        assert (_pixels(sample["png"]) == IMAGES[index]).all()
        assert int(sample["cls"]) == LABELS[index]
        assert json.loads(sample["json"]) == {"relevance": TOTALS[index]}
        feature = np.load(io.BytesIO(sample["npy"]))
        assert feature.dtype == np.float64
        assert (feature == FEATURES[index]).all()


def test_packed_images_are_written_by_their_batches(tmp_path):
    packed = PackedImages.build([(image, 0) for image in IMAGES.transpose(0, 2, 3, 1)], tmp_path / "pack")
    samples = _read(write_shards(packed, LABELS, tmp_path / "shards"))
    assert all((_pixels(sample["png"]) == IMAGES[index]).all() for index, sample in samples.items())
    assert {key for sample in samples.values() for key in sample if key[0] != "_"} == {"png", "cls"}


@pytest.mark.parametrize("wrap", [lambda paths: paths, lambda paths: type("Set", (), {"paths": paths})()])
def test_files_are_copied_byte_for_byte(tmp_path, wrap):
    paths = [str(tmp_path / f"{index}.JPEG") for index in range(N)]
    for path, image in zip(paths, IMAGES, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    for index, sample in _read(_write(tmp_path / "shards", wrap(paths))).items():
        with open(paths[index], "rb") as file:
            assert sample["jpeg"] == file.read()


def test_order_is_shuffled_over_all_shards_by_the_seed(tmp_path):
    images = np.repeat(IMAGES, 20, axis=0)
    labels = np.arange(len(images)) // 60
    shards = {
        seed: write_shards(images, labels, tmp_path / str(seed), seed=seed, images_per_shard=60)
        for seed in (0, 1)
    }
    keys = {seed: list(_read(written)) for seed, written in shards.items()}
    assert keys[0] != keys[1]
    for shard in shards[0]:
        counts = Counter(int(sample["cls"]) for sample in _read([shard]).values())
        assert min(counts[label] for label in range(4)) >= 5  # of 15 expected


def test_same_arguments_give_the_same_bytes(tmp_path):
    first, second = _write(tmp_path / "a"), _write(tmp_path / "b")
    assert [shard.read_bytes() for shard in first] == [shard.read_bytes() for shard in second]


def test_progress_reports_every_shard(tmp_path):
    calls = []
    _write(tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [("writing shards", done, N) for done in (5, 10, 12)]


def test_shards_of_the_same_source_are_left_as_they_are(tmp_path):
    calls = []
    shards = _write(tmp_path)
    assert _write(tmp_path, progress=lambda *call: calls.append(call)) == shards
    assert calls == []


@pytest.mark.parametrize(
    "changes",
    [
        {"images": IMAGES[::-1]},
        {"labels": LABELS + 1},
        {"relevance": Totals(TOTALS * 2)},
        {"relevance": None},
        {"features": FEATURES * 2},
        {"features": None},
        {"features": FEATURES.view(np.int64)},
        {"images_per_shard": 4},
        {"seed": 1},
        {"pattern": "{}.tar"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_shards_of_another_source_are_replaced(tmp_path, changes):
    _write(tmp_path / "old")
    shards = _write(tmp_path / "old", **changes)
    fresh = _write(tmp_path / "new", **changes)
    assert [shard.read_bytes() for shard in shards] == [shard.read_bytes() for shard in fresh]
    assert sorted(path.name for path in (tmp_path / "old").glob("[!.]*")) == sorted(
        [*(shard.name for shard in shards), "meta.json"]
    )


@pytest.mark.parametrize("damage", [lambda shard: shard.unlink(), lambda shard: shard.write_bytes(b"")])
def test_damaged_shards_are_written_again(tmp_path, damage):
    shards = _write(tmp_path)
    damage(shards[1])
    assert sorted(_read(_write(tmp_path))) == list(range(N))


def test_changed_file_is_noticed(tmp_path):
    path = tmp_path / "image.png"
    for colour in (0, 255):
        Image.new("RGB", (4, 4 + colour // 255), (colour, 0, 0)).save(path)
        (sample,) = _read(write_shards([path], [0], tmp_path / "shards")).values()
        assert sample["png"] == path.read_bytes()


def test_interrupted_writing_leaves_no_whole_set(tmp_path):
    old = _write(tmp_path)

    def interrupt(task, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _write(tmp_path, labels=LABELS + 1, progress=interrupt)
    with pytest.raises(ValueError, match=r"without a whole meta\.json"):
        find_shards(tmp_path)
    assert not list(tmp_path.glob("*.partial"))
    assert _write(tmp_path) == old
    assert find_shards(tmp_path) == old


def test_unreadable_file_leaves_no_partial_shard(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(FileNotFoundError):
        write_shards([tmp_path / "a.png", tmp_path / "b.png"], [0, 0], tmp_path / "shards")
    assert not list(tmp_path.glob("shards/*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": IMAGES[:0], "labels": []}, "images: got none"),
        ({"images": IMAGES.astype(np.int64)}, "images: got int64"),
        ({"images": IMAGES[:, :2]}, r"images: got uint8 \(12, 2, 5, 7\), expected uint8 \(N, 3, H, W\)"),
        ({"images": ["a.txt"] * N}, r"images: got a\.txt, expected a suffix of"),
        ({"labels": LABELS[:-1]}, r"labels: got int64 \(11,\), expected one integer for each of 12"),
        ({"labels": LABELS / 2}, "labels: got float64"),
        ({"relevance": Totals(TOTALS[:-1])}, "relevance: got one of 11 images, expected 12"),
        ({"relevance": Totals([*TOTALS[:-1], np.nan])}, "relevance: got r_i = nan of image 11"),
        ({"relevance": Totals([-1.0, *TOTALS[1:]])}, r"relevance: got r_i = -1\.0 of image 0"),
        ({"relevance": Totals([*TOTALS[:-1], np.inf])}, "relevance: got r_i = inf"),
        (
            {"features": FEATURES[:-1]},
            r"features: got float64 \(11, 3\), expected numbers of shape \(12, F\)",
        ),
        ({"features": FEATURES.astype(str)}, "features: got <U"),
        ({"features": np.where(np.arange(N)[:, None] == 7, np.nan, FEATURES)}, "not finite, of image 7"),
        ({"images_per_shard": 0}, "images_per_shard: got 0"),
        ({"images_per_shard": 2.0}, r"images_per_shard: got 2\.0"),
        ({"seed": -1}, "seed: got -1"),
        ({"pattern": "shard.tar"}, "pattern: got 'shard.tar', expected a field"),
        ({"pattern": "{}.zip"}, r"pattern: got .* ends in \.tar"),
        ({"pattern": "a/{}.tar"}, r"pattern: got .* a file name"),
        ({"pattern": "{name}.tar"}, "pattern: got '{name}.tar'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        _write(tmp_path / "shards", **changes)
    assert not (tmp_path / "shards").exists()


def test_relevance_of_other_classes_is_refused_and_a_table_is_taken(tmp_path):
    images, labels = np.zeros((4, 3, 8, 8), np.uint8), np.array([0, 0, 1, 1])
    table = np.array([[0, 1, 9, 9], [1, 0, 9, 9], [9, 9, 0, 2], [9, 9, 2, 0]], np.float32)
    with pytest.raises(ValueError, match="labels: got other classes than the relevance was made with"):
        write_shards(images, labels, tmp_path / "no", relevance=TableRelevance(table, [0, 1, 0, 1]))
    assert not (tmp_path / "no").exists()
    for name, relevance in (("table", table), ("graded", TableRelevance(table))):
        samples = _read(write_shards(images, labels, tmp_path / name, relevance=relevance))
        assert [json.loads(samples[index]["json"])["relevance"] for index in range(4)] == [1, 1, 2, 2]
