"""The end of a run: which images the report shows, and what it does where there are none."""

import json
from types import SimpleNamespace

import pytest
import torch

from dr_plugin.experiments import conclude as conclude_module
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


def test_classes_figures_are_their_queries_and_what_they_are_taken_for():
    queries = torch.tensor([0, 0, 2, 2])
    neighbors = torch.tensor([[0, 1], [0, 0], [2, 1], [1, 1]])
    precision, confusion = conclude_module._by_class(queries, neighbors, 3)
    assert precision[[0, 2]].tolist() == [0.75, 0.25]
    assert precision[1].isnan()
    assert confusion[[0, 2]].tolist() == [[0.75, 0.25, 0.0], [0.0, 0.75, 0.25]]


def test_very_many_classes_are_not_paired(concluded, monkeypatch):
    """A matrix of 11,316 classes, those of Stanford Online Products, would take a gigabyte."""
    monkeypatch.setattr(conclude_module, "_MOST_CONFUSED", 3)
    metrics, page, _ = concluded(queries=1)
    assert "Precision of every class" in page
    assert 0 <= metrics["val"]["precision_at_3"] <= 1
    _, confusion = conclude_module._by_class(torch.arange(4), torch.arange(4)[:, None], 4)
    assert confusion.numel() == 0


@pytest.mark.parametrize(("gallery", "notes"), [("val", 1), ("train", 0)])
def test_classes_of_one_image_are_told_where_val_is_its_own_gallery(blobs, gallery, notes):
    val = blobs.subset([0, 1, 12, 24, 25])  # one image of the second class
    heard = []
    recipe = SimpleNamespace(evaluation=SimpleNamespace(gallery=gallery))
    reporter = SimpleNamespace(note=heard.append)
    context = SimpleNamespace(data=SimpleNamespace(val=val), recipe=recipe, reporter=reporter)
    conclude_module._note_lone_images(context)
    assert [text.split(":")[0] for text in heard] == ["1 val images are the only ones of their class"] * notes
