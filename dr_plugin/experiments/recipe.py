"""From a recipe's file, or the name of a shipped one, to a checked `Recipe`."""

import os
from collections.abc import Sequence
from pathlib import Path

from . import recipe_file, shipped
from .compare_plan import plan_variants
from .problems import RecipeError
from .schema import (
    Augment,
    Data,
    Evaluation,
    RankingStage,
    Recipe,
    Slot,
    SoftmaxStage,
    Stage,
    Sweep,
)
from .sweep_plan import plan
from .validate import validated

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
    "Sweep",
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
    document.data = {"name": path.stem, **document.data}
    recipe = validated(document)
    if recipe.compare is not None:
        plan_variants(recipe, document)  # finds what is wrong with any of them
    elif recipe.sweep is not None:
        plan(recipe, document)  # finds what is wrong with any of its points
    return recipe
