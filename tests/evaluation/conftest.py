import pytest

from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.run import run_experiment


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A finished run of the quickstart, cut short; to be copied before it is changed."""
    folder = tmp_path_factory.mktemp("model")
    recipe = load_recipe(
        "quickstart", ["limits.steps=3", f"data.cache={folder / 'cache'}", "evaluation.baselines=[]"]
    )
    run_experiment(recipe, folder / "run", device="cpu")
    return folder / "run"
