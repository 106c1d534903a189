"""The settings of each kind of index: what there are, and whether they fit the gallery."""

import difflib
import math
from collections.abc import Mapping

from dr_plugin.checks import check_whole, shown

# faiss's own measure: k-means on fewer images a list gives poor lists.
IMAGES_A_LIST = 39


def index_settings(kind: str, size: int, seed: int, given: Mapping[str, int]) -> dict[str, int]:
    """All settings of such an index over ``size`` images: those given, and defaults for the rest.

    Raises:
        ValueError: if the kind or a setting is unknown, or a value does not fit.
    """
    lists = max(1, min(round(4 * math.sqrt(size)), size // IMAGES_A_LIST))
    defaults: dict[str, dict[str, int]] = {
        "flat": {},
        "ivf": {"lists": lists, "probes": 0},
        "hnsw": {"links": 32, "build_effort": 100, "search_effort": 128},
    }
    if not isinstance(kind, str) or kind not in defaults:
        raise ValueError(f"got kind={shown(kind)}, expected 'flat', 'ivf' or 'hnsw'")
    for name, value in given.items():
        if name not in defaults[kind]:
            near = difflib.get_close_matches(name, defaults[kind], 1)
            raise ValueError(
                f"got {name}={value!r} for kind={kind!r}, expected one of {sorted(defaults[kind]) or 'no settings'}"
                + (f": did you mean {near[0]}?" if near else "")
            )
    numbers = {name: check_whole(name, value, minimum=1, below=2**31) for name, value in given.items()}
    check_whole("seed", seed, minimum=0, below=2**31)
    values = {**defaults[kind], **numbers}
    if kind == "ivf":
        if "probes" not in given:
            values["probes"] = min(values["lists"], max(8, values["lists"] // 16))
        _check_lists(values, size)
    if kind == "hnsw" and values["links"] < 2:
        raise ValueError("got links=1, expected at least 2: with one link the graph falls apart")
    return values


def _check_lists(values: Mapping[str, int], size: int) -> None:
    lists, probes = values["lists"], values["probes"]
    most = max(1, size // IMAGES_A_LIST)
    if lists > most:
        raise ValueError(
            f"got lists={lists} for {size} images, expected at most {most}: faiss trains a list on at least "
            f"{IMAGES_A_LIST} images; for a gallery this small kind='flat' is as fast"
        )
    if probes > lists:
        raise ValueError(f"got probes={probes}, expected at most the {lists} lists")
