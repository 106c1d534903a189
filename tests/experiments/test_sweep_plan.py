"""The points of a sweep: what they set, what they are called, and each fault in one line before anything runs."""

from pathlib import Path

import pytest

from dr_plugin.experiments import recipe_file
from dr_plugin.experiments.recipe import Recipe, RecipeError, load_recipe
from dr_plugin.experiments.series_run import shared_recipe
from dr_plugin.experiments.sweep_plan import MOST_POINTS, Point, figures_of, plan

RECIPE = """\
data:
  dataset:
    type: Digits
  image_size: 16
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
  embedding_size: 8
stages:
  - name: softmax
    epochs: 2
    batch_size: 30
    optimizer:
      type: SGD
      lr: 0.1
  - name: fine
    kind: ranking
    epochs: 1
    batch_size: 6
    miner:
      type: UniformTripletMiner
    loss:
      type: DeepRankingLoss
      gap: 0.2
    optimizer:
      type: SGD
      lr: 0.01
sweep:
  seeds: [3, 5]
  grid:
    stages.fine.loss.gap: [0.1, 0.3]
    stages.1.miner.triplets_per_query: [2, 8]
  points:
    - stages.fine.loss.gap: 0.5
    - {}
  shared_stages: 1
  x: stages.fine.loss.gap
"""
GAP, PER_QUERY = "stages.fine.loss.gap", "stages.fine.miner.triplets_per_query"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that errors name the file "x.yaml"


def load(text: str = RECIPE, *overrides: str) -> Recipe:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load_recipe("x.yaml", overrides)


def points(*overrides: str) -> list[Point]:
    recipe = load(RECIPE, *overrides)
    return plan(recipe, recipe_file.parse(recipe.to_yaml(), "resolved.yaml"))


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    return caught.value.lines


def test_points_are_every_combination_then_the_further_ones() -> None:
    found = points()
    assert [point.settings for point in found] == [
        {GAP: 0.1, PER_QUERY: 2},
        {GAP: 0.1, PER_QUERY: 8},
        {GAP: 0.3, PER_QUERY: 2},
        {GAP: 0.3, PER_QUERY: 8},
        {GAP: 0.5},
        {},
    ]
    ranking = [point.recipe.stages[1] for point in found]
    assert [stage.loss.arguments["gap"] for stage in ranking] == [0.1, 0.1, 0.3, 0.3, 0.5, 0.2]
    assert [stage.miner.arguments for stage in ranking[:2]] == [
        {"triplets_per_query": 2},
        {"triplets_per_query": 8},
    ]
    assert all(point.recipe.sweep is None and point.recipe.seed == 3 for point in found)


def test_points_have_names_labels_series_and_a_place_on_the_axis() -> None:
    found = points()
    assert [point.label for point in found[1:]] == [
        "gap=0.1, triplets_per_query=8",
        "gap=0.3, triplets_per_query=2",
        "gap=0.3, triplets_per_query=8",
        "gap=0.5",
        "base",
    ]
    assert [point.name for point in found[-3:]] == ["gap=0.3,triplets_per_query=8", "gap=0.5", "base"]
    assert [point.series for point in found[-3:]] == ["triplets_per_query=8", "", ""]
    # The last one has the recipe's own value.
    assert [point.along for point in found] == [{GAP: gap} for gap in (0.1, 0.1, 0.3, 0.3, 0.5, 0.2)]


def test_point_whose_recipe_lacks_the_axis_has_no_place_on_it() -> None:
    settings = ["sweep.grid={stages.1.loss.margin: [0.1]}", "sweep.points=[{stages.1.miner: null}]"]
    found = points(*settings, "stages.fine.loss={type: TripletMarginLoss}", "sweep.x=stages.1.loss.margin")
    assert [point.along for point in found] == [{"stages.fine.loss.margin": 0.1}, {}]


def test_seeded_recipe_differs_in_seed_and_name_alone() -> None:
    point = points()[4]
    seeded = point.seeded(5)
    assert (seeded.seed, seeded.name) == (5, "x-gap=0.5-seed5")
    assert seeded.model_copy(update={"seed": 3, "name": point.recipe.name}) == point.recipe


