"""The variants of a comparison: recipes that differ in what is compared, and in nothing else."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import recipe_file
from .problems import Key, Problem, RecipeError, dotted, got, nearest
from .recipe_file import Document
from .schema import Comparison, RankingStage, Recipe, to_yaml
from .sweep_plan import unmeasured
from .validate import validated

COMPARED = ("sampler", "stream", "miner", "loss", "loss_optimizer")
"""Slots of a ranking stage in which variants may differ; beside them the recipe's relevance."""
_NOT_COMPARED = {"name", "seed", "tensorboard", "relevance", "report", "checkpoint", "sweep", "compare"}
_ALLOWED = f"{', '.join(COMPARED)} of a stage, or relevance"
_MISSING = object()


@dataclass(frozen=True)
class Variant:
    """One variant, which runs once a seed.

    Attributes:
        name: What its runs' folders are called by; unique in the comparison.
        settings: What it sets: each key's full path, stages by name, and its value.
        recipe: Its recipe, without the comparison, with the first of the seeds.
    """

    name: str
    settings: dict[str, Any]
    recipe: Recipe

    @property
    def label(self) -> str:
        """Its name for people."""
        return self.name.replace("_", " ")

    def seeded(self, seed: int) -> Recipe:
        """The recipe of the run with this seed."""
        return self.recipe.model_copy(update={"seed": seed, "name": f"{self.recipe.name}-seed{seed}"})


def plan_variants(recipe: Recipe, document: Document) -> list[Variant]:
    """The variants that the recipe lists under ``compare``, each checked whole.

    Args:
        recipe: A validated recipe that has a comparison.
        document: Tells where the recipe's keys stand.
    Raises:
        RecipeError: with all that is wrong with any variant, one a line, each line once.
    """
    comparison = comparison_of(recipe)
    base = recipe_file.parse(recipe.to_yaml(), document.path).data
    del base["compare"]
    variants: list[Variant] = []
    problems: list[Problem] = []
    lines: list[str] = []
    if recipe.sweep is not None:
        problems.append(Problem(("sweep",), "got a sweep beside compare, expected one of the two"))
        base["sweep"] = None
    for name, settings in comparison.variants.items():
        try:
            variant = _variant(name, settings, base, document, recipe)
        except RecipeError as error:
            lines += error.lines
            continue
        same = [other.name for other in variants if _bare(other.recipe) == _bare(variant.recipe)]
        if same:
            problems.append(Problem(("compare", "variants", name), f"is {same[0]} again, expected another"))
        variants.append(variant)
    if not lines:
        recipes = [variant.recipe for variant in variants]
        problems += unmeasured(comparison.figures or [], recipes, ("compare", "figures"))
    if lines or problems:
        raise RecipeError(*dict.fromkeys([*document.error(problems).lines, *lines]))
    return variants


def join(recipes: Sequence[tuple[str, Recipe]], seeds: Sequence[int] | None = None) -> Recipe:
    """One recipe with a comparison of all these; a recipe that has a comparison brings its variants.

    Args:
        recipes: Each with what to call it in errors, its file for example.
        seeds: None: those of the first recipe with a comparison, or 0, 1 and 2.
    Raises:
        RecipeError: if they differ in more than what is compared, are fewer than two, or have a name twice.
    """
    compared = [recipe.compare for _, recipe in recipes if recipe.compare is not None]
    for key in ("figures",) if seeds is not None else ("figures", "seeds"):
        found = [getattr(one, key) for one in compared]
        if any(value != found[0] for value in found):
            raise RecipeError(
                f"RECIPE: got comparisons with different compare.{key}, expected the same in all"
            )
    chosen = list(seeds) if seeds is not None else compared[0].seeds if compared else [0, 1, 2]
    if len(recipes) == 1 and compared:
        only = recipes[0][1]
        return only.model_copy(update={"compare": compared[0].model_copy(update={"seeds": chosen})})
    variants_of = [(source, one) for source, recipe in recipes for one in _variants_of(source, recipe)]
    if len(variants_of) < 2:
        raise RecipeError(
            "RECIPE: got one recipe without compare, expected at least two recipes, or one that lists its variants "
            "under compare"
        )
    _check_equal(variants_of)
    _check_names(variants_of)
    first = variants_of[0][1].recipe
    variants = {variant.name: _changes(first, variant.recipe) for _, variant in variants_of}
    data = recipe_file.parse(to_yaml(first), variants_of[0][0]).data
    data["name"] = "-vs-".join(dict.fromkeys(recipe.name for _, recipe in recipes))[:80]
    figures = compared[0].figures if compared else None
    data["compare"] = {"seeds": chosen, "variants": variants, "figures": figures}
    document = Document("the comparison", data)
    joined = validated(document)
    plan_variants(joined, document)
    return joined


