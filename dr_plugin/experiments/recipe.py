"""From a recipe's file, or the name of a shipped one, to a checked `Recipe`."""

import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from . import recipe_file, shipped
from .check import check, slots_of
from .problems import Key, Problem, RecipeError, expected, got, nearest, one_of
from .recipe_file import Document
from .schema import (
    STAGE_KINDS,
    Augment,
    Data,
    Evaluation,
    RankingStage,
    Recipe,
    Slot,
    SoftmaxStage,
    Stage,
)

__all__ = [
    "Augment",
    "Data",
    "Evaluation",
    "RankingStage",
    "Recipe",
    "RecipeError",
    "Slot",
    "SoftmaxStage",
    "Stage",
    "load_recipe",
]


def load_recipe(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe, merge ``overrides`` into it and check all of it, without touching any data.

    Args:
        source: A file, or the name of a recipe that is shipped with the package, such as ``tiny_uniform``.
        overrides: Texts such as ``stages.ranking.epochs=3``; see `recipe_file.override`.
    Raises:
        RecipeError: with every fault that was found, one a line:
            ``recipes/x.yaml:12: stages[1].miner.triplet_per_query: got 8, expected ...; did you mean ...?``
    Example:
        >>> load_recipe("quickstart", ["seed=3"]).seed
        3
    """
    # A file comes first; os.path, unlike Path, takes names that the system refuses for names of nothing.
    is_file = os.path.exists(source) and not os.path.isdir(source)
    path = Path(source) if is_file else shipped.path(os.fspath(source))
    document = recipe_file.override(recipe_file.read(path), overrides)
    data = {"name": path.stem, **document.data}
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise document.error([_problem(item) for item in error.errors(include_url=False)]) from None
    if problems := check(recipe):
        raise document.error(problems)
    _remember_places(recipe, document)
    return recipe


def _remember_places(recipe: Recipe, document: Document) -> None:
    """Tell each slot where it stands, for what can only be found out when the slot is built."""
    for _, key, slot in slots_of(recipe):
        slot._place = document.place(key)


def _problem(error: ErrorDetails) -> Problem:
    """One of pydantic's errors as ours."""
    key: Key = error["loc"]
    fields = _fields(key[:-1])
    if key[:1] == ("stages",) and len(key) > 2:
        key = (*key[:2], *key[3:])  # the third part is pydantic's: the stage's kind
    value, name = error["input"], key[-1]
    if error["type"] == "extra_forbidden":
        return Problem(key, f"got {got(value)}, {one_of(fields)}{nearest(name, fields)}")
    if error["type"] == "stage_kind" and isinstance(value, dict):
        key, value = (*key, "kind"), value.get("kind", value.get("name"))
    given, wanted = "nothing" if error["type"] == "missing" else got(value), expected(error)
    choices = wanted.removeprefix("one of ").split(", ") if error["type"] == "literal_error" else []
    return Problem(key, f"got {given}, expected {wanted}{nearest(value, choices)}")


def _fields(key: Key) -> list[str]:
    """The names that the section at ``key`` (as pydantic has it) may have."""
    annotation: Any = Recipe
    for part in key:
        if isinstance(part, int):
            continue
        if part in STAGE_KINDS and not _section(annotation):
            annotation = STAGE_KINDS[part]
        elif (section := _section(annotation)) is not None and part in section.model_fields:
            annotation = section.model_fields[part].annotation
    section = _section(annotation)
    return list(section.model_fields) if section is not None else []


def _section(annotation: Any) -> type[BaseModel] | None:
    """The one model in an annotation such as ``Model | None``; None for a list of stages, which has two."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        found = [member for member in typing.get_args(annotation) if _section(member) is not None]
        return _section(found[0]) if len(found) == 1 else None
    return None
