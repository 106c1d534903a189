"""The end of a run: which images the report shows, and what it does where there are none."""

import json

import pytest
import torch

from dr_plugin.experiments.conclude import conclude
from dr_plugin.experiments.context import Context
from dr_plugin.experiments.data import RunData
from dr_plugin.experiments.journal import Journal, SilentReporter
from dr_plugin.experiments.recipe import Recipe
from dr_plugin.experiments.run import initial_trunk

CPU = torch.device("cpu")


@pytest.fixture
def concluded(blobs, tmp_path):
    """Conclude a run of an untrained trunk: ``concluded(val, **report) -> (metrics, page, examples drawn)``."""

    def run(val=blobs, **report):
        recipe = Recipe.model_validate(
            {
                "name": "small",
                "seed": 3,
                "data": {"dataset": {"type": "Digits"}, "image_size": 8},
                "trunk": {
                    "type": "DeepRankingTrunk",
                    "convnet": {"type": "SmallConvNet", "channels": [4]},
                    "embedding_size": 6,
                },
                "stages": [
                    {
                        "name": "softmax",
                        "epochs": 1,
                        "batch_size": 8,
                        "optimizer": {"type": "SGD", "lr": 0.1},
                    }
                ],
                "evaluation": {"k": 3},
                "report": report,
            }
        )
        (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
        (tmp_path / "environment.json").write_text("{}")
        data = RunData(blobs, val, torch.arange(48), torch.arange(0), blobs.class_names)
        journal = Journal(tmp_path)
        context = Context(recipe, tmp_path, data, CPU, SilentReporter(), journal)
        summary = {"name": "softmax", "epochs": 1, "steps": 6, "images_seen": 48, "wall_time_s": 1.0}
        summary |= {"images_per_s": 48.0, "selection": None}
        result = conclude(context, initial_trunk(recipe), [summary])
        journal.close()
        assert json.loads((tmp_path / "metrics.json").read_text()) == result.metrics
        return result.metrics, result.report.read_text(), list(result.report.parent.glob("query-*.png"))

    return run


def test_conclude_shows_each_query_with_both_sides(concluded):
    _, page, drawn = concluded(queries=2, top=3, bottom=2)
    assert len(drawn) == 2
    assert (page.count("<h3>Nearest"), page.count("<h3>Farthest")) == (2, 2)


@pytest.mark.parametrize(("top", "bottom", "sides"), [(0, 2, (0, 2)), (2, 0, (2, 0)), (0, 0, (0, 0))])
def test_conclude_leaves_out_a_side_of_no_images(concluded, top, bottom, sides):
    _, page, drawn = concluded(queries=2, top=top, bottom=bottom)
    assert len(drawn) == 2
    assert (page.count("<h3>Nearest"), page.count("<h3>Farthest")) == sides


def test_conclude_without_queries_shows_no_examples(concluded):
    metrics, page, drawn = concluded(queries=0)
    assert drawn == []
    assert "<h3>Nearest" not in page
    assert 0 <= metrics["val"]["precision_at_3"] <= 1


def test_conclude_takes_queries_of_classes_with_val_images_only(concluded, blobs):
    val = blobs.subset(torch.nonzero((blobs.labels == 1) | (blobs.labels == 3)).flatten())
    _, page, drawn = concluded(val, queries=4, top=1, bottom=1)
    assert len(drawn) == 2
    queries = {name for name in blobs.class_names if f"query: {name}" in page}
    assert queries == {"colour 1", "colour 3"}