def shared_stages(recipe: Recipe, variants: Sequence[Variant]) -> int:
    """How many stages come before the first that a variant changes: these are the same for all."""
    keys = [key.split(".") for one in variants for key in one.settings]
    names = [stage.name for stage in recipe.stages]
    first = [names.index(key[1]) for key in keys if key[0] == "stages"]
    if any(key[0] == "relevance" for key in keys):  # any ranking stage may take it
        first += [i for i, stage in enumerate(recipe.stages) if isinstance(stage, RankingStage)]
    return min([*first, len(names) - 1])


def comparison_of(recipe: Recipe) -> Comparison:
    """The recipe's comparison.

    Raises:
        RecipeError: if it has none.
    """
    if recipe.compare is None:
        raise RecipeError(f"{recipe.name}: compare: got nothing, expected a recipe with a comparison")
    return recipe.compare


def _variant(
    name: str, settings: dict[str, Any], base: dict[str, Any], document: Document, recipe: Recipe
) -> Variant:
    own = Document(document.path, copy.deepcopy(base), dict(document.lines), dict(document.settings))
    own.data["name"] = f"{recipe.name}-{name}"
    own.data["seed"] = comparison_of(recipe).seeds[0]
    chosen: dict[str, Any] = {}
    lines: list[str] = []
    for setting, value in settings.items():
        source: Key = ("compare", "variants", name, setting)
        try:
            key = recipe_file.put(own, setting, copy.deepcopy(value), document.where(source))
        except RecipeError as error:
            lines += error.lines
            continue
        if not _is_compared(key):
            lines += document.error([Problem(source, _not_compared(setting, key))]).lines
        chosen[_full(key, recipe)] = value
    if lines:
        raise RecipeError(*lines)
    return Variant(name, chosen, validated(own))


def _is_compared(key: Key) -> bool:
    return key[0] == "relevance" or (key[0] == "stages" and len(key) > 2 and key[2] in COMPARED)


def _not_compared(setting: str, key: Key) -> str:
    if key == ("stages",):
        return "got stages as a mapping, expected each slot by its whole key, such as stages.ranking.loss"
    slot = key[2] if key[0] == "stages" and len(key) > 2 else None
    return (
        f"got {setting}, expected {_ALLOWED}: all else is equal in what is compared{nearest(slot, COMPARED)}"
    )


def _full(key: Key, recipe: Recipe) -> str:
    """The key's path with the stage's name in the place of its number."""
    parts = [str(part) for part in key]
    if key[0] == "stages" and len(key) > 1 and isinstance(key[1], int):
        parts[1] = recipe.stages[key[1]].name
    return ".".join(parts)


def _bare(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"name": "", "seed": 0})


def _variants_of(source: str, recipe: Recipe) -> list[Variant]:
    if recipe.sweep is not None:
        raise RecipeError(f"{source}: sweep: got a sweep, expected a single experiment or a comparison")
    if recipe.compare is None:
        return [Variant(recipe.name, {}, recipe)]
    return plan_variants(recipe, recipe_file.parse(recipe.to_yaml(), source))


def _check_equal(found: Sequence[tuple[str, Variant]]) -> None:
    """See that all recipes agree in what is not compared."""
    (first, base), *others = found
    wanted = _equal_part(base.recipe)
    lines = [
        f"{source}: {key}: got {got(value)}, expected {got(other)} as in {first}: what is compared may differ in "
        f"{_ALLOWED}"
        for source, variant in others
        for key, value, other in _differences(_equal_part(variant.recipe), wanted)
    ]
    if lines:
        raise RecipeError(*dict.fromkeys(lines))


def _check_names(found: Sequence[tuple[str, Variant]]) -> None:
    names = [variant.name for _, variant in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        sources = " and ".join(source for source, variant in found if variant.name == twice)
        raise RecipeError(
            f"{sources}: name: got {got(twice)} twice, expected a name of its own for each variant"
        )


def _equal_part(recipe: Recipe) -> dict[str, Any]:
    """All of a recipe that has to be equal in what is compared."""
    data = recipe.model_dump(exclude=_NOT_COMPARED)
    for stage in data["stages"]:
        for slot in COMPARED:
            stage.pop(slot, None)
    return data


def _differences(one: Any, other: Any, key: Key = ()) -> Iterator[tuple[str, Any, Any]]:
    """Where two recipes' data differ: the deepest key that both could have, and both values."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in dict.fromkeys([*one, *other]):
            yield from _differences(one.get(name, _MISSING), other.get(name, _MISSING), (*key, name))
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _differences(*pair, (*key, index))
    elif one != other:
        yield dotted(key), None if one is _MISSING else one, None if other is _MISSING else other


def _changes(base: Recipe, recipe: Recipe) -> dict[str, Any]:
    """What turns the base's compared parts into the recipe's."""
    one, other = base.model_dump(), recipe.model_dump()
    keys = [
        (f"stages.{stage['name']}.{slot}", stage.get(slot), mine.get(slot))
        for stage, mine in zip(one["stages"], other["stages"], strict=True)
        for slot in COMPARED
    ]
    keys.append(("relevance", one["relevance"], other["relevance"]))
    return {key: mine for key, theirs, mine in keys if mine != theirs}
