import json
import re

import numpy as np
import pytest

from dr_plugin.evaluation.table import run_table
from dr_plugin.evaluation.table_recipe import load_table
from dr_plugin.experiments import checkpoint
from dr_plugin.experiments.recipe import RecipeError

TABLE = """\
rated:
  dataset:
    type: SimilarityTriplets
    root: {rated}
  image_size: 24
learn_from:
  dataset:
    type: Digits
  images: 60
  image_size: 24
  relevance:
    type: GoldenFeatures
    features: [LABHistogram]
compare_with: trunk
k: 3
resamples: 200
cache: {cache}
rows:
  - name: colours
    feature:
      type: LABHistogram
    paper:
      similarity_precision: 0.623
      score_at_top_30: 2935
  - name: trunk
    model:
      recipe: quickstart
      set: {{limits.steps: 2, evaluation.baselines: [], report.queries: 0}}
  - name: fine-tuned
    model:
      recipe: quickstart
      weights_from: trunk
      set: {{limits.steps: 1, evaluation.baselines: [], report.queries: 0}}
  - name: OASIS
    oasis:
      on: trunk
      steps: 300
  - name: linear
    linear:
      on: [trunk, colours]
      size: 8
      steps: 5
  - name: golden
    golden:
      on: [colours, trunk]
      folds: 3
examples:
  rows: [colours, golden]
  queries: 2
  top: 3
"""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, make_rated_triplets):
    folder = tmp_path_factory.mktemp("table")
    make_rated_triplets(folder / "rated", queries=5)
    (folder / "mine.yaml").write_text(TABLE.format(rated=folder / "rated", cache=folder / "cache"))
    return folder


@pytest.fixture(scope="module")
def finished(inputs):
    recipe = load_table(inputs / "mine.yaml")
    return run_table(recipe, inputs / "out", device="cpu"), inputs / "out"


def test_every_row_is_measured_and_says_what_it_has_seen(finished):
    result, folder = finished
    rows = {row["name"]: row for row in result.metrics["rows"]}
    assert list(rows) == ["colours", "trunk", "fine-tuned", "OASIS", "linear", "golden"]
    assert rows["colours"]["seen"] == "nothing"
    assert rows["trunk"]["seen"] == rows["fine-tuned"]["seen"] == "class labels"
    assert rows["OASIS"]["seen"] == rows["linear"]["seen"] == "class labels; unrated relevance"
    assert rows["golden"]["seen"] == "class labels; ratings, out of fold"
    for row in rows.values():
        found = row["similarity_precision"]
        assert found["low"] <= found["value"] <= found["high"]
        assert found["right"] + found["wrong"] + found["tied"] == 30
    assert rows["colours"]["similarity_precision"]["value"] > 0.9  # the triplets were made of colours
    assert json.loads((folder / "table.json").read_text()) == result.metrics


def test_rows_are_compared_in_pairs_with_the_named_one(finished):
    rows = {row["name"]: row for row in finished[0].metrics["rows"]}
    assert "against" not in rows["trunk"]
    colours, trunk = (rows[name]["similarity_precision"]["value"] for name in ("colours", "trunk"))
    assert rows["colours"]["against"]["difference"] == pytest.approx(colours - trunk)
    assert 0 <= rows["colours"]["against"]["p_value"] <= 1


def test_pages_show_the_papers_figures_beside_ours(finished):
    _, folder = finished
    for page in ("table.md", "table.html"):
        text = (folder / page).read_text()
        assert "62.3%" in text
        assert "2,935" in text
        assert "30 rated triplets over 90 images and 5 text queries" in text
        assert "1,000 images a text query, which were never published" in re.sub(r"\s+", " ", text)
    assert (folder / "examples.png").stat().st_size > 1000


def test_fine_tuning_began_with_the_other_rows_weights(finished):
    _, folder = finished
    recipe = (folder / "models" / "fine-tuned" / "recipe.yaml").read_text()
    assert str(folder / "models" / "trunk" / "checkpoint" / "best.pt") in recipe
    first, second = (
        checkpoint.load(folder / "models" / name / "checkpoint" / "best.pt")["models"]["trunk"]
        for name in ("trunk", "fine-tuned")
    )
    distance = max(float((first[name] - second[name]).abs().max()) for name in first if "weight" in name)
    assert 0 < distance < 0.5  # one step away, not another draw


def test_resume_keeps_the_models_and_the_figures(finished, inputs):
    result, folder = finished
    best = folder / "models" / "trunk" / "checkpoint" / "best.pt"
    before = best.stat().st_mtime_ns
    (folder / "table.json").unlink()
    again = run_table(load_table(folder / "recipe.yaml"), folder, device="cpu", resume=True)
    assert best.stat().st_mtime_ns == before

    def without_time(metrics):
        return [{key: value for key, value in row.items() if key != "seconds"} for row in metrics["rows"]]

    assert without_time(again.metrics) == without_time(result.metrics)


def test_folder_in_use_and_another_recipe_are_refused(finished, inputs):
    _, folder = finished
    with pytest.raises(RecipeError, match="is not empty; choose another folder, or go on with --resume"):
        run_table(load_table(inputs / "mine.yaml"), folder)
    with pytest.raises(RecipeError, match="was not made by this recipe"):
        run_table(load_table(inputs / "mine.yaml", ["seed=5"]), folder, resume=True)


def test_missing_triplets_leave_no_folder_behind(inputs, tmp_path):
    recipe = load_table(inputs / "mine.yaml", [f"rated.dataset.root={tmp_path / 'nowhere'}"])
    with pytest.raises(ValueError, match="nowhere"):
        run_table(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_features_that_learn_are_fitted_on_the_unrated_images(inputs, tmp_path, monkeypatch):
    from dr_plugin.relevance.features import LABHistogram

    seen = []
    monkeypatch.setattr(LABHistogram, "fit", lambda self, images, y=None: seen.append((images, y)) or self)
    only = "rows=[{name: colours, feature: {type: LABHistogram}}]"
    recipe = load_table(inputs / "mine.yaml", [only, "compare_with=null", "examples=null"])
    run_table(recipe, tmp_path / "out", device="cpu")
    images, labels = seen[0]
    assert images.shape == (60, 3, 24, 24)
    assert np.bincount(labels).tolist() == [6] * 10


def test_a_users_transformer_need_not_say_how_it_compares_nor_what_it_has_seen(inputs, tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(
        "from sklearn.base import BaseEstimator, TransformerMixin\n\n\n"
        "class Mean(TransformerMixin, BaseEstimator):\n"
        "    def fit(self, images, y=None):\n        return self\n\n"
        "    def transform(self, images):\n        return images.mean((2, 3)).astype('float32')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    only = "rows=[{name: mine, feature: {type: my_features.Mean}}]"
    recipe = load_table(inputs / "mine.yaml", [only, "compare_with=null", "examples=null"])
    (row,) = run_table(recipe, tmp_path / "out", device="cpu").metrics["rows"]
    assert (row["seen"], row["distance"]) == ("not said", "euclidean")
    assert row["similarity_precision"]["value"] > 0.9
