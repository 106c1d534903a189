"""A recipe's relevance: computed once, drawn from, and measured against, through whole runs on small data."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.relevance import RunRelevance, WantedOrder
from dr_plugin.experiments.run import run_experiment

RECIPE = """\
seed: 4
data:
  dataset:
    type: TinyImageNet
    root: {root}
  selection: 2
  image_size: 16
  cache: {cache}
relevance:
  type: GoldenFeatures
  weights: learned
  triplets: 500
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
    channels:
      - 8
  embedding_size: 8
stages:
  - name: ranking
    epochs: 3
    batch_size: 12
{draw}
    loss:
      type: DeepRankingLoss
    optimizer:
      type: SGD
      lr: 0.05
evaluation:
  k: 3
  baselines:
    - pixels
report:
  queries: 1
"""
PACKAGED = """\
    miner:
      type: EmbeddingsAlreadyPackagedAsTriplets
"""
DRAWS = {
    "sampler": f"""\
    sampler:
      type: ReservoirTripletSampler
{PACKAGED}""",
    "buffers": f"""\
    sampler:
      type: ReservoirTripletSampler
      capacity: 4
{PACKAGED}""",
    "miner": """\
    sampler:
      type: MPerClassSampler
      m: 4
    miner:
      type: ReservoirTripletMiner
""",
    "stream": f"""\
    stream:
      type: TripletStream
      byte_budget: 200000
      out_of_class_ratio: 0.2
{PACKAGED}""",
}


@pytest.fixture
def write(tmp_path, make_tiny_imagenet):
    """Write the recipe with one of the draws: ``write(name, *changes) -> path``."""
    make_tiny_imagenet(tmp_path / "data", classes=4, train=10, val=3)

    def written(name, old="", new=""):
        text = RECIPE.format(root=tmp_path / "data", cache=tmp_path / "cache", draw=DRAWS[name])
        file = tmp_path / f"{name}.yaml"
        file.write_text(text.replace(old, new) if old else text)
        return file

    return written


def tensors(folder):
    state = torch.load(folder / "checkpoint" / "last.pt", weights_only=True)
    return state["models"]["trunk"]


@pytest.mark.parametrize("name", DRAWS)
def test_relevance_is_drawn_from_and_measured_against(name, write, tmp_path):
    result = run_experiment(load_recipe(write(name)), tmp_path / "run", device="cpu")
    in_class = result.metrics["in_class"]
    assert set(in_class) == {"concordance", "score_at_top_3", "baselines"}
    assert 0 < in_class["concordance"] < 1
    assert set(in_class["baselines"]) == {"pixels"}
    (counted,) = (item["triplets"] for item in result.metrics["stages"])
    assert counted["accepted"] >= result.metrics["stages"][0]["steps"] * 4 * (name != "miner")
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [record["triplets"] for record in last if record["event"] == "train"][-1] == counted
    page = result.report.read_text()
    assert "Order within the class" in page
    assert "Triplets of stage" in page


@pytest.mark.parametrize("name", DRAWS)
def test_run_killed_in_an_epoch_resumes_to_the_same_bits(name, write, tmp_path, monkeypatch):
    file = write(name)
    recipe = load_recipe(file, ["checkpoint.every_steps=1"])
    whole = run_experiment(recipe, tmp_path / "whole", device="cpu")
    from dr_plugin.experiments.stage import StageRun

    save, calls = StageRun._save, []

    def save_then_die(self):
        save(self)
        calls.append(None)
        if len(calls) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(StageRun, "_save", save_then_die)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(recipe, tmp_path / "cut", device="cpu")
    monkeypatch.undo()
    resumed = run_experiment(recipe, tmp_path / "cut", device="cpu", resume=True)
    one, two = tensors(tmp_path / "whole"), tensors(tmp_path / "cut")
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert resumed.metrics["val"] == whole.metrics["val"]
    assert resumed.metrics["in_class"] == whole.metrics["in_class"]
    assert resumed.metrics["stages"][0]["triplets"] == whole.metrics["stages"][0]["triplets"]


def test_second_run_computes_no_feature_again(write, tmp_path, monkeypatch):
    from dr_plugin.relevance.features import HOG

    recipe = load_recipe(write("sampler"), ["evaluation.train=false"])
    run_experiment(recipe, tmp_path / "one", device="cpu")
    seen = []
    transform = HOG.transform
    monkeypatch.setattr(
        HOG,
        "transform",
        lambda self, images, **more: seen.append(len(images)) or transform(self, images, **more),
    )
    run_experiment(recipe, tmp_path / "two", device="cpu")
    assert max(seen) <= 4  # the val images of a class, and a few for the length of a descriptor


def test_sampler_that_needs_a_relevance_says_what_to_do(write):
    file = write(
        "sampler", "relevance:\n  type: GoldenFeatures\n  weights: learned\n  triplets: 500\n", "\n" * 4
    )
    with pytest.raises(RecipeError, match=r"sampler.*relevance.*where the recipe has the section relevance"):
        load_recipe(file)


def test_relevance_that_no_recipe_can_name_is_refused(write):
    with pytest.raises(RecipeError, match=r"relevance.type: got \"FunctionRelevance\".*GoldenFeatures"):
        load_recipe(write("sampler", "type: GoldenFeatures", "type: FunctionRelevance"))


def test_budget_too_small_for_an_image_is_found_before_training(write, tmp_path):
    recipe = load_recipe(write("stream"), ["stages.ranking.stream.byte_budget=1000"])
    with pytest.raises(RecipeError, match=r"stages\[0\].stream: byte_budget: got 1000 bytes"):
        run_experiment(recipe, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


class Brightness:
    """A user's own relevance: no base class, no fingerprint, only the methods that the documentation names."""

    def fit(self, images, labels, *, progress=None):
        self.brightness = images.batch(np.arange(len(images)))[0].double().mean((1, 2, 3)).numpy()
        self.labels_ = labels.numpy()
        return self

    def __len__(self):
        return len(self.brightness)

    def pairs(self, i, j):
        same = self.labels_[i] == self.labels_[j]
        return np.where(same, np.exp(-abs(self.brightness[i] - self.brightness[j])), 0).astype(np.float32)

    def total(self, i):
        every = np.arange(len(self))
        return np.array([self.pairs(np.full_like(every, one), every).sum() - 1.0 for one in i])


