"""Relevances, and the features that they are made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dr_plugin import relevance
from dr_plugin.relevance import features

from .entries import Call, Entry
from .small import IMAGES, LABELS, POINTS, ROWS, SIMILAR

CLASSES = LABELS.numpy()
FEATURES = POINTS.numpy()


def _totals(made: Any) -> Any:
    return made.total(range(len(made)))


def _described(transformer: Any) -> Any:
    rows = transformer.fit(IMAGES).transform(IMAGES[:2])
    assert rows.ndim == 2
    assert len(rows) == 2
    return rows


_METHODS = {
    "pairs": Call(
        lambda made, **inputs: made.pairs(**inputs), lambda _: {"i": np.arange(3), "j": np.arange(3)}
    ),
    "total": Call(lambda made, **inputs: made.total(**inputs), lambda _: {"i": np.arange(3)}),
    "block": Call(lambda made, **inputs: made.block(**inputs), lambda _: {"members": np.arange(3)}),
}
_TRANSFORM = {
    "fit": Call(lambda made, images: made.fit(images).transform(images), lambda _: {"images": IMAGES})
}


def _golden(made: Any) -> Any:
    return _totals(made.fit(IMAGES, CLASSES))


def _of_function(_: Path) -> dict[str, Any]:
    return {"function": lambda i, j: 1.0 + i * j, "labels": CLASSES}


def _patches(_: Path) -> dict[str, Any]:
    return {"cell_sizes": (4,), "step": 4, "samples": 100}


ENTRIES: Mapping[str, Entry] = {
    "relevance.FeatureRelevance": Entry(
        relevance.FeatureRelevance,
        lambda _: {"features": FEATURES, "labels": CLASSES},
        _totals,
        {
            **_METHODS,
            "cross": Call(
                lambda made, **inputs: made.cross(**inputs),
                lambda _: {"queries": FEATURES, "j": np.arange(3)},
            ),
        },
        functions=frozenset({"kernel"}),
        called={"features": "labels|images", "queries": "features"},
        also=(IndexError,),
    ),
    "relevance.FunctionRelevance": Entry(
        relevance.FunctionRelevance,
        _of_function,
        _totals,
        _METHODS,
        functions=frozenset({"function"}),
        called={"count": "images|labels", "labels": "images"},
        also=(IndexError,),
    ),
    "relevance.GoldenFeatures": Entry(
        relevance.GoldenFeatures,
        lambda _: {"features": [features.HOG()], "triplets": 20},
        _golden,
        {
            "fit": Call(
                lambda made, **inputs: _totals(made.fit(**inputs)),
                lambda _: {"images": IMAGES, "labels": CLASSES},
            )
        },
        functions=frozenset({"kernels"}),
        unbounded=frozenset({"triplets"}),
        called={"features": "kernels", "kernels": "kernel", "images": "labels"},
    ),
    "relevance.MultiLabelRelevance": Entry(
        relevance.MultiLabelRelevance,
        lambda _: {"memberships": np.eye(6), "labels": CLASSES},
        _totals,
        _METHODS,
        called={"memberships": "labels|images"},
        also=(IndexError,),
    ),
    "relevance.OASIS": Entry(
        relevance.OASIS,
        lambda _: {"steps": 20},
        lambda made: made.fit(FEATURES, CLASSES).weights_,
        {
            "labels": Call(
                lambda made, **inputs: made.fit(**inputs).weights_,
                lambda _: {"features": FEATURES, "labels": CLASSES},
            ),
            "triplets": Call(
                lambda made, **inputs: made.fit(**inputs).weights_,
                lambda _: {"features": FEATURES, "triplets": ROWS},
            ),
            "relevance": Call(
                lambda made, **inputs: made.fit(**inputs).weights_,
                lambda _: {"features": FEATURES, "labels": CLASSES, "relevance": SIMILAR},
            ),
            "similarities": Call(
                lambda made, **inputs: made.fit(FEATURES, CLASSES).similarities(**inputs),
                lambda _: {"x": FEATURES, "y": FEATURES},
            ),
        },
        unbounded=frozenset({"steps"}),
        called={
            "features": "labels|triplets|relevance",
            "labels": "triplets|out_of_class_ratio",  # of which there may be no triplets
            "relevance": "labels|out_of_class_ratio",
            "triplets": "labels",
        },
    ),
    "relevance.StoredRelevance": Entry(
        relevance.StoredRelevance,
        lambda at: {"folder": at / "store"},
        _totals,
        _METHODS,
        called={"folder": "store"},  # whose path the message begins with
        also=(IndexError, OSError),
    ),
    "relevance.StoredRelevance.build": Entry(
        relevance.StoredRelevance.build,
        lambda at: {"relevance": relevance.TableRelevance(SIMILAR), "folder": at / "new store", "key": "a"},
        _totals,
        also=(OSError,),
        examples=10,
    ),
    "relevance.TableRelevance": Entry(
        relevance.TableRelevance,
        lambda _: {"table": SIMILAR, "labels": CLASSES},
        _totals,
        _METHODS,
        called={"table": "relevance|labels"},
        also=(IndexError,),
    ),
    "relevance.features.FisherVector": Entry(
        features.FisherVector,
        lambda at: {**_patches(at), "gaussians": 2, "dimension": 2},
        _described,
        _TRANSFORM,
        called={"samples": "patches"},
        examples=10,
    ),
    "relevance.features.HOG": Entry(features.HOG, lambda _: {}, _described, _TRANSFORM, examples=10),
    "relevance.features.L1HashKPCA": Entry(
        features.L1HashKPCA,
        lambda _: {"features": [features.HOG()], "hashes": 4, "triplets": 8},
        _described,
        _TRANSFORM,
        called={"images": "image"},
        unbounded=frozenset({"hashes", "triplets"}),
        examples=10,
    ),
    "relevance.features.LABHistogram": Entry(
        features.LABHistogram,
        lambda _: {"bins": 2},
        # Each number of bins has a table to compute, in a second.
        lambda made: made.fit(IMAGES).bins,
        {"fit": Call(lambda made, images: made.fit(images).bins, lambda _: {"images": IMAGES})},
    ),
    "relevance.features.SIFTHistogram": Entry(
        features.SIFTHistogram,
        lambda at: {**_patches(at), "words": 2},
        _described,
        _TRANSFORM,
        called={"samples": "patches"},
        examples=10,
    ),
    "relevance.features.SPMKTexton": Entry(
        features.SPMKTexton,
        lambda _: {"words": 2, "levels": 2, "samples": 100},
        _described,
        _TRANSFORM,
        called={"samples": "responses"},
        examples=10,
    ),
    "relevance.features.Wavelet": Entry(
        features.Wavelet, lambda _: {"coefficients": 4}, _described, _TRANSFORM, examples=10
    ),
}
