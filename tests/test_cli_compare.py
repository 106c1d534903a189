"""`dr compare`: what a person types, sees, and gets as exit status."""

import json

import pytest
from click.testing import CliRunner

from dr_plugin.cli import main
from dr_plugin.experiments.recipe import load_recipe

SHORT = ["--set", "limits.steps=2", "--set", "evaluation.baselines=[]", "--set", "report.queries=0"]


@pytest.fixture
def recipes(tmp_path):
    """Two recipes that differ in the loss and one that differs in more."""
    base = load_recipe("quickstart").to_yaml()
    texts = {
        "ours": base,
        "supcon": load_recipe(
            "quickstart", ["stages.ranking.miner=null", "stages.ranking.loss={type: SupConLoss}"]
        ).to_yaml(),
        "longer": load_recipe("quickstart", ["stages.ranking.epochs=9"]).to_yaml(),
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("name: quickstart", f"name: {name}"))
    return {name: str(tmp_path / f"{name}.yaml") for name in texts}


def call(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def refused(*arguments):
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    return result.output


def test_two_recipes_are_compared_and_resumed(recipes, tmp_path):
    folder, cache = tmp_path / "out", f"data.cache={tmp_path / 'cache'}"
    arguments = [recipes["ours"], recipes["supcon"], "--seeds", 1, *SHORT, "--set", cache, "--device", "cpu"]
    result = call(*arguments, "--output", folder)
    assert result.exit_code == 0, result.output
    table = json.loads((folder / "comparison.json").read_text())
    assert [row["name"] for row in table["variants"]] == ["ours", "supcon"]
    assert table["seeds"] == [0]
    for row in table["variants"]:
        assert f"{row['figures']['val.precision_at_30']['mean']:.4f}" in result.output
    assert table["winners"]["val.precision_at_30"]["sentence"] in result.output.replace("\n", " ")
    assert f"report: {folder / 'comparison.html'}" in result.output
    again = call("--resume", folder, "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert json.loads((folder / "comparison.json").read_text()) == table


def test_check_touches_no_data(recipes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(recipes["ours"], recipes["supcon"], "--check")
    assert result.output == "ours-vs-supcon: the comparison is good\n"
    assert call("compare_builtin", "--check").exit_code == 0
    assert not (tmp_path / "runs").exists()


def test_mistakes_are_one_line(recipes, tmp_path):
    assert "expected recipes' paths or shipped recipes' names" in refused()
    assert "got one recipe without compare" in refused(recipes["ours"])
    output = refused(recipes["ours"], recipes["longer"])
    assert "longer.yaml: stages[0].epochs: got 9, expected 40" in output.replace("\n", "")
    assert len(output.strip().splitlines()) == 1
    assert "holds no recipe.yaml" in refused("--resume", tmp_path)
    assert "expected no RECIPE, --seeds, --set and --output" in refused(recipes["ours"], "--resume", tmp_path)
    assert "got 'gpu'" in refused(
        recipes["ours"], recipes["supcon"], "--device", "gpu", "--output", tmp_path / "out"
    )
    assert not (tmp_path / "out").exists()


def test_resume_of_a_single_run_is_refused(recipes, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(load_recipe(recipes["ours"]).to_yaml())
    assert "expected a recipe with a comparison" in refused("--resume", tmp_path / "run")


def test_seeds_are_a_whole_number(recipes):
    result = call(recipes["ours"], recipes["supcon"], "--seeds", "0")
    assert result.exit_code == 2
    assert "--seeds" in result.output