def test_relevance_of_the_users_own_by_dotted_path(write, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_relevance", SimpleNamespace(Brightness=Brightness))
    slot = "relevance:\n  type: GoldenFeatures\n  weights: learned\n  triplets: 500\n"
    file = write("sampler", slot, "relevance:\n  type: own_relevance.Brightness\n")
    result = run_experiment(load_recipe(file), tmp_path / "run", device="cpu")
    assert result.metrics["stages"][0]["triplets"]["accepted"] > 0
    assert "in_class" not in result.metrics  # it does not know new images


@pytest.mark.parametrize("name", ["sampler", "stream"])
def test_packaged_triplets_that_no_miner_would_read_are_refused(name, write):
    file = write(name, "    miner:\n      type: EmbeddingsAlreadyPackagedAsTriplets\n", "")
    with pytest.raises(RecipeError, match=r"miner: got null, expected EmbeddingsAlreadyPackagedAsTriplets"):
        load_recipe(file)


def test_typo_in_a_relevance_names_the_nearest_argument(write):
    with pytest.raises(RecipeError, match=r"relevance.wieghts: .*did you mean weights\?"):
        load_recipe(write("sampler", "weights: learned", "wieghts: learned"))


@pytest.mark.parametrize("name", ["sampler", "miner"])
def test_ratio_out_of_range_is_found_before_data_is_touched(name, write):
    part = "ReservoirTripletSampler" if name == "sampler" else "ReservoirTripletMiner"
    file = write(name, f"type: {part}\n", f"type: {part}\n      out_of_class_ratio: 1.5\n")
    with pytest.raises(RecipeError, match=r"out_of_class_ratio: got 1.5"):
        load_recipe(file)


def test_stream_beside_a_sampler_is_refused(write):
    file = write("stream", "    stream:", "    sampler:\n      type: UniformTripletSampler\n    stream:")
    with pytest.raises(RecipeError, match=r"sampler: got a slot beside stream, expected null"):
        load_recipe(file)


class Planted:
    """A relevance of new images to old ones that a test has chosen."""

    def __init__(self, table):
        self.table = np.asarray(table, dtype=np.float32)

    def cross(self, images, columns):
        return self.table[: len(images), columns]


def test_figures_of_embeddings_in_the_wanted_order_and_in_its_reverse(blobs):
    """48 images of 4 classes on a line; relevance falls with the place, and the query is the first of its class."""
    first, places = torch.tensor([0, 12, 24, 36]), torch.arange(48.0)[:, None]
    table = np.tile(100 - np.arange(48.0), (1, 1))
    near_first, near_last = (
        WantedOrder.of(RunRelevance(Planted(sign * table), None), blobs.subset(first), blobs)
        for sign in (1, -1)
    )
    right = (1.0, 66.0)  # 12 x 11 / 2 pairs a class, all right
    assert near_first.figures(places[first], places, 12) == right
    assert near_last.figures(places[first], places, 100) == (0.0, -66.0)
    assert near_first.figures(places[first], places, 1)[1] == 11.0  # the pairs with the query itself
