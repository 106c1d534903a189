"""The points of a sweep: which recipes it runs, each checked whole, and what they are called."""

import copy
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from . import recipe_file
from .problems import Key, Problem, RecipeError, got, nearest, one_of
from .recipe_file import Document
from .schema import Recipe, Sweep
from .validate import validated

MOST_POINTS = 200
_LONGEST_NAME = 80
_OWN_KEYS = {
    "name": "another key: each run is named by what it sets",
    "seed": "sweep.seeds to give the seeds",
    "sweep": "a key of the single run",
}


@dataclass(frozen=True)
class Point:
    """One point of a sweep, which runs once a seed.

    Attributes:
        name: What its runs' folders are called by; unique in the sweep.
        label: What it sets, for people.
        settings: What it sets: each key's full path, stages by name, and its value.
        series: What it sets beside the sweep's axis, for people.
        along: The axis, as a full path, and the point's value there; empty where there is none.
        recipe: Its recipe, without the sweep, with the first of the seeds.
    """

    name: str
    label: str
    settings: dict[str, Any]
    series: str
    along: dict[str, Any]
    recipe: Recipe

    def seeded(self, seed: int) -> Recipe:
        """The recipe of the run with this seed."""
        return self.recipe.model_copy(update={"seed": seed, "name": f"{self.recipe.name}-seed{seed}"})


@dataclass(frozen=True)
class _Setting:
    name: str  # the key as the recipe has it
    value: Any
    source: Key  # where in the recipe it stands


@dataclass(frozen=True)
class _Draft:
    settings: dict[str, Any]
    keys: dict[str, str]  # from each key as the recipe has it to its full path
    data: dict[str, Any]
    recipe: Recipe


def plan(recipe: Recipe, document: Document) -> list[Point]:
    """The points of the recipe's sweep: every combination of its grid, then its further points.

    A key is merged into the resolved recipe as ``--set`` does it, and each point's recipe is checked whole.

    Args:
        recipe: A validated recipe that has a sweep.
        document: Tells where the recipe's keys stand.
    Raises:
        RecipeError: with all that is wrong with any point, one a line, each line once.
    """
    sweep = _sweep(recipe)
    number = math.prod(map(len, sweep.grid.values())) + len(sweep.points)
    if number > MOST_POINTS:
        text = f"got {number:,} points, expected at most {MOST_POINTS:,}"
        raise document.error([Problem(("sweep", "grid"), text)])
    base = recipe_file.parse(recipe.to_yaml(), document.path).data
    del base["sweep"]
    drafts: list[_Draft] = []
    problems: list[Problem] = []
    lines: list[str] = []
    for settings in _combinations(sweep):
        try:
            draft = _draft(base, settings, document, recipe)
        except RecipeError as error:
            lines += error.lines
            continue
        if any(draft.recipe == other.recipe for other in drafts):
            source = settings[-1].source if settings else ("sweep", "points")
            problems.append(
                Problem(source, "gives the recipe of an earlier point again, expected each point once")
            )
        drafts.append(draft)
    problems += _misfits(recipe, sweep)
    if not lines:
        problems += unmeasured(sweep.figures or [], [draft.recipe for draft in drafts], ("sweep", "figures"))
    if lines or problems:
        raise RecipeError(*dict.fromkeys([*document.error(problems).lines, *lines]))
    return _named(drafts, recipe)


def figures_of(recipe: Recipe) -> list[str]:
    """The keys of metrics.json that the sweep shows."""
    return _sweep(recipe).figures or [f"val.precision_at_{recipe.evaluation.k}"]


def _sweep(recipe: Recipe) -> Sweep:
    if recipe.sweep is None:
        raise RecipeError(f"{recipe.name}: sweep: got nothing, expected a recipe with a sweep")
    return recipe.sweep


def _combinations(sweep: Sweep) -> Iterator[list[_Setting]]:
    """The settings of each point; those of the recipe itself, none, where the sweep is of seeds alone."""
    if sweep.grid or not sweep.points:
        sides = [
            [_Setting(name, value, ("sweep", "grid", name, i)) for i, value in enumerate(values)]
            for name, values in sweep.grid.items()
        ]
        yield from map(list, itertools.product(*sides))
    for i, point in enumerate(sweep.points):
        yield [_Setting(name, value, ("sweep", "points", i, name)) for name, value in point.items()]


def _draft(base: dict[str, Any], settings: Sequence[_Setting], document: Document, recipe: Recipe) -> _Draft:
    """A point's recipe, named as the sweep's for now."""
    own = Document(document.path, copy.deepcopy(base), dict(document.lines), dict(document.settings))
    own.data["seed"] = _sweep(recipe).seeds[0]
    chosen, keys = {}, {}
    lines: list[str] = []
    for setting in settings:
        try:
            key = recipe_file.put(
                own, setting.name, copy.deepcopy(setting.value), document.where(setting.source)
            )
        except RecipeError as error:
            lines += error.lines
            continue
        if fault := _forbidden(key, recipe):
            lines += document.error([Problem(setting.source, f"got {setting.name}, expected {fault}")]).lines
        keys[setting.name] = _full(key, recipe)
        chosen[keys[setting.name]] = setting.value
    if lines:
        raise RecipeError(*lines)
    return _Draft(chosen, keys, own.data, validated(own))


