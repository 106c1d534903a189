"""From a recipe's plain data to a `Recipe` that is known to be good, or all that is wrong with it."""

import types
import typing
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .check import check, slots_of
from .problems import Key, Problem, expected, got, nearest, one_of
from .recipe_file import Document
from .schema import STAGE_KINDS, Recipe


def validated(document: Document) -> Recipe:
    """The recipe that ``document`` holds; each of its slots knows where it stands.

    Raises:
        RecipeError: with every fault that was found, one a line.
    """
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        raise document.error(schema_problems(error, Recipe)) from None
    if problems := check(recipe):
        raise document.error(problems)
    for _, key, slot in slots_of(recipe):  # for what can only be found out when the slot is built
        slot._place = document.place(key)
    return recipe


def schema_problems(error: ValidationError, schema: type[BaseModel]) -> list[Problem]:
    """pydantic's errors as ours, for a document of this schema."""
    return [_problem(item, schema) for item in error.errors(include_url=False)]


def _problem(error: ErrorDetails, schema: type[BaseModel]) -> Problem:
    key: Key = error["loc"]
    fields = _fields(key[:-1], schema)
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


def _fields(key: Key, schema: type[BaseModel]) -> list[str]:
    """The names that the section at ``key`` (as pydantic has it) may have."""
    annotation: Any = schema
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
    """The one model in an annotation such as ``Model | None`` or a list of it; None for stages, which have two."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) is list:
        return _section(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        found = [member for member in typing.get_args(annotation) if _section(member) is not None]
        return _section(found[0]) if len(found) == 1 else None
    return None
