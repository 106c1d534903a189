"""A recipe's file, its `--set` and its schema: what is accepted, and each fault in one line."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from dr_plugin.experiments import recipe_file
from dr_plugin.experiments.recipe import RankingStage, Recipe, RecipeError, SoftmaxStage, load_recipe

RECIPE = """\
# A comment.
seed: 3
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
      lr: 1e-3
  - name: fine
    kind: ranking
    epochs: 1
    batch_size: 6
    sampler:
      type: MPerClassSampler
      m: 3
    miner:
      type: UniformTripletMiner
      triplets_per_query: 8
    loss:
      type: DeepRankingLoss
      gap: 0.2
    optimizer:
      type: SGD
      lr: 0.01
"""


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # so that errors name the file "x.yaml"


def load(text: str, *overrides: str) -> Recipe:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return load_recipe("x.yaml", overrides)


def faults(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(text, *overrides)
    assert str(caught.value) == "\n".join(caught.value.lines)
    return caught.value.lines


def test_recipe_takes_values_and_defaults() -> None:
    recipe = load(RECIPE)
    assert (recipe.name, recipe.seed, recipe.precision) == ("x", 3, "float32")
    assert recipe.data.normalize.mean == (0.485, 0.456, 0.406)
    softmax, ranking = recipe.stages
    assert isinstance(softmax, SoftmaxStage)
    assert isinstance(ranking, RankingStage)
    assert softmax.optimizer.type == "SGD"
    assert softmax.optimizer.arguments == {"lr": 0.001}
    assert ranking.miner is not None
    assert ranking.miner.place == "x.yaml:26: stages[1].miner"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5.0e-4", 0.0005),
        ("5", 5),
        ("5.", 5.0),
        ("+5", 5),
        ("-.5", -0.5),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("no", "no"),
        ("on", "on"),
        ("y", "y"),
        ("tRue", "tRue"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2001-01-01", "2001-01-01"),
        ("'5'", "5"),
        ('"null"', "null"),
        ("~", None),
        ("", None),
        ("NULL", None),
        ("<<", "<<"),
        ("[1, a]", [1, "a"]),
        ("{a: 1}", {"a": 1}),
        ("9" * 400, math.inf),
    ],
)
def test_parse_reads_yaml_1_2_scalars(text: str, value: Any) -> None:
    read = recipe_file.parse(f"key: {text}\n", "x.yaml").data["key"]
    assert read == value
    assert type(read) is type(value)


def test_parse_ignores_the_yaml_1_1_directive() -> None:
    assert recipe_file.parse("%YAML 1.1\n---\nkey: no\n", "x.yaml").data == {"key": "no"}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "x.yaml:1: recipe: got nothing, expected keys such as data:, trunk: and stages:"),
        ("# only this\n", "x.yaml:1: recipe: got nothing, expected keys such as data:, trunk: and stages:"),
        ("- 1\n- 2\n", "x.yaml:1: recipe: got [1, 2], expected keys such as data:, trunk: and stages:"),
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a: got this key twice, expected it once; line 1 has it too"),
        ("a:\n  b: 1\n  b: 1\n", "x.yaml:3: a.b: got this key twice, expected it once; line 2 has it too"),
        (
            "a: 1\nb:\n\t- 1\n",
            "x.yaml:3: recipe: found character '\\t' that cannot start any token; expected valid YAML",
        ),
        (
            "a: 1\nb: &k [1]\nc: *k\n",
            "x.yaml:3: c: got the alias *k, expected the values themselves: write them out",
        ),
        ("a: &a [*a]\n", "x.yaml:1: a[0]: got the alias *a, expected the values themselves: write them out"),
        ("a: 1\nb: !!python/name:os.system\n", "expected a value without a tag"),
        ("a: !!int '5'\n", "expected a value without a tag"),
        ("a: 1\n---\nb: 2\n", "x.yaml:2: recipe: got a second document (---), expected one"),
        ("a: 1\n3: 2\n", "x.yaml:2: recipe: got the key 3, expected a name"),
        (
            "a:\n  ? [1]\n  : 2\n",
            "x.yaml:2: a: got a key that is a list, a mapping or an alias, expected a name",
        ),
        ("? " * 3000, "x.yaml:1: recipe: got a key that is a list, a mapping or an alias, expected a name"),
        ("- " * 3000, "got more than 30 levels"),
        ("a: [1\n", "expected valid YAML"),
        (
            "a: 1\nb: @\n",
            "x.yaml:2: recipe: found character '@' that cannot start any token; expected valid YAML",
        ),
        ("a: 1\nb: \x01\n", "x.yaml:2: recipe: unacceptable character"),
        ('a: "\\0"\n', "expected text without NUL and lone surrogates"),
        ('a: "\\ud800"\n', "expected text without NUL and lone surrogates"),
        ("a: " + "[" * 40 + "]" * 40 + "\n", "got more than 30 levels"),
        ("[" * 50_000, "x.yaml:1: recipe: got more than 30 levels, expected a recipe"),
        ("a: 1\n" * 50_000, "x.yaml:1: recipe: got more than 100000 bytes, expected a recipe's YAML text"),
    ],
)
def test_bad_file_is_one_line(text: str, line: str) -> None:
    lines = faults(text)
    assert len(lines) == 1
    assert line in lines[0]
    assert lines[0].startswith("x.yaml:")


def test_binary_file_is_one_line() -> None:
    Path("x.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    with pytest.raises(
        RecipeError, match=r"^x\.yaml:1: recipe: got a file that is no text, expected YAML in UTF-8$"
    ):
        load_recipe("x.yaml")


@pytest.mark.parametrize("name", ["recipes/tiny_unifrom.yaml", "tiny_unifrom", "Tiny_Uniform"])
def test_missing_file_names_the_nearest_recipe(name: str) -> None:
    with pytest.raises(RecipeError, match=rf"^{name}: got no file .* did you mean tiny_uniform\?$"):
        load_recipe(name)


@pytest.mark.parametrize("name", ["", ".", "a\0b", "x" * 5000, "a\nb"])
def test_strange_file_name_is_one_line(name: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(name)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].isprintable()


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        (
            "seed: 3",
            "sed: 3",
            "x.yaml:2: sed: got 3, expected one of name, seed, precision, channels_last, compile, sync_batchnorm, "
            "tensorboard, data, relevance, trunk, stages, evaluation, report, checkpoint, limits, sweep, "
            "compare; did you mean seed?",
        ),
        ("seed: 3", "seed: -1", "x.yaml:2: seed: got -1, expected at least 0"),
        ("seed: 3", "seed: 3.0", "x.yaml:2: seed: got 3.0, expected a whole number"),
        (
            "seed: 3",
            "precision: bfloat",
            'x.yaml:2: precision: got "bfloat", expected one of float32, bfloat16, '
            "float16; did you mean bfloat16?",
        ),
        ("seed: 3", "compile: no", 'x.yaml:2: compile: got "no", expected true or false'),
        ("seed: 3", "compile: 1", "x.yaml:2: compile: got 1, expected true or false"),
        (
            "seed: 3",
            "name: a/b",
            'x.yaml:2: name: got "a/b", expected a name without slashes: a folder may be called so',
        ),
        (
            "seed: 3",
            "report: {queries: 5, tpo: 1}",
            "x.yaml:2: report.tpo: got 1, expected one of queries, top, bottom; did you mean top?",
        ),
        ("seed: 3", "limits: null", "x.yaml:2: limits: got null, expected keys and values"),
        ("seed: 3", "evaluation: {k: 0}", "x.yaml:2: evaluation.k: got 0, expected at least 1"),
        (
            "seed: 3",
            "evaluation: {recall_at: [4, 2]}",
            "x.yaml:2: evaluation.recall_at: got [4, 2], expected ascending numbers, each once",
        ),
        (
            "seed: 3",
            "evaluation: {recall_at: [1, 0]}",
            "x.yaml:2: evaluation.recall_at[1]: got 0, expected at least 1",
        ),
        (
            "seed: 3",
            "evaluation: {baselines: [hogg]}",
            'x.yaml:2: evaluation.baselines[0]: got "hogg", expected one of '
            "untrained, pixels, hog; did you mean hog?",
        ),
        (
            "seed: 3",
            "evaluation: {baselines: [hog, hog]}",
            'x.yaml:2: evaluation.baselines: got ["hog", "hog"], expected each baseline once',
        ),
        (
            "  image_size: 16\n",
            "",
            "x.yaml:3: data.image_size: got nothing, expected a value: this key is needed",
        ),
        (
            "image_size: 16",
            "image_size: 16\n  classes: 1",
            "x.yaml:7: data.classes: got 1, expected null for all, a number from 2 to 100000, or a list of at "
            "least 2 class ids (text)",
        ),
        (
            "image_size: 16",
            "image_size: 16\n  classes: [a, a]",
            'x.yaml:7: data.classes: got ["a", "a"], expected each class id once',
        ),
        (
            "image_size: 16",
            "image_size: 16\n  augment:\n    random_resized_crop: {scale: [0.9, 0.1]}",
            "x.yaml:8: data.augment.random_resized_crop.scale: got [0.9, 0.1], expected the "
            "smaller number first",
        ),
        (
            "image_size: 16",
            "image_size: 16\n  augment:\n    random_resized_crop: {scale: [0.9, 1.1]}",
            "x.yaml:8: data.augment.random_resized_crop.scale: got [0.9, 1.1], expected shares "
            "of the image's area, at "
            "most 1",
        ),
        (
            "image_size: 16",
            "image_size: 16\n  normalize: {std: [1, 1, 0]}",
            "x.yaml:7: data.normalize.std[2]: got 0, expected more than 0",
        ),
        (
            "image_size: 16",
            "image_size: 16\n  augment: {pixel_shift: 16}",
            "x.yaml:7: data.augment.pixel_shift: got 16, expected less than data.image_size, 16",
        ),
        (
            "image_size: 16",
            "image_size: 16\n  selection: 0",
            "x.yaml:14: stages[0].evaluate_every: got 1, expected 0, "
            "or data.selection of at least 1: there are no images to evaluate on",
        ),
        (
            "embedding_size: 8",
            "input_size: 17",
            "x.yaml:11: trunk.input_size: got 17, expected 16, as data.image_size; leave it out",
        ),
        ("    epochs: 2", "    epochs: 0", "x.yaml:14: stages[0].epochs: got 0, expected at least 1"),
        (
            "    epochs: 2",
            "    epochs: true",
            "x.yaml:14: stages[0].epochs: got true, expected a whole number",
        ),
        (
            "    batch_size: 30\n    opt",
            '    batch_size: "30"\n    opt',
            'x.yaml:15: stages[0].batch_size: got "30", expected a whole number',
        ),
        (
            "    batch_size: 30\n    opt",
            "    batch_size: 30.0\n    opt",
            "x.yaml:15: stages[0].batch_size: got 30.0, expected a whole number",
        ),
        (
            "name: softmax",
            "name: soft",
            'x.yaml:13: stages[0].kind: got "soft", expected softmax or ranking; where kind '
            "is left out, the name has to be one of these",
        ),
        (
            "name: fine",
            "name: softmax",
            'x.yaml:19: stages[1].name: got "softmax" again, expected a name of its own for each stage',
        ),
        (
            "name: fine",
            "name: a b",
            'x.yaml:19: stages[1].name: got "a b", expected letters, digits, - and _ only',
        ),
        (
            "kind: ranking",
            "kind: softmax",
            'x.yaml:29: stages[1].loss: got {"type": "DeepRankingLoss", "gap": 0.2}, '
            "expected one of name, kind, epochs, batch_size, optimizer, scheduler, "
            "scheduler_interval, gradient_clip, "
            "augment, averaged_weights, evaluate_every, freeze_batchnorm, features, "
            "label_smoothing, cutmix, mixup",
        ),
        (
            "    loss:\n      type: DeepRankingLoss\n      gap: 0.2\n",
            "",
            "x.yaml:19: stages[1].loss: got nothing, expected a value: this key is needed",
        ),
        (
            "      type: DeepRankingLoss\n",
            "",
            "x.yaml:29: stages[1].loss.type: got nothing, expected a value: this key is needed",
        ),
        (
            "type: DeepRankingLoss",
            "type: 5",
            "x.yaml:30: stages[1].loss.type: got 5, expected text (in quotes where it looks "
            "like something else)",
        ),
        (
            "triplets_per_query: 8",
            "triplet_per_query: 8",
            "x.yaml:28: stages[1].miner.triplet_per_query: got 8, expected "
            "one of triplets_per_query, seed, collect_stats; did you mean triplets_per_query?",
        ),
    ],
)
def test_fault_is_one_line_with_number_key_got_and_expected(old: str, new: str, line: str) -> None:
    assert old in RECIPE
    assert line in faults(RECIPE.replace(old, new, 1))


def test_faults_are_all_shown_in_the_order_of_the_file() -> None:
    text = (
        RECIPE.replace("seed: 3", "sed: 3")
        .replace("epochs: 2", "epochs: -2")
        .replace("image_size: 16", "image_size: a")
    )
    assert [line.split(": ")[:2] for line in faults(text)] == [
        ["x.yaml:2", "sed"],
        ["x.yaml:6", "data.image_size"],
        ["x.yaml:14", "stages[0].epochs"],
    ]


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("seed=7", ("seed",), 7),
        ("stages.1.epochs=3", ("stages", 1, "epochs"), 3),
        ("stages[1].epochs=3", ("stages", 1, "epochs"), 3),
        ("stages.fine.epochs=3", ("stages", 1, "epochs"), 3),
        ("stages.softmax.optimizer.momentum=0.9", ("stages", 0, "optimizer", "momentum"), 0.9),
        ("data.augment.pixel_shift=2", ("data", "augment", "pixel_shift"), 2),
        ("stages.0.scheduler.type=OneCycleLR", ("stages", 0, "scheduler", "type"), "OneCycleLR"),
        ("data.cache=a=b", ("data", "cache"), "a=b"),
        ("data.classes=null", ("data", "classes"), None),
        ("data.classes=['0', '1']", ("data", "classes"), ["0", "1"]),
        ("limits={steps: 1}", ("limits", "steps"), 1),
    ],
)
def test_set_is_merged(override: str, path: tuple[str | int, ...], value: Any) -> None:
    found: Any = load(RECIPE, override).model_dump()
    for part in path:
        found = found[part]
    assert found == value


def test_set_later_wins() -> None:
    recipe = load(RECIPE, "stages.0.optimizer={type: Adam}", "stages.0.optimizer.lr=0.5", "seed=4", "seed=5")
    assert recipe.stages[0].optimizer.arguments == {"lr": 0.5}
    assert recipe.seed == 5


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sed=7", "--set sed=7: sed: got 7, expected one of name, seed"),
        ("seed=x", '--set seed=x: seed: got "x", expected a whole number'),
        ("seed", "--set seed: got no key=value, expected such as stages.ranking.epochs=3"),
        ("=3", "--set =3: got no key=value, expected such as stages.ranking.epochs=3"),
        ("a..b=3", "--set a..b=3: got no key=value, expected such as stages.ranking.epochs=3"),
        (
            "seed=@",
            "--set seed=@: recipe: found character '@' that cannot start any token; expected valid YAML",
        ),
        ("seed=[1", "expected valid YAML"),
        ("seed.x=1", "--set seed.x=1: seed: got 3, expected something that has a key x"),
        (
            "stages.2.epochs=1",
            "--set stages.2.epochs=1: stages: got 2, expected an index below 2 or one name of softmax, fine",
        ),
        ("stages.-1.epochs=1", "--set stages.-1.epochs=1: stages: got -1, expected an index below 2"),
        ("stages.fin.epochs=1", "expected an index below 2 or one name of softmax, fine; did you mean fine?"),
        ("stages.fine.epochs=0", "--set stages.fine.epochs=0: stages[1].epochs: got 0, expected at least 1"),
        (
            "data.augmnt.pixel_shift=1",
            '--set data.augmnt.pixel_shift=1: data.augmnt: got {"pixel_shift": 1}, expected '
            "one of dataset, classes, unseen_classes, selection, image_size, packed_size, cache, augment, "
            "normalize; did you mean augment?",
        ),
        (
            "stages.fine.loss.gpa=0.1",
            "--set stages.fine.loss.gpa=0.1: stages[1].loss.gpa: got 0.1, expected one of gap",
        ),
        (
            "stages.fine.loss.gap=big",
            '--set stages.fine.loss.gap=big: stages[1].loss.gap: got "big", expected a number',
        ),
        (
            "stages.0.optimizer.lr=-1",
            "--set stages.0.optimizer.lr=-1: stages[0].optimizer: SGD refuses its arguments",
        ),
    ],
)
def test_set_fault_names_the_set(override: str, line: str) -> None:
    lines = faults(RECIPE, override)
    assert len(lines) == 1
    assert line in lines[0]


def test_set_leaves_the_lines_of_other_keys() -> None:
    assert faults(RECIPE.replace("epochs: 2", "epochs: 0"), "seed=1") == [
        "x.yaml:14: stages[0].epochs: got 0, expected at least 1"
    ]


def test_to_yaml_of_a_loaded_recipe_loads_to_an_equal_one() -> None:
    recipe = load(RECIPE, "data.classes=['1', 'no', '0x2']", "data.augment.random_resized_crop={}")
    text = recipe.to_yaml()
    assert "{" not in text  # block style
    assert load(text) == recipe


_PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
    | st.sampled_from(
        [
            "no",
            "null",
            "1_000",
            "1e3",
            "0o17",
            "0x1f",
            ".inf",
            "~",
            "- a",
            "a: b",
            "#x",
            "2001-01-01",
            "\x85",
            "a\u2028 b",
            " \n a\t",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_1 :#-", max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(
    arguments=st.dictionaries(st.text("abcxyz_:# 1", min_size=1, max_size=4), _PLAIN, max_size=4),
    classes=st.none()
    | st.integers(2, 100_000)
    | st.lists(st.text("ab01.-: ", max_size=5), min_size=2, unique=True),
    scale=st.tuples(st.floats(1e-9, 0.5), st.floats(0.5, 1)),
    lr=st.floats(1e-320, 1e300),
)
def test_to_yaml_parses_to_an_equal_recipe(
    arguments: dict[str, Any], classes: Any, scale: tuple[float, float], lr: float
) -> None:
    recipe = Recipe.model_validate(
        {
            "name": "a name: #1",
            "data": {
                "dataset": {"type": "Digits"},
                "image_size": 8,
                "classes": classes,
                "augment": {"random_resized_crop": {"scale": scale}},
            },
            "trunk": {**arguments, "type": "Trunk"},
            "stages": [
                {"name": "softmax", "epochs": 1, "batch_size": 2, "optimizer": {"type": "SGD", "lr": lr}},
            ],
        }
    )
    again = Recipe.model_validate(recipe_file.parse(recipe.to_yaml(), "x.yaml").data)
    assert again == recipe
    assert again.model_dump() == recipe.model_dump()


def test_recipe_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(RECIPE).seed = 4  # type: ignore[misc]


def test_slots_are_equal_by_content_and_not_by_place() -> None:
    moved = "\n\n" + RECIPE
    assert load(moved) == load(RECIPE)
    assert load(moved).trunk.place != load(RECIPE).trunk.place
    assert load(RECIPE, "trunk.embedding_size=9") != load(RECIPE)
