"""What the variants of a comparison differ in, in words, and what they have in common."""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .compare_plan import COMPARED, Variant
from .families import KINDS, NESTED, find

NONE = "none"
# Said of all variants elsewhere, or of no weight for their figures.
_APART = {"name", "seed", "compare", "sweep", "report", "checkpoint", "tensorboard"}
_Places = dict[tuple[str, str], Any]  # slots by their stage's name and their own; a stage "" for the recipe's


def changes(variants: Sequence[Variant]) -> list[dict[str, str]]:
    """Of each variant, what it has in the slots in which the variants differ, as ``{"loss": "NTXentLoss"}``."""
    places = _differing(variants)
    stages = {stage for own in places for stage, _ in own if stage}
    return [
        {
            (f"{stage} {slot}" if stage and len(stages) > 1 else slot): _words(value)
            for (stage, slot), value in own.items()
        }
        for own in places
    ]


def ours(variants: Sequence[Variant]) -> list[bool]:
    """Whether what sets a variant apart has a class in it that only dr_plugin has."""
    return [
        any(_is_ours(*part) for (_, slot), value in own.items() for part in _types(slot, value))
        for own in _differing(variants)
    ]


def equal_part(variants: Sequence[Variant]) -> dict[str, Any]:
    """All settings that are the same in all variants, as a recipe has them; a list that differs is left out."""
    first, *others = [variant.recipe.model_dump(mode="json", exclude=_APART) for variant in variants]
    common: dict[str, Any] = first
    for other in others:
        common = _common(common, other)
    return common


def _differing(variants: Sequence[Variant]) -> list[_Places]:
    """Of each variant its compared slots, without those that are the same in all."""
    places = [_places(variant) for variant in variants]
    keys = list(dict.fromkeys(key for own in places for key in own))
    told = [key for key in keys if any(own.get(key) != places[0].get(key) for own in places)]
    return [{key: own.get(key) for key in told} for own in places]


def _places(variant: Variant) -> _Places:
    data = variant.recipe.model_dump()
    found = {(stage["name"], slot): stage.get(slot) for stage in data["stages"] for slot in COMPARED}
    return found | {("", "relevance"): data["relevance"]}


def _words(slot: Any) -> str:
    """The class's name, and in brackets those of the slots in it."""
    if not isinstance(slot, Mapping):
        return NONE
    inner = [_words(nested) for _, nested in _nested(slot)]
    name = str(slot["type"]).rpartition(".")[2]
    return f"{name} ({', '.join(inner)})" if inner else name


def _types(kind: str, slot: Any) -> Iterator[tuple[str, str]]:
    """The kind and type of a slot and of those in it."""
    if isinstance(slot, Mapping):
        yield ("optimizer" if kind == "loss_optimizer" else kind), slot["type"]
        for inner, nested in _nested(slot):
            yield from _types(inner, nested)


def _is_ours(kind: str, name: str) -> bool:
    """Whether the class is of dr_plugin, and none of PML's or torch's under the same name."""
    found = find(kind, name)
    others = [module for module in KINDS[kind].modules if not module.startswith("dr_plugin.")]
    stands_in = any(hasattr(importlib.import_module(module), found.__name__) for module in others)
    return found.__module__.startswith("dr_plugin.") and not stands_in


def _nested(slot: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Slots among a slot's arguments, with their kinds."""
    for name, value in slot.items():
        if name not in NESTED:
            continue
        single = isinstance(value, Mapping) and "type" in value
        items = [value] if single else value.values() if isinstance(value, Mapping) else value
        if isinstance(items, Iterable) and not isinstance(items, str):
            yield from (
                (NESTED[name], item) for item in items if isinstance(item, Mapping) and "type" in item
            )


def _common(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in one.items():
        if key not in other:
            continue
        theirs = other[key]
        if isinstance(value, Mapping) and isinstance(theirs, Mapping):
            if "type" not in value or value["type"] == theirs.get("type"):
                found[key] = _common(value, theirs)
        elif _are_sections(value, theirs):
            found[key] = [_common(*pair) for pair in zip(value, theirs, strict=True)]
        elif value == theirs:
            found[key] = value
    return found


def _are_sections(one: Any, other: Any) -> bool:
    """Whether both are lists of as many mappings, as stages are."""
    lists = isinstance(one, list) and isinstance(other, list) and 0 < len(one) == len(other)
    return lists and all(isinstance(item, Mapping) for item in [*one, *other])