def test_shared_recipe_is_the_first_stages_without_the_cost_of_figures() -> None:
    recipe = load(RECIPE, "evaluation={k: 5, baselines: [hog]}")
    shared = shared_recipe(recipe, 1, 5)
    assert (shared.name, shared.seed, shared.sweep) == ("x-shared-seed5", 5, None)
    assert shared.stages == recipe.stages[:1]
    assert (shared.evaluation.k, shared.evaluation.baselines, shared.evaluation.train) == (5, [], False)
    assert (shared.data, shared.trunk) == (recipe.data, recipe.trunk)


def test_seeds_alone_are_a_sweep_of_the_recipe_itself() -> None:
    assert [(point.name, point.settings) for point in points("sweep={seeds: [0, 1]}")] == [("base", {})]


def test_points_of_the_resolved_recipe_are_the_same() -> None:
    """A resumed sweep plans from the recipe that it wrote."""
    before = points()
    Path("y.yaml").write_text(load().to_yaml())
    again = load_recipe("y.yaml")
    assert plan(again, recipe_file.read("y.yaml")) == before


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        (
            "{stages.0.optimizer.lr: [0.1], stages.1.optimizer.lr: [1, 2]}",
            ["softmax.optimizer.lr=0.1,fine.optimizer.lr=1", "softmax.optimizer.lr=0.1,fine.optimizer.lr=2"],
        ),
        ("{precision: [float32, bfloat16]}", ["precision=float32", "precision=bfloat16"]),
        ("{data.classes: [null, 5]}", ["classes=null", "classes=5"]),
        ("{data.cache: [a/b, a-b, A-B]}", ["cache=a-b", "cache=a-b-2", "cache=A-B-3"]),
        ("{data.cache: [" + "x" * 200 + "]}", ["cache=" + "x" * 74]),
        ("{data.cache: [../..]}", ["cache=..-"]),
        (
            "{stages.1.scheduler: [null, {type: OneCycleLR}]}",
            ["scheduler=null", "scheduler=-type-OneCycleLR"],
        ),
    ],
)
def test_names_are_short_safe_and_unique(grid: str, names: list[str]) -> None:
    found = points("sweep={seeds: [0], grid: " + grid + "}")
    assert [point.name for point in found] == [name.strip("-.,") for name in names]


def test_figures_are_precision_unless_given() -> None:
    assert figures_of(load(RECIPE, "evaluation.k=7")) == ["val.precision_at_7"]
    assert figures_of(load(RECIPE, "sweep.figures=[in_class.concordance]")) == ["in_class.concordance"]


