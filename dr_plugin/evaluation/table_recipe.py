"""From a table's file, or the name of a shipped one, to a checked `TableRecipe`."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dr_plugin.datasets import SimilarityTriplets
from dr_plugin.experiments import recipe_file, shipped
from dr_plugin.experiments.families import find
from dr_plugin.experiments.problems import Key, Problem, got, nearest, one_of
from dr_plugin.experiments.recipe import RecipeError, Slot, load_recipe
from dr_plugin.experiments.recipe_file import Document
from dr_plugin.experiments.slots import BuildError, Supply, plan
from dr_plugin.experiments.validate import schema_problems

from .table_schema import KINDS, Row, TableRecipe, Trained


def is_table(source: str | os.PathLike[str]) -> bool:
    """Whether a recipe's file, or the shipped recipe of this name, is a table's: it has rows.

    Raises:
        RecipeError: if it cannot be read.
    """
    return "rows" in recipe_file.read(_path(source)).data


def load_table(source: str | os.PathLike[str], overrides: Sequence[str] = ()) -> TableRecipe:
    """Read a table's recipe, merge ``overrides`` into it and check all of it, without touching any data.

    Args:
        source: A file, or the name of a shipped recipe, such as ``table1``.
        overrides: Texts such as ``rows.HOG.feature.cell_size=16``.
    Raises:
        RecipeError: with every fault that was found, one a line.
    """
    path = _path(source)
    document = recipe_file.override(recipe_file.read(path), overrides)
    document.data = {"name": path.stem, **document.data}
    try:
        recipe = TableRecipe.model_validate(document.data)
    except ValidationError as error:
        raise document.error(schema_problems(error, TableRecipe)) from None
    if problems := [*_wrong_rows(recipe), *_wrong_names(recipe), *_wrong_slots(recipe)]:
        raise document.error(problems)
    _check_models(recipe, document)
    return recipe


def _path(source: str | os.PathLike[str]) -> Path:
    is_file = os.path.exists(source) and not os.path.isdir(source)
    return Path(source) if is_file else shipped.path(os.fspath(source))


def _wrong_rows(recipe: TableRecipe) -> Iterator[Problem]:
    """Rows that are not one thing, or that stand before what they are made of."""
    above: list[Row] = []
    for index, row in enumerate(recipe.rows):
        key: Key = ("rows", index)
        earlier = [other.name for other in above]
        given = [kind for kind in KINDS if getattr(row, kind) is not None]
        if len(given) != 1:
            yield Problem(key, f"got {' and '.join(given) or 'none'}, expected one of {', '.join(KINDS)}")
            continue
        if row.name in earlier:
            yield Problem((*key, "name"), f"got {got(row.name)} again, expected each name once")
        for name in row.ingredients:
            if name not in earlier:
                yield Problem(
                    (*key, row.kind), f"got {got(name)}, {_an_earlier(earlier)}{nearest(name, earlier)}"
                )
        yield from _unfit(row, key, above)
        above.append(row)


def _unfit(row: Row, key: Key, above: Sequence[Row]) -> Iterator[Problem]:
    """Rows above that this one cannot build on, or whose folder it would share."""
    kinds = {other.name: other.kind for other in above}
    for name in row.ingredients:
        kind = kinds.get(name)
        if row.model is not None and kind not in (None, "model"):
            yield Problem(
                (*key, "model", "weights_from"), f"got {got(name)}, a {kind} row, expected a model row"
            )
        elif row.model is None and kind == "golden":
            text = f"got {got(name)}, a golden row, expected rows that have not seen ratings"
            yield Problem((*key, row.kind, "on"), text)
        elif row.kind in ("oasis", "linear") and kind == "oasis":
            text = f"got {got(name)}, an oasis row, expected a row with features of its own"
            yield Problem((*key, row.kind, "on"), text)
    if row.model is not None:
        for other in above:
            if other.model is not None and other.folder_name == row.folder_name:
                text = f"got {got(row.name)}, whose folder would be that of {got(other.name)}, expected other letters"
                yield Problem((*key, "name"), text)


def _an_earlier(names: list[str]) -> str:
    return one_of(names) + ", the rows above" if names else "expected a row above, and there is none"


def _wrong_names(recipe: TableRecipe) -> Iterator[Problem]:
    """Rows that are spoken of and do not exist."""
    names = [row.name for row in recipe.rows]
    asked: list[tuple[Key, str]] = []
    if recipe.compare_with is not None:
        asked.append((("compare_with",), recipe.compare_with))
    if recipe.examples is not None:
        asked += [(("examples", "rows", i), name) for i, name in enumerate(recipe.examples.rows)]
    for key, name in asked:
        if name not in names:
            yield Problem(key, f"got {got(name)}, {one_of(names)}{nearest(name, names)}")


def _wrong_slots(recipe: TableRecipe) -> Iterator[Problem]:
    """Slots whose class does not exist or refuses its arguments."""
    problems: list[Problem] = []
    supply = Supply({"split": "train"})
    plan("dataset", _plain(recipe.rated.dataset), ("rated", "dataset"), Supply(), problems)
    if not problems and not issubclass(find("dataset", recipe.rated.dataset.type), SimilarityTriplets):
        text = f"got {recipe.rated.dataset.type}, expected SimilarityTriplets"
        problems.append(Problem(("rated", "dataset", "type"), text))
    plan("dataset", _plain(recipe.learn_from.dataset), ("learn_from", "dataset"), supply, problems)
    if recipe.learn_from.relevance is not None:
        given = Supply({"cache": None, "seed": recipe.seed})
        plan("relevance", _plain(recipe.learn_from.relevance), ("learn_from", "relevance"), given, problems)
    for index, row in enumerate(recipe.rows):
        if row.feature is None:
            continue
        part = plan("feature", _plain(row.feature), ("rows", index, "feature"), Supply(), problems)
        try:
            if part is not None and part.known:
                part.build()
        except BuildError as error:
            problems.append(error.problem)
    yield from problems
    for index, row in enumerate(recipe.rows):
        model = row.model
        if model is not None and (model.recipe is None) == (model.run is None):
            yield Problem(("rows", index, "model"), "expected one of recipe and run")
        elif model is not None and model.run is not None and (model.set or model.weights_from is not None):
            yield Problem(
                ("rows", index, "model"), "got a run with set or weights_from, expected them of a recipe"
            )


def _plain(slot: Slot) -> dict[str, Any]:
    return {"type": slot.type, **slot.arguments}


def _check_models(recipe: TableRecipe, document: Document) -> None:
    """See that the recipes that train the rows are good, as far as that can be seen without data."""
    lines: list[str] = []
    for index, row in enumerate(recipe.rows):
        if row.model is None or row.model.recipe is None:
            continue
        try:
            trained = load_recipe(row.model.recipe, settings_of(row.model, recipe))
        except RecipeError as error:
            place = document.place(("rows", index, "model"))
            lines += [f"{place}: {line}" for line in error.lines]
            continue
        if trained.kind != "experiment":
            place = document.place(("rows", index, "model", "recipe"))
            lines.append(f"{place}: got a {trained.kind}, expected a recipe of one experiment")
    if lines:
        raise RecipeError(*lines)


def settings_of(model: Trained, recipe: TableRecipe) -> list[str]:
    """The ``--set`` texts for a row's recipe: the table's data set and cache, then the row's own settings."""
    settings: dict[str, Any] = {"data.dataset": _plain(recipe.learn_from.dataset)}
    if recipe.cache is not None:
        settings["data.cache"] = recipe.cache
    return [f"{key}={json.dumps(value)}" for key, value in (settings | model.set).items()]