def _forbidden(key: Key, recipe: Recipe) -> str:
    """What is expected in the place of a key that a point may not change; empty where it may."""
    number = _sweep(recipe).shared_stages
    if key[0] in _OWN_KEYS:
        return _OWN_KEYS[str(key[0])]
    stage = key[1] if key[0] == "stages" and len(key) > 1 else -1
    if 0 < number < len(recipe.stages) and not (isinstance(stage, int) and stage >= number):
        return f"a key of a stage after the first {number}, which all points share (shared_stages)"
    return ""


def _full(key: Key, recipe: Recipe) -> str:
    """The key's path with the stage's name in the place of its number."""
    parts = [str(part) for part in key]
    if key[0] == "stages" and len(key) > 1 and isinstance(key[1], int) and key[1] < len(recipe.stages):
        parts[1] = recipe.stages[key[1]].name
    return ".".join(parts)


def _misfits(recipe: Recipe, sweep: Sweep) -> list[Problem]:
    """What does not fit in the section itself."""
    problems = []
    if sweep.shared_stages >= len(recipe.stages):
        text = f"got {sweep.shared_stages}, expected less than {len(recipe.stages)}, the number of stages"
        problems.append(Problem(("sweep", "shared_stages"), text))
    keys = list(dict.fromkeys([*sweep.grid, *itertools.chain(*sweep.points)]))
    if sweep.x is not None and sweep.x not in keys:
        wanted = f"{one_of(keys)}, or null" if keys else "expected null"
        text = f"got {got(sweep.x)}, {wanted}{nearest(sweep.x, keys)}"
        problems.append(Problem(("sweep", "x"), text))
    return problems


def unmeasured(figures: Sequence[str], recipes: Sequence[Recipe], key: Key) -> list[Problem]:
    """Figures of the usual parts of metrics.json that none of the recipes asks for; ``key`` is where they stand."""
    problems = []
    for i, figure in enumerate(figures):
        if any(_may_measure(recipe, figure) for recipe in recipes):
            continue
        text = f"expected such as val.precision_at_{recipes[0].evaluation.k}, as evaluation asks for"
        problems.append(Problem((*key, i), f"got {got(figure)}, {text}"))
    return problems


def _may_measure(recipe: Recipe, figure: str) -> bool:
    match = re.fullmatch(r"(\w+)(?:\.(\w+))*\.(precision_at|recall_at|score_at_top)_(\d+)", figure)
    if match is None:
        return True  # of a kind that only the finished run can tell
    part, name, kind, at = match.groups()
    settings = recipe.evaluation
    if part == "train" and not settings.train:
        return False
    if part == "baselines" and name not in settings.baselines:
        return False
    return int(at) in (settings.recall_at if kind == "recall_at" else [settings.k])


def _named(drafts: Sequence[_Draft], recipe: Recipe) -> list[Point]:
    keys = list({full: None for draft in drafts for full in draft.settings})
    x = _sweep(recipe).x
    axis = next((draft.keys[x] for draft in drafts if x in draft.keys), None)
    points: list[Point] = []
    taken: set[str] = set()
    for draft in drafts:
        texts = {key: f"{_short(key, keys)}={_shown(value)}" for key, value in draft.settings.items()}
        label = ", ".join(texts.values()) or "base"
        series = ", ".join(text for key, text in texts.items() if key != axis)
        name = _free(re.sub(r"[^\w.=,+-]+", "-", label.replace(", ", ","), flags=re.ASCII), taken)
        own = draft.recipe.model_copy(update={"name": f"{recipe.name}-{name}"})
        along = {} if axis is None else {axis: value for value in _values(draft.data, axis)}  # noqa: B035 - at most one
        points.append(Point(name, label, draft.settings, series, along, own))
    return points


def _short(key: str, keys: Sequence[str]) -> str:
    """The last parts of the key, as many as tell it from the other keys."""
    parts = key.split(".")
    for number in range(1, len(parts)):
        end = parts[-number:]
        if sum(other.split(".")[-number:] == end for other in keys) == 1:
            return ".".join(end)
    return key


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else got(value)


def _free(name: str, taken: set[str]) -> str:
    """A folder's name that is not taken, whatever the file system makes of capitals; it is then."""
    name = name[:_LONGEST_NAME].strip("-.,") or "point"
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    free = next(choice for choice in itertools.chain([name], numbered) if choice.lower() not in taken)
    taken.add(free.lower())
    return free


def _values(data: Any, path: str) -> Iterator[Any]:
    """What stands at the path of a recipe's data, where something does."""
    for part in path.split("."):
        if isinstance(data, list):
            by_index = {str(index): item for index, item in enumerate(data)}
            data = by_index | {item.get("name"): item for item in data if isinstance(item, dict)}
        if not isinstance(data, dict) or part not in data:
            return
        data = data[part]
    yield data
