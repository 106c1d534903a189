"""Fixtures that more than one test module shares."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # as in a shell's background job, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("any machine", deadline=None)  # a busy machine is no fault of a test's
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def tiny_imagenet_root() -> Path:
    """The folder that holds tiny-imagenet-200/, from DR_PLUGIN_TINY_IMAGENET; without it, tests skip."""
    value = os.environ.get("DR_PLUGIN_TINY_IMAGENET")
    if not value:
        pytest.skip("set DR_PLUGIN_TINY_IMAGENET to the folder that holds tiny-imagenet-200/")
    root = Path(value)
    if not (root / "tiny-imagenet-200" / "train").is_dir():
        pytest.fail(f"DR_PLUGIN_TINY_IMAGENET={value} holds no tiny-imagenet-200/train")
    return root


@pytest.fixture(scope="session")
def make_tiny_imagenet() -> Callable[..., Path]:
    """Write small learnable images in Tiny ImageNet's layout: ``make_tiny_imagenet(root, ...) -> root``.

    A class is a colour and a direction of stripes, under noise; the first ``greyscale`` images of each
    class and split have no colour. The lists are out of order and words.txt names other classes too, as the
    real ones do.
    """

    def make(
        root: Path,
        classes: int = 4,
        train: int = 12,
        val: int = 4,
        size: int = 64,
        greyscale: int = 1,
        seed: int = 0,
    ) -> Path:
        rng = np.random.default_rng(seed)
        folder = Path(root) / "tiny-imagenet-200"
        class_ids = [f"n{10_000_000 + 137 * number}" for number in range(classes)]

        def write(path: Path, number: int, grey: bool) -> None:
            image = Image.fromarray(_striped(rng, number, classes, size))
            path.parent.mkdir(parents=True, exist_ok=True)
            (image.convert("L") if grey else image).save(path, quality=90)

        for number, class_id in enumerate(class_ids):
            names = [f"{class_id}_{i}.JPEG" for i in range(train)]
            for i, name in enumerate(names):
                write(folder / "train" / class_id / "images" / name, number, i < greyscale)
            boxes = "".join(f"{name}\t0\t0\t{size - 1}\t{size - 1}\n" for name in names)
            (folder / "train" / class_id / f"{class_id}_boxes.txt").write_text(boxes)

        annotations = ""
        for i, j in enumerate(rng.permutation(classes * val)):
            number, rank = divmod(int(j), val)
            write(folder / "val" / "images" / f"val_{i}.JPEG", number, rank < greyscale)
            annotations += f"val_{i}.JPEG\t{class_ids[number]}\t0\t0\t{size - 1}\t{size - 1}\n"
        (folder / "val" / "val_annotations.txt").write_text(annotations)

        (folder / "wnids.txt").write_text("".join(f"{class_id}\n" for class_id in reversed(class_ids)))
        words = [f"{class_id}\tstripes {i}, pattern {i}\n" for i, class_id in enumerate(class_ids)]
        (folder / "words.txt").write_text("n00001740\tentity\n" + "".join(words) + "n99999999\tthing\n")
        return Path(root)

    return make


@pytest.fixture(scope="session")
def make_rated_triplets() -> Callable[..., Path]:
    """Write images and triplets.csv, as people might have rated them: ``make_rated_triplets(root, ...) -> root``.

    Each text query has images of a few colours under noise; a positive has its query's colour, a negative another.
    """

    def make(root: Path, queries: int = 4, triplets: int = 6, size: int = 48, seed: int = 0) -> Path:
        rng = np.random.default_rng(seed)
        root = Path(root)
        (root / "images").mkdir(parents=True, exist_ok=True)
        lines = ["text_query,query,positive,negative"]
        for query in range(queries):
            for number in range(triplets):
                near, far = rng.permutation(classes := 3)[:2]
                names = []
                for role, colour in zip("qpn", (near, near, far), strict=True):
                    names.append(f"images/{query}-{number}-{role}.png")
                    picture = _striped(rng, int(colour), classes, size)[:, : size - 8 * (number % 2)]
                    Image.fromarray(picture).save(root / names[-1])
                lines.append(",".join([f"query {query}", *names]))
        (root / "triplets.csv").write_text("\n".join(lines) + "\n")
        return root

    return make


@pytest.fixture(scope="session")
def make_unpacked() -> Callable[..., Path]:
    """Write small images as PML's data sets find them unpacked: ``make_unpacked("CUB", root, ...) -> root``.

    The classes to train on have the first numbers of their split, as the real ones do, and so have the unseen ones. The
    first image of each class has no colour, and sizes differ.
    """

    def make(
        name: str, root: Path, classes: int = 4, unseen: int = 3, images: int = 6, size: int = 40
    ) -> Path:
        rng, root, first_unseen = np.random.default_rng(0), Path(root), {"CUB": 101, "Cars196": 99}
        start = first_unseen.get(name, classes + 1)
        numbers = [*range(1, classes + 1), *range(start, start + unseen)]
        rows = []
        for place, number in enumerate(numbers):
            for i in range(images):
                picture = Image.fromarray(_striped(rng, place, len(numbers), size + number % 3))
                picture = picture.crop((0, 0, size, size + 5 * (i % 2) - 5)).convert("RGB" if i else "L")
                rows.append((number, number >= start, _image_path(name, number, i, i < images // 2)))
                (root / rows[-1][2]).parent.mkdir(parents=True, exist_ok=True)
                picture.save(root / rows[-1][2])
        _write_lists(name, root, rows)
        return root

    return make


def _image_path(name: str, number: int, i: int, first_half: bool) -> str:
    """Where a class's image lies below the root; Cars196 has the images of a class in two folders."""
    if name == "CUB":
        return f"CUB_200_2011/images/{number:03}.Bird_{number}/Bird_{number}_{i}.jpg"
    if name == "Cars196":
        return f"car_data/car_data/{'train' if first_half else 'test'}/Car {number}/{number:03}{i:02}.jpg"
    return f"Stanford_Online_Products/{('sofa', 'lamp')[number % 2]}_final/{number}_{i}.JPG"


