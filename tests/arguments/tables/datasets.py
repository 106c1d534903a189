"""Data sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dr_plugin import datasets
from dr_plugin.relevance import TableRelevance

from .entries import Call, Entry
from .small import IMAGES, LABELS, ROWS, SIMILAR

PIXELS = torch.from_numpy(IMAGES)
_WAY_OUT = (OSError,)  # where the system says that a path is none


def _first(dataset: Any) -> Any:
    return np.asarray(dataset[0][0])


def _augmented(augment: Any, **inputs: Any) -> Any:
    images = augment(
        **{"images": PIXELS, "generator": torch.Generator().manual_seed(0), **inputs}, training=True
    )
    assert images.shape[1:] == (3, augment.image_size, augment.image_size)
    return images


def _written(made: Any) -> Any:
    return [path.name for path in made]


def _triplets(stream: Any) -> Any:
    images, labels = next(iter(stream))
    assert len(images) == len(labels) == stream.batch_size
    return images, labels


def _files(at: Path) -> dict[str, Any]:
    return {"images": sorted((at / "rated" / "images").iterdir()), "triplets": ROWS, "workers": 1}


ENTRIES: Mapping[str, Entry] = {
    "datasets.BatchAugment": Entry(
        datasets.BatchAugment,
        lambda _: {"image_size": 8, "pixel_shift": 2},
        _augmented,
        {"call": Call(_augmented, lambda _: {"images": PIXELS, "part_of": None})},
        called={"image_size": "pixel_shift"},
    ),
    "datasets.ClassFolders": Entry(
        datasets.ClassFolders,
        lambda at: {"root": at / "tiny" / "tiny-imagenet-200" / "train"},
        _first,
        called={"root": "folders"},
        also=_WAY_OUT,
        examples=15,
    ),
    "datasets.Digits": Entry(
        datasets.Digits,
        lambda _: {},
        _first,
        called={"val_fraction": "test_size"},  # scikit-learn's name of it
        examples=6,
    ),
    "datasets.PackedImages": Entry(
        datasets.PackedImages,
        lambda at: {"folder": at / "pack"},
        lambda packed: packed.batch([0, 1])[0],
        {
            "batch": Call(
                lambda packed, indices: packed.batch(indices)[0], lambda _: {"indices": np.arange(3)}
            ),
            "subset": Call(
                lambda packed, indices: len(packed.subset(indices)), lambda _: {"indices": np.arange(3)}
            ),
            "select_classes": Call(
                lambda packed, labels: len(packed.select_classes(labels)), lambda _: {"labels": [1, 0]}
            ),
        },
        called={"folder": "pack"},
        also=(IndexError, OSError),
    ),
    "datasets.PackedImages.build": Entry(
        datasets.PackedImages.build,
        lambda at: {"dataset": datasets.PackedImages(at / "pack"), "folder": at / "new pack", "workers": 1},
        len,
        called={"dataset": "images|item", "indices": "images"},
        also=_WAY_OUT,
        examples=12,
    ),
    "datasets.SimilarityTriplets": Entry(
        datasets.SimilarityTriplets,
        lambda at: {"root": at / "rated"},
        _first,
        called={"root": "triplets"},
        also=_WAY_OUT,
        examples=25,
    ),
    "datasets.TinyImageNet": Entry(
        datasets.TinyImageNet,
        lambda at: {"root": at / "tiny"},
        _first,
        left_out=frozenset({"download"}),  # whatever is true fetches 248 MB
        called={"root": "folder"},
        also=_WAY_OUT,
        examples=15,
    ),
    "datasets.TripletStream": Entry(
        datasets.TripletStream,
        lambda at: {"source": at / "shards", "batch_size": 3, "byte_budget": 100_000},
        _triplets,
        {
            "set_epoch": Call(
                lambda stream, **inputs: stream.set_epoch(**inputs), lambda _: {"epoch": 1, "start_batch": 0}
            ),
            "state_dict": Call(
                lambda stream, **inputs: stream.state_dict(**inputs),
                lambda _: {"epoch": 1, "batches_consumed": 1},
            ),
        },
        functions=frozenset({"source", "pair_relevance"}),
        called={"source": "shard", "pair_relevance": "kernel", "world_size": "source", "rank": "world_size"},
        also=_WAY_OUT,
        examples=40,
    ),
    "datasets.rated_triplets": Entry(
        datasets.rated_triplets,
        _files,
        also=_WAY_OUT,
        functions=frozenset({"images"}),
        unbounded=frozenset({"workers"}),
    ),
    "datasets.refuse_rated": Entry(
        datasets.refuse_rated,
        _files,
        also=_WAY_OUT,
        functions=frozenset({"images"}),
        unbounded=frozenset({"workers"}),
    ),
    "datasets.write_shards": Entry(
        datasets.write_shards,
        lambda at: {
            "images": IMAGES,
            "labels": LABELS.numpy(),
            "folder": at / "new shards",
            "relevance": TableRelevance(SIMILAR),
            "features": IMAGES[:, 0, 0, :4].astype(np.float32),
        },
        _written,
        also=_WAY_OUT,
        called={"images": "labels", "labels": "relevance"},
        examples=15,
    ),
}
