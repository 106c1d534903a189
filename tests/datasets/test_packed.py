"""PackedImages: what is packed, when it is reused, and that a broken build is never taken for a whole one."""

import copy
import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import functional as vision

from dr_plugin.datasets.packed import PackedImages
from dr_plugin.datasets.tiny_imagenet import TinyImageNet


class Files:
    """Image files in class folders, which counts how many it decodes."""

    def __init__(self, root: Path) -> None:
        self.class_ids = sorted(folder.name for folder in root.iterdir())
        self.class_names = [name.upper() for name in self.class_ids]
        files = sorted(root.glob("*/*"))
        self.paths = [str(path) for path in files]
        self.labels = [self.class_ids.index(path.parent.name) for path in files]
        self.decoded = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        self.decoded += 1
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB"), self.labels[index]


class Items:
    """Items in memory: no files, no names, and labels only in the items."""

    def __init__(self, items: list[tuple[object, int]]) -> None:
        self.items = items
        self.decoded = 0

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[object, int]:
        self.decoded += 1
        return self.items[index]


def noise(count: int, height: int = 6, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def items(count: int, seed: int = 0) -> Items:
    return Items([(pixels, index % 3) for index, pixels in enumerate(noise(count, seed=seed))])


def pixels_of(dataset: Files | Items) -> torch.Tensor:
    """Every image as (N, 3, H, W), read one by one."""
    return torch.stack(
        [torch.from_numpy(np.array(dataset[i][0])).permute(2, 0, 1) for i in range(len(dataset))]
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three class folders of eight 6 x 7 PNG files."""
    images = iter(noise(24, 6, 7))
    for name in ("ant", "bee", "cat"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(8):
            Image.fromarray(next(images)).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def packed(root: Path, tmp_path: Path) -> PackedImages:
    return PackedImages.build(Files(root), tmp_path / "pack")


def pause(*_: object) -> None:
    """A progress callback that lets other threads run."""
    time.sleep(0.01)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.partial"))


@pytest.mark.parametrize("workers", [1, 3])
def test_build_keeps_pixels_labels_and_names(root: Path, tmp_path: Path, workers: int) -> None:
    dataset = Files(root)
    packed = PackedImages.build(dataset, tmp_path / "pack", workers=workers)
    images, labels = packed.batch(range(24))
    assert torch.equal(images, pixels_of(dataset))
    assert labels.tolist() == packed.labels.tolist() == dataset.labels
    assert (images.dtype, labels.dtype, packed.labels.dtype) == (torch.uint8, torch.long, torch.long)
    assert (packed.class_ids, packed.class_names) == (["ant", "bee", "cat"], ["ANT", "BEE", "CAT"])
    assert (len(packed), packed.image_size) == (24, (6, 7))
    assert leftovers(tmp_path / "pack") == []


def test_build_packs_a_torchvision_image_folder(root: Path, tmp_path: Path) -> None:
    folder = ImageFolder(str(root))
    packed = PackedImages.build(folder, tmp_path / "pack")
    assert packed.labels.tolist() == folder.targets
    assert packed.class_names == packed.class_ids == folder.classes
    assert torch.equal(packed.batch([9])[0][0], vision.pil_to_tensor(folder[9][0]))


@pytest.mark.parametrize("size", [4, 5, 9])
def test_build_resizes_the_shorter_side_and_crops_the_centre(root: Path, tmp_path: Path, size: int) -> None:
    Image.fromarray(noise(1, 20, 9)[0]).save(root / "ant" / "other.png")
    dataset = Files(root)
    packed = PackedImages.build(dataset, tmp_path / "pack", size=size)
    for index in range(len(dataset)):
        expected = vision.center_crop(vision.resize(dataset[index][0], [size]), [size])
        assert torch.equal(packed[index][0], vision.pil_to_tensor(expected))


def test_build_packs_the_chosen_items_in_order(root: Path, tmp_path: Path) -> None:
    dataset, chosen = Files(root), torch.tensor([20, 3, 11])
    packed = PackedImages.build(dataset, tmp_path / "pack", indices=chosen)
    assert torch.equal(packed.batch([0, 1, 2])[0], pixels_of(dataset)[chosen])
    assert packed.labels.tolist() == [2, 0, 1]


@pytest.mark.parametrize("kind", ["HWC", "HW1", "HW", "L", "CHW", "1HW", "tensor HW"])
def test_build_takes_arrays_tensors_and_greyscale(tmp_path: Path, kind: str) -> None:
    colour = noise(1)[0]
    grey = colour[:, :, 0]
    image = {
        "HWC": colour,
        "HW1": grey[:, :, None],
        "HW": grey,
        "L": Image.fromarray(grey),
        "CHW": torch.from_numpy(colour).permute(2, 0, 1),
        "1HW": torch.from_numpy(grey)[None],
        "tensor HW": torch.from_numpy(grey),
    }[kind]
    expected = colour if kind in ("HWC", "CHW") else np.stack([grey] * 3, axis=2)
    packed = PackedImages.build(Items([(image, np.int64(0))]), tmp_path)
    assert np.array_equal(packed[0][0].permute(1, 2, 0).numpy(), expected)
    assert packed.class_names == packed.class_ids == ["0"]


def test_build_reports_progress_to_the_end(root: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int | None]] = []
    PackedImages.build(Files(root), tmp_path / "pack", progress=lambda *call: calls.append(call))
    assert calls == [("packing images", 16, 24), ("packing images", 24, 24)]


# Reuse


def test_build_reuses_a_pack_without_decoding(root: Path, tmp_path: Path) -> None:
    first = PackedImages.build(Files(root), tmp_path / "pack", size=5)
    again = Files(root)
    second = PackedImages.build(again, tmp_path / "pack", size=5)
    assert again.decoded == 0
    assert torch.equal(first.batch(range(24))[0], second.batch(range(24))[0])


def test_build_reuses_a_pack_of_images_that_were_moved_together(root: Path, tmp_path: Path) -> None:
    PackedImages.build(Files(root), tmp_path / "pack")
    moved = Files(root.rename(tmp_path / "elsewhere"))
    PackedImages.build(moved, tmp_path / "pack")
    assert moved.decoded == 0


def touch(dataset: Files) -> None:
    os.utime(dataset.paths[4], ns=(0, 0))


def grow(dataset: Files) -> None:
    stat = os.stat(dataset.paths[4])
    with open(dataset.paths[4], "ab") as file:
        file.write(b"\0")
    os.utime(dataset.paths[4], ns=(stat.st_atime_ns, stat.st_mtime_ns))


def relabel(dataset: Files) -> None:
    dataset.labels[4] = 2


def rename_class(dataset: Files) -> None:
    dataset.class_names[1] = "wasp"


def rename_file(dataset: Files) -> None:
    dataset.paths[4] = str(Path(dataset.paths[4]).rename(Path(dataset.paths[4]).with_name("new.png")))


def drop(dataset: Files) -> None:
    del dataset.paths[4], dataset.labels[4]


def add_transform(dataset: Files) -> None:
    dataset.transform = "a transform"


@pytest.mark.parametrize("change", [touch, grow, relabel, rename_class, rename_file, drop, add_transform])
def test_build_rebuilds_when_the_source_changes(root: Path, tmp_path: Path, change: object) -> None:
    PackedImages.build(Files(root), tmp_path / "pack")
    changed = Files(root)
    change(changed)
    packed = PackedImages.build(changed, tmp_path / "pack")
    assert changed.decoded == len(changed)
    assert packed.labels.tolist() == changed.labels
    assert packed.class_names == changed.class_names
    assert len(list((tmp_path / "pack").glob("images-*"))) == 1


@pytest.mark.parametrize("settings", [{"size": 4}, {"indices": [1, 2, 3]}])
def test_build_rebuilds_when_the_settings_change(
    root: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    PackedImages.build(Files(root), tmp_path / "pack")
    dataset = Files(root)
    PackedImages.build(dataset, tmp_path / "pack", **settings)
    assert dataset.decoded == len(settings.get("indices", range(24)))


def test_build_notices_changed_items_without_files(tmp_path: Path) -> None:
    assert PackedImages.build(items(10), tmp_path).labels.tolist() == [index % 3 for index in range(10)]
    same = items(10)
    PackedImages.build(same, tmp_path)
    assert same.decoded == 10  # read for the fingerprint, not decoded again
    same.items[7] = (noise(1, seed=9)[0], 1)
    assert torch.equal(PackedImages.build(same, tmp_path).batch(range(10))[0], pixels_of(same))
    same.items[7] = (same.items[7][0], 0)
    assert PackedImages.build(same, tmp_path).labels[7] == 0


def test_build_notices_other_indices_of_more_items_than_it_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dr_plugin.datasets.packing._HASHED_ITEMS", 2)
    source = items(9)
    for indices in ([0, 3, 8], [0, 6, 8]):
        packed = PackedImages.build(source, tmp_path, indices=indices)
        assert torch.equal(packed.batch([0, 1, 2])[0], pixels_of(source)[indices])


# Broken builds


@pytest.mark.parametrize("name", ["meta.json", "images"])
@pytest.mark.parametrize("left", [0, 40, -2])  # -1 would only cost meta.json its last line feed
def test_build_replaces_a_truncated_pack(root: Path, tmp_path: Path, name: str, left: int) -> None:
    folder = tmp_path / "pack"
    PackedImages.build(Files(root), folder)
    (broken,) = folder.glob(f"{name}*")
    broken.write_bytes(broken.read_bytes()[:left])
    with pytest.raises(ValueError, match=r"no whole pack|truncated"):
        PackedImages(folder)
    assert torch.equal(PackedImages.build(Files(root), folder).batch(range(24))[0], pixels_of(Files(root)))


@pytest.mark.parametrize("meta", ["[]", "{}", '{"format": 0, "fingerprint": "0", "bytes": 0}', "null"])
def test_open_refuses_a_folder_without_a_whole_pack(packed: PackedImages, meta: str) -> None:
    (packed.folder / "meta.json").write_text(meta)
    with pytest.raises(ValueError, match="no whole pack"):
        PackedImages(packed.folder)


def test_open_refuses_a_pack_of_another_format(packed: PackedImages) -> None:
    meta = json.loads((packed.folder / "meta.json").read_text())
    (packed.folder / "meta.json").write_text(json.dumps(meta | {"format": 99}))
    with pytest.raises(ValueError, match="another format"):
        PackedImages(packed.folder)


MOMENTS = ["decoding", "before the images", "after the images"]
KILLED = """
import os, signal, sys
import numpy as np
from dr_plugin.datasets.packed import PackedImages

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

images = np.random.default_rng(1).integers(0, 256, (40, 6, 6, 3), dtype=np.uint8)
replace = os.replace
for when, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    if child := os.fork():  # forked, to import torch only once
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        continue
    if when == "before the images":
        os.replace = die
    if when == "after the images":
        os.replace = lambda source, target: die() if "meta" in str(source) else replace(source, target)
    PackedImages.build([(image, 0) for image in images], folder, progress=die if when == "decoding" else None)
"""


def test_build_that_is_killed_is_not_taken_for_whole(tmp_path: Path) -> None:
    empty, used = ([tmp_path / f"{kind} {when}" for when in MOMENTS] for kind in ("empty", "used"))
    for folder in used:
        PackedImages.build(items(5), folder)
    folders = [
        (when, str(folder)) for row in (empty, used) for when, folder in zip(MOMENTS, row, strict=True)
    ]
    subprocess.run([sys.executable, "-c", KILLED, *(word for pair in folders for word in pair)], check=True)
    for folder in empty:
        assert [path.name for path in folder.iterdir()] != [".lock"]  # the kill did leave something
        with pytest.raises(ValueError, match="no whole pack"):
            PackedImages(folder)
    for folder in used:  # the older pack is still whole
        assert torch.equal(PackedImages(folder).batch(range(5))[0], pixels_of(items(5)))
    source = Items([(image, 0) for image in noise(40, seed=1)])
    for folder in (*empty, *used):
        assert torch.equal(PackedImages.build(source, folder).batch(range(40))[0], pixels_of(source))
        assert sorted(path.suffix for path in folder.iterdir() if path.name != ".lock") == [".json", ".npy"]


def test_builds_of_one_folder_at_once_each_get_their_own_source(tmp_path: Path) -> None:
    def build(seed: int) -> bool:
        source = items(20, seed)
        packed = PackedImages.build(source, tmp_path, progress=pause)
        return torch.equal(packed.batch(range(20))[0], pixels_of(source))

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(build, [0, 1, 0, 2, 1, 0] * 5))


def test_builds_of_one_source_at_once_decode_it_once(root: Path, tmp_path: Path) -> None:
    sources = [Files(root) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda source: PackedImages.build(source, tmp_path / "pack", progress=pause), sources))
    assert sum(source.decoded for source in sources) == 24


def test_build_names_every_corrupt_image_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "images" / "ant").mkdir(parents=True)
    for index, pixels in enumerate(noise(20, 16, 16)):
        Image.fromarray(pixels).save(tmp_path / "images" / "ant" / f"{index:02}.jpg")
    dataset = Files(tmp_path / "images")
    for index in (3, 18):
        Path(dataset.paths[index]).write_bytes(Path(dataset.paths[index]).read_bytes()[:300])
    with pytest.raises(ValueError, match=r"2 of 20 images cannot be packed: .*03\.jpg.*; .*18\.jpg"):
        PackedImages.build(dataset, tmp_path / "pack")
    assert [path.name for path in (tmp_path / "pack").iterdir()] == [".lock"]


def test_build_of_many_corrupt_images_names_ten(tmp_path: Path) -> None:
    bad = Items([(np.zeros((4, 4, 3), np.float32), 0)] * 14)
    bad.paths = [str(tmp_path / f"{index}.png") for index in range(14)]
    for path in bad.paths:
        Path(path).touch()
    with pytest.raises(ValueError, match=r"14 of 14 images .*float32.*; and 4 more"):
        PackedImages.build(bad, tmp_path / "pack")


def test_build_refuses_mixed_sizes(root: Path, tmp_path: Path) -> None:
    Image.fromarray(noise(1, 8, 9)[0]).save(root / "bee" / "other.png")
    with pytest.raises(ValueError, match=r"other\.png: got 8 x 9 pixels, expected 6 x 7 .* pass size"):
        PackedImages.build(Files(root), tmp_path / "pack")
    assert not list((tmp_path / "pack").glob("images-*"))


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), 0, "item 0: got float32"),
        (np.zeros((4, 4, 4), np.uint8), 0, "expected uint8 with 1 or 3 channels"),
        (torch.zeros(3, 4, 4), 0, "got float32"),
        ("a path", 0, "got str, expected a PIL image"),
        (Image.new("I;16", (4, 4)), 0, "expected 8 bits a channel"),
        (Image.new("F", (4, 4)), 0, "expected 8 bits a channel"),
        (noise(1)[0], 0.5, "item 0: 'float' object"),
        (noise(1)[0], -1, "item 0: got label -1"),
    ],
)
def test_build_refuses_items(tmp_path: Path, image: object, label: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PackedImages.build(Items([(image, label)]), tmp_path)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": 0}, ValueError, "size: got 0"),
        ({"workers": 0}, ValueError, "workers: got 0"),
        ({"indices": []}, ValueError, "no images to pack"),
        ({"indices": [24]}, IndexError, "got 24, expected 0 to 23"),
        ({"indices": [0.5]}, ValueError, "expected integers"),
    ],
)
def test_build_refuses_settings(
    root: Path, tmp_path: Path, settings: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        PackedImages.build(Files(root), tmp_path / "pack", **settings)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("name", ["paths", "labels"])
def test_build_refuses_lists_of_another_length(root: Path, tmp_path: Path, name: str) -> None:
    dataset = Items([(noise(1)[0], 0)] * 3)
    setattr(dataset, name, [0, 0])
    with pytest.raises(ValueError, match=f"{name}: got 2 for 3 images"):
        PackedImages.build(dataset, tmp_path)


def test_build_refuses_a_label_without_a_name(root: Path, tmp_path: Path) -> None:
    dataset = Files(root)
    dataset.labels[5] = 3
    with pytest.raises(ValueError, match=r"5\.png: got label 3"):
        PackedImages.build(dataset, tmp_path / "pack")


# Batches and views


@pytest.mark.parametrize(
    "indices",
    [
        [5, 0, 5],
        (5, 0, 5),
        np.array([5, 0, 5], dtype=np.uint8),
        torch.tensor([5, 0, 5]),
        torch.tensor([5, 0, 5]).int(),
    ],
)
def test_batch_takes_any_integer_indices(packed: PackedImages, root: Path, indices: object) -> None:
    images, labels = packed.batch(indices)
    assert torch.equal(images, pixels_of(Files(root))[[5, 0, 5]])
    assert torch.equal(labels, packed.labels[[5, 0, 5]])


def test_batch_may_be_written_to_without_changing_the_pack(packed: PackedImages) -> None:
    readonly = np.arange(4)
    readonly.flags.writeable = False
    images, labels = packed.batch(readonly)
    before = images.clone()
    images.zero_()
    labels.fill_(7)
    assert torch.equal(packed.batch(readonly)[0], before)
    assert packed.labels[:4].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("indices", [[], np.array([]), torch.tensor([])])
def test_batch_of_no_indices_is_empty(packed: PackedImages, indices: object) -> None:
    images, labels = packed.batch(indices)
    assert (images.shape, images.dtype) == ((0, 3, 6, 7), torch.uint8)
    assert (labels.shape, labels.dtype) == ((0,), torch.long)


@pytest.mark.parametrize(("indices", "got"), [([0, 24], "24"), ([-1], "-1"), (np.array([-3, 90]), "-3")])
def test_batch_refuses_indices_out_of_range(packed: PackedImages, indices: object, got: str) -> None:
    with pytest.raises(IndexError, match=f"got {got}, expected 0 to 23"):
        packed.batch(indices)


@pytest.mark.parametrize("indices", [[0.0], torch.ones(24, dtype=torch.bool), [[0, 1]], 3])
def test_batch_refuses_what_are_no_indices(packed: PackedImages, indices: object) -> None:
    with pytest.raises(ValueError, match=r"expected integers of shape \(n,\)"):
        packed.batch(indices)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batch_is_pinned_where_asked(packed: PackedImages) -> None:
    assert packed.batch([0, 1], pin=True)[0].is_pinned()


def test_subset_shares_the_map_and_nests(packed: PackedImages) -> None:
    subset = packed.subset([20, 9, 3]).subset(torch.tensor([2, 0]))
    assert torch.equal(subset.batch([0, 1])[0], packed.batch([3, 20])[0])
    assert subset.labels.tolist() == [0, 2]
    assert subset.class_names == packed.class_names
    assert np.shares_memory(subset._images, packed._images)
    assert len(packed) == 24
    with pytest.raises(IndexError, match="got 2, expected 0 to 1"):
        subset.batch([2])
    with pytest.raises(IndexError, match="got 24"):
        packed.subset([24])


def test_select_classes_relabels_in_the_order_given(packed: PackedImages) -> None:
    selected = packed.select_classes([2, 0])
    assert selected.labels.tolist() == [1] * 8 + [0] * 8
    assert (selected.class_names, selected.class_ids) == (["CAT", "ANT"], ["cat", "ant"])
    assert torch.equal(selected.batch([0, 8])[0], packed.batch([0, 16])[0])


@pytest.mark.parametrize(
    ("labels", "message"), [([], "at least one"), ([1, 1], "different"), ([0, 3], r"got \[3\]")]
)
def test_select_classes_refuses_labels(packed: PackedImages, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        packed.select_classes(labels)


def copies(view: PackedImages) -> Iterator[PackedImages]:
    yield pickle.loads(pickle.dumps(view))
    yield copy.deepcopy(view)


def test_copies_map_the_same_images(packed: PackedImages) -> None:
    view = packed.subset([7, 1])
    assert len(pickle.dumps(view)) < 3000  # not the images
    for twin in copies(view):
        assert torch.equal(twin.batch([0, 1])[0], view.batch([0, 1])[0])
        twin.labels.fill_(2)
    assert view.labels.tolist() == [0, 0]


def test_loader_workers_reopen_the_map(packed: PackedImages) -> None:
    loader = DataLoader(packed, batch_size=10, num_workers=1, multiprocessing_context="spawn")
    images, labels = zip(*loader, strict=True)
    assert torch.equal(torch.cat(images), packed.batch(range(24))[0])
    assert torch.equal(torch.cat(labels), packed.labels)


def test_items_are_a_tensor_and_an_int(packed: PackedImages) -> None:
    image, label = packed[23]
    assert image.shape == (3, 6, 7)
    assert (type(label), label) == (int, 2)
    assert len(list(packed)) == 24  # indices past the end raise IndexError


@pytest.mark.real_data
def test_build_packs_real_images(tiny_imagenet_root: Path, tmp_path: Path) -> None:
    dataset = TinyImageNet(tiny_imagenet_root, split="val")
    packed = PackedImages.build(dataset, tmp_path, indices=range(1000))
    assert (len(packed), packed.image_size, len(packed.class_names)) == (1000, (64, 64), 200)
    grey = []
    for index in range(0, 1000, 7):
        with Image.open(dataset.paths[index]) as file:
            grey.append(file.mode == "L")
            assert torch.equal(packed[index][0], vision.pil_to_tensor(file.convert("RGB")))
    assert any(grey)
    assert packed.labels.tolist() == list(dataset.labels[:1000])
