import pytest

from dr_plugin.evaluation.table_recipe import is_table, load_table, settings_of
from dr_plugin.evaluation.table_schema import Golden
from dr_plugin.experiments.recipe import RecipeError, load_recipe

TEXT = """\
rated:
  dataset:
    type: SimilarityTriplets
    root: rated
learn_from:
  dataset:
    type: Digits
rows:
  - name: colours
    feature:
      type: LABHistogram
  - name: edges
    feature:
      type: HOG
      cell_size: 4
  - name: both
    golden:
      on:
        - colours
        - edges
  - name: trained
    model:
      recipe: quickstart
      set:
        seed: 3
"""


def write(tmp_path, text=TEXT):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return file


def test_rows_know_what_they_are_and_what_they_are_made_of(tmp_path):
    recipe = load_table(write(tmp_path))
    assert recipe.name == "mine"
    assert [row.kind for row in recipe.rows] == ["feature", "feature", "golden", "model"]
    assert recipe.row("both").ingredients == ["colours", "edges"]
    assert isinstance(recipe.row("both").content, Golden)
    assert recipe.row("edges").ingredients == []


def test_yaml_gives_the_same_recipe_again(tmp_path):
    recipe = load_table(write(tmp_path))
    copy = tmp_path / "copy" / "mine.yaml"
    copy.parent.mkdir()
    copy.write_text(recipe.to_yaml())
    assert load_table(copy) == recipe


def test_settings_reach_rows_by_name(tmp_path):
    recipe = load_table(write(tmp_path), ["rows.edges.feature.cell_size=8", "k=5"])
    assert recipe.row("edges").feature.arguments == {"cell_size": 8}
    assert recipe.k == 5


def test_a_rows_recipe_gets_the_tables_data_set_and_its_own_settings(tmp_path):
    recipe = load_table(write(tmp_path), ["cache=there"])
    trained = load_recipe("quickstart", settings_of(recipe.row("trained").model, recipe))
    assert trained.seed == 3
    assert trained.data.cache == "there"
    assert trained.data.dataset == recipe.learn_from.dataset


def test_tables_are_told_from_experiments(tmp_path):
    assert is_table(write(tmp_path))
    assert not is_table("quickstart")
    assert is_table("table1")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "cell_size: 4",
            "cell_sise: 4",
            r"mine\.yaml:15: rows\[1\]\.feature\.cell_sise: .* did you mean cell_size\?",
        ),
        ("type: HOG", "type: HOGG", r"mine\.yaml:14: rows\[1\]\.feature\.type: .* did you mean HOG\?"),
        (
            "    feature:\n      type: LABHistogram\n",
            "",
            r"rows\[0\]: got none, expected one of feature, model, oasis",
        ),
        ("name: edges", "name: colours", r'rows\[1\]\.name: got "colours" again, expected each name once'),
        (
            "- edges\n",
            "- edge\n",
            r'rows\[2\]\.golden: got "edge", expected one of colours, edges, the rows above',
        ),
        ("      seed: 3", "      sead: 3", r"rows\[3\]\.model: .*sead: got 3.*did you mean seed\?"),
        ("recipe: quickstart", "recipe: quickstat", r"rows\[3\]\.model: .*quickstat"),
        ("type: SimilarityTriplets", "type: Digits", r"rated\.dataset"),
        (
            "rated:\n",
            "compare_with: edge\nrated:\n",
            r'compare_with: got "edge", expected one of .* did you mean edges',
        ),
        ("rated:\n", "k: 0\nrated:\n", r"mine\.yaml:1: k: got 0"),
        (
            "learn_from:\n",
            "learn_from:\n  picture_size: 3\n",
            r"learn_from\.picture_size: .* expected one of dataset",
        ),
        (
            "      set:\n        seed: 3\n",
            "      weights_from: edges\n",
            r"rows\[3\]\.model\.weights_from: got \"edges\", a feature row, expected a model row",
        ),
        (
            "  - name: both\n    golden:\n      on:\n        - colours\n        - edges\n",
            "  - name: Trained!\n    model:\n      recipe: quickstart\n",
            r"rows\[3\]\.name: got \"trained\", whose folder would be that of \"Trained!\"",
        ),
        (
            "  - name: both\n    golden:\n      on:\n        - colours\n        - edges\n",
            "  - name: both\n    oasis:\n      on: edges\n  - name: twice\n    oasis:\n      on: both\n",
            r"rows\[3\]\.oasis\.on: got \"both\", an oasis row, expected a row with features of its own",
        ),
        (
            "    model:\n      recipe: quickstart\n      set:\n        seed: 3\n",
            "    model:\n      run: there\n      set:\n        seed: 3\n",
            r"rows\[3\]\.model: got a run with set or weights_from",
        ),
        (
            "    model:\n      recipe: quickstart\n      set:\n        seed: 3\n",
            "    oasis:\n      on: both\n",
            r"rows\[3\]\.oasis\.on: got \"both\", a golden row, expected rows that have not seen ratings",
        ),
        (
            "    feature:\n      type: HOG\n",
            "    oasis:\n      on: colours\n    feature:\n      type: HOG\n",
            "got feature and oasis",
        ),
    ],
)
def test_mistakes_name_the_place_and_what_is_expected(tmp_path, old, new, message):
    assert old in TEXT
    with pytest.raises(RecipeError, match=message):
        load_table(write(tmp_path, TEXT.replace(old, new, 1)))


def test_a_sweep_is_no_row(tmp_path):
    text = TEXT.replace("recipe: quickstart\n      set:\n        seed: 3", "recipe: tiny_fig6_cpu")
    with pytest.raises(RecipeError, match="got a sweep, expected a recipe of one experiment"):
        load_table(write(tmp_path, text))
