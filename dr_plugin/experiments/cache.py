"""Where a run keeps what it makes of its training images, to find it again in the next one."""

import hashlib
import json
from pathlib import Path

import platformdirs

from .recipe import Recipe


def derived_folder(recipe: Recipe, kind: str) -> Path:
    """A folder of this kind for each choice of training images and relevance.

    Its name only keeps things apart: whether what lies there still holds, a fingerprint in it tells.
    """
    data = recipe.data
    root = Path(data.cache) if data.cache is not None else platformdirs.user_cache_path("dr_plugin")
    dataset = data.dataset.model_dump()
    if isinstance(dataset.get("root"), str):  # the same words mean another folder elsewhere
        dataset["root"] = str(Path(dataset["root"]).expanduser().resolve())
    slot = None if recipe.relevance is None else recipe.relevance.model_dump()
    what = [dataset, data.classes, data.selection, data.packed_size, recipe.seed, slot]
    name = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return root / kind / name