def _write_lists(name: str, root: Path, rows: list[tuple[int, bool, str]]) -> None:
    """The text files that name the images of a data set: (class number, whether unseen, path)."""
    files: dict[str, list[str]] = {}
    if name == "CUB":
        files["CUB_200_2011/images.txt"] = [
            f"{i} {path.removeprefix('CUB_200_2011/images/')}" for i, (_, _, path) in enumerate(rows, 1)
        ]
        files["CUB_200_2011/image_class_labels.txt"] = [
            f"{i} {number}" for i, (number, _, _) in enumerate(rows, 1)
        ]
    elif name == "Cars196":
        files["names.csv"] = [f"Car {number}" for number in range(1, 197)]
        for part in ("train", "test"):
            files[f"anno_{part}.csv"] = [
                f"{Path(path).name},1,1,9,9,{number}" for number, _, path in rows if f"/{part}/" in path
            ]
    else:
        for part in ("train", "test"):
            lines = [
                f"{i} {number} {1 + number % 2} {path.removeprefix('Stanford_Online_Products/')}"
                for i, (number, unseen, path) in enumerate(rows, 1)
                if unseen == (part == "test")
            ]
            files[f"Stanford_Online_Products/Ebay_{part}.txt"] = [
                "image_id class_id super_class_id path",
                *lines,
            ]
    for path, lines in files.items():
        (root / path).write_text("\n".join(lines) + "\n")


def _striped(rng: np.random.Generator, number: int, classes: int, size: int) -> np.ndarray:
    """One (size, size, 3) uint8 image of class ``number``."""
    turn = number / classes
    colour = 0.5 + 0.4 * np.cos(2 * np.pi * (turn + np.arange(3) / 3))
    rows, columns = np.mgrid[:size, :size] / size
    along = rows * np.sin(np.pi * turn) + columns * np.cos(np.pi * turn)
    stripes = 0.6 + 0.4 * np.sin(2 * np.pi * (4 * along + rng.random()))
    image = stripes[..., None] * colour + rng.normal(0, 0.05, (size, size, 3))
    return (image.clip(0, 1) * 255).astype(np.uint8)