def test_set_goes_first() -> None:
    found = points("stages.fine.epochs=4", "sweep.points=[{stages.fine.epochs: 5}]")
    assert [point.recipe.stages[1].epochs for point in found] == [4, 4, 4, 4, 5]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        (
            "[0.1, 0.3]",
            "[0.1, big, -1]",
            [
                'x.yaml:32: stages[1].loss.gap: got "big", expected a number',
                "x.yaml:32: stages[1].loss.gap: got -1, expected a finite number above 0",
            ],
        ),
        (
            "    - stages.fine.loss.gap: 0.5",
            "    - stages.fine.loss.gpa: 0.5",
            ["x.yaml:35: stages[1].loss.gpa: got 0.5, expected one of gap"],
        ),
        (
            "    - stages.fine.loss.gap: 0.5",
            "    - {stages.fin.epochs: 1, a..b: 2, seed: 3, stages.0.epochs: 4}",
            [
                "x.yaml:35: stages: got fin, expected an index below 2 or one name of softmax, fine; "
                "did you mean fine?",
                'x.yaml:35: got the key "a..b", expected a path such as stages.ranking.epochs',
                "x.yaml:35: sweep.points[0].seed: got seed, expected sweep.seeds to give the seeds",
                "x.yaml:35: sweep.points[0].stages.0.epochs: got stages.0.epochs, expected a key of a stage after the "
                "first 1, which all points share (shared_stages)",
            ],
        ),
        (
            "    - {}",
            "    - data.image_size: 8",
            [
                "x.yaml:36: sweep.points[1].data.image_size: got data.image_size, expected a key of a stage after"
            ],
        ),
        (
            "    - {}",
            "    - trunk.embedding_size: 4",
            [
                "x.yaml:36: sweep.points[1].trunk.embedding_size: got trunk.embedding_size, expected a key of a stage"
            ],
        ),
        (
            "    - {}",
            "    - sweep: null",
            ["x.yaml:36: sweep.points[1].sweep: got sweep, expected a key of the"],
        ),
        (
            "    - {}",
            "    - name: b",
            ["x.yaml:36: sweep.points[1].name: got name, expected another key: each run"],
        ),
        (
            "    - {}",
            "    - stages.1.loss.gap: 0.5",
            ["x.yaml:36: sweep.points[1].stages.1.loss.gap: gives the recipe of an earlier point again"],
        ),
        (
            "shared_stages: 1",
            "shared_stages: 2",
            ["x.yaml:37: sweep.shared_stages: got 2, expected less than 2"],
        ),
        (
            "shared_stages: 1",
            "shared_stages: -1",
            ["x.yaml:37: sweep.shared_stages: got -1, expected at least 0"],
        ),
        (
            "x: stages.fine.loss.gap",
            "x: stages.fine.los.gap",
            [
                'x.yaml:38: sweep.x: got "stages.fine.los.gap", expected one of stages.fine.loss.gap, '
                "stages.1.miner.triplets_per_query, or null; did you mean stages.fine.loss.gap?"
            ],
        ),
        ("seeds: [3, 5]", "seeds: []", ["x.yaml:30: sweep.seeds: got [], expected at least 1 entries"]),
        (
            "seeds: [3, 5]",
            "seeds: [3, 3]",
            ["x.yaml:30: sweep.seeds: got [3, 3], expected each of them once"],
        ),
        ("seeds: [3, 5]", "seeds: [-1]", ["x.yaml:30: sweep.seeds[0]: got -1, expected at least 0"]),
        (
            "[2, 8]",
            "[]",
            ["x.yaml:33: sweep.grid.stages.1.miner.triplets_per_query: got [], expected at least 1"],
        ),
        ("[2, 8]", "8", ["x.yaml:33: sweep.grid.stages.1.miner.triplets_per_query: got 8, expected a list"]),
        (
            "  x: ",
            "  axis: ",
            ["x.yaml:38: sweep.axis: got", "expected one of seeds, grid, points, shared_stages, x"],
        ),
    ],
)
def test_faults_are_lines_with_file_line_and_key(old: str, new: str, lines: list[str]) -> None:
    assert RECIPE.count(old) == 1
    shown = "\n".join(faults(RECIPE.replace(old, new)))
    for line in lines:
        assert line in shown


@pytest.mark.parametrize(
    ("figure", "is_known"),
    [
        ("val.precision_at_30", True),
        ("val.precision_at_10", False),
        ("val.recall_at_1", True),
        ("val.recall_at_2", False),
        ("train.precision_at_30", False),
        ("baselines.hog.precision_at_30", True),
        ("baselines.pixels.precision_at_30", False),
        ("in_class.score_at_top_10", False),
        ("in_class.concordance", True),
        ("wall_time_s", True),
    ],
)
def test_figure_that_no_point_measures_is_refused(figure: str, is_known: bool) -> None:
    settings = ["evaluation={recall_at: [1], train: false, baselines: [hog]}", f"sweep.figures=[{figure}]"]
    if is_known:
        assert load(RECIPE, *settings).sweep is not None
        return
    shown = f'sweep.figures[0]: got "{figure}", expected such as val.precision_at_30, as evaluation asks for'
    assert faults(RECIPE, *settings) == [f"--set {settings[1]}: {shown}"]


def test_too_many_points_are_refused_before_any_is_made() -> None:
    many = ", ".join(map(str, range(1, 1001)))
    setting = f"sweep.grid={{stages.1.epochs: [{many}], stages.1.batch_size: [{many}]}}"
    (line,) = faults(RECIPE, setting)
    assert line.endswith(f"sweep.grid: got 1,000,002 points, expected at most {MOST_POINTS:,}")


def test_fault_in_a_set_names_the_set() -> None:
    setting = "sweep.points=[{stages.fine.loss.gap: -2}]"
    assert faults(RECIPE, setting) == [
        f"--set {setting}: stages[1].loss.gap: got -2, expected a finite number above 0"
    ]


def test_null_turns_the_sweep_off() -> None:
    recipe = load(RECIPE, "sweep=null")
    assert recipe.sweep is None
    with pytest.raises(RecipeError, match="expected a recipe with a sweep"):
        plan(recipe, recipe_file.read("x.yaml"))
