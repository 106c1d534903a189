"""Features given by name or as transformers."""

import difflib
import importlib
from collections.abc import Sequence
from typing import Any

from sklearn.base import TransformerMixin

from dr_plugin.checks import shown


def named_transformers(features: Sequence[str | TransformerMixin]) -> list[Any]:
    """The features' transformers, those named built with their defaults.

    Args:
        features: Transformers of images, or names of classes of `dr_plugin.relevance.features`.
    Raises:
        ValueError: if there is none, or one is neither.
    """
    # Here, as one of them takes others by name.
    known = importlib.import_module("dr_plugin.relevance.features")
    if not isinstance(features, list | tuple) or not features:
        raise ValueError(f"features: got {shown(features)}, expected transformers or names, at least one")
    found: list[Any] = []
    for feature in features:
        if isinstance(feature, str) and feature not in known.__all__:
            near = difflib.get_close_matches(feature, known.__all__, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"features: got {feature!r}, expected one of {', '.join(known.__all__)}{hint}")
        made = getattr(known, feature)() if isinstance(feature, str) else feature
        if isinstance(made, type) or not (hasattr(made, "transform") and hasattr(made, "get_params")):
            raise ValueError(f"features: got {shown(made)}, expected an object with transform and get_params")
        found.append(made)
    return found
