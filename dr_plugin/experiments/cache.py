"""Where a run keeps what it makes of its images, to find it again in the next one.

A folder's name only keeps things apart: whether what lies there still holds, a fingerprint in it tells.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import platformdirs

from .recipe import Recipe
from .schema import Slot


def packed_folder(recipe: Recipe, split: str) -> Path:
    """Where a split's packed images lie, shared by all runs that need the same."""
    data = recipe.data
    what: list[Any] = [dataset_identity(data.dataset), data.classes, data.packed_size]
    if split == "val" and recipe.evaluation.gallery == "val":
        what.append(["unseen", data.unseen_classes])
    return cache_root(data.cache, "packed") / f"{data.dataset.type}-{split}-{short_hash(what)}"


def derived_folder(recipe: Recipe, kind: str) -> Path:
    """A folder of this kind for each choice of training images and relevance."""
    data = recipe.data
    slot = None if recipe.relevance is None else recipe.relevance.model_dump()
    what = [dataset_identity(data.dataset), data.classes, data.selection, data.packed_size, recipe.seed, slot]
    return cache_root(data.cache) / kind / short_hash(what)


def cache_root(cache: str | None, default: str = "") -> Path:
    """The folder that was asked for, else ``default`` in the user's cache."""
    return Path(cache) if cache is not None else platformdirs.user_cache_path("dr_plugin") / default


def dataset_identity(dataset: Slot) -> dict[str, Any]:
    """The slot's content, its root as a full path: the same words mean another folder elsewhere."""
    content = dataset.model_dump()
    if isinstance(content.get("root"), str):
        content["root"] = str(Path(content["root"]).expanduser().resolve())
    return content


def short_hash(what: Any) -> str:
    """Twelve hex digits of plain data."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]
