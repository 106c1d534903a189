"""Training from a file of triplets by recipe, and the guard of the rated ones."""

import json

import numpy as np
import pytest
from PIL import Image

from dr_plugin.datasets import SimilarityTriplets, rated
from dr_plugin.datasets.rated import write_fingerprints
from dr_plugin.experiments import build
from dr_plugin.experiments.data import load_data
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.run import run_experiment

RECIPE = """\
data:
  dataset:
    type: SimilarityTriplets
    root: {root}
    val_fraction: 0.25
  selection: 0
  image_size: 8
  packed_size: 8
  cache: {root}/cache
trunk:
  type: DeepRankingTrunk
  convnet:
    type: SmallConvNet
    channels:
      - 8
  embedding_size: 8
stages:
  - name: ranking
    epochs: 2
    batch_size: 6
    evaluate_every: 0
    sampler:
      type: OfflineTripletSampler
    miner:
      type: EmbeddingsAlreadyPackagedAsTriplets
    loss:
      type: DeepRankingLoss
    optimizer:
      type: SGD
      lr: 0.05
evaluation:
  k: 1
  recall_at: []
  baselines: []
report:
  queries: 1
  top: 1
  bottom: 1
"""
OWN = "data.dataset={type: Digits}"


@pytest.fixture
def root(tmp_path):
    """Eight text queries of two triplets each, of other images all; recipe.yaml beside them."""
    rng = np.random.default_rng(0)
    lines = ["text_query,query,positive,negative"]
    for text in range(8):
        for number in range(4):
            pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{text}_{number}.png")
        lines += [f"t{text},{text}_0.png,{text}_1.png,{text}_{number}.png" for number in (2, 3)]
    (tmp_path / "triplets.csv").write_text("\n".join(lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(root=tmp_path))
    return tmp_path


@pytest.fixture
def all_rated(root, monkeypatch):
    """The guard knows one triplet of the training split."""
    train = SimilarityTriplets(root, "train", val_fraction=0.25)
    write_fingerprints(train.paths, train.triplets[3:4], root / "known.npz")
    monkeypatch.setattr(rated, "_FILE", root / "known.npz")
    rated._rated.cache_clear()
    yield train
    rated._rated.cache_clear()


def faults(root, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_data(load_recipe(root / "recipe.yaml", overrides))
    return caught.value.lines


def test_a_recipe_trains_from_a_users_own_triplets(root):
    result = run_experiment(load_recipe(root / "recipe.yaml"), root / "run")
    stage = json.loads((root / "run/metrics.json").read_text())["stages"][0]
    assert (stage["steps"], stage["images_seen"]) == (12, 72)  # 6 of 8 text queries, 12 triplets, twice
    assert result.report.exists()


def test_the_data_sets_triplets_are_the_samplers(root):
    recipe = load_recipe(root / "recipe.yaml")
    data = load_data(recipe)
    source = build.build_dataset(recipe, "train")
    sampler = build.build_sampler(recipe.stages[0], data.train.labels, recipe, triplets=data.triplets)
    assert sampler.triplets.tolist() == source.triplets.tolist() == data.triplets.tolist()


def test_rated_data_set_is_refused_whatever_the_stage(root, all_rated):
    (line,) = faults(root)
    assert line.startswith(f"{root}/recipe.yaml:2: data.dataset: got 1 rated evaluation triplets among 12")
    assert '"Those triplets are solely used for evaluation."' in line
    stage = "name: softmax, epochs: 1, batch_size: 4, evaluate_every: 0, optimizer: {type: SGD, lr: 0.1}"
    softmax = f"stages=[{{{stage}}}]"
    assert "solely used for evaluation" in faults(root, softmax)[0]


def test_rated_triplets_of_a_sampler_are_refused(root, all_rated):
    """The images are in class folders now, of another size and format."""
    for number, path in enumerate(all_rated.paths):
        name = root / f"folders/train/class{number % 2}/{number:03}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((60, 50)).save(name.with_suffix(".jpg"), quality=90)
        val = root / f"folders/val/class{number % 2}/{number:03}.png"
        val.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).save(val)
    order = sorted(range(len(all_rated)), key=lambda number: (number % 2, number))
    mine = [[order.index(image) for image in triplet] for triplet in all_rated.triplets.tolist()]
    (root / "mine.csv").write_text("\n".join(",".join(map(str, row)) for row in mine))
    changes = (
        f"data.dataset={{type: ClassFolders, root: {root}/folders}}",
        f"stages.ranking.sampler.triplets={root}/mine.csv",
    )
    (line,) = faults(root, *changes)
    assert (
        "stages[0].sampler.triplets: got 1 rated evaluation triplets among 12 to train on, the first" in line
    )
    assert "solely used for evaluation" in line
    (root / "mine.csv").write_text("\n".join(",".join(map(str, row)) for row in mine[:3]))
    assert load_data(load_recipe(root / "recipe.yaml", changes)).triplets is None


def test_triplets_of_digits_by_a_file(root):
    (root / "mine.csv").write_text("query,positive,negative\n1400,2,3\n4,5,1436\n")
    sampler = f"stages.ranking.sampler.triplets={root}/mine.csv"
    load_data(load_recipe(root / "recipe.yaml", [OWN, sampler]))
    (root / "mine.csv").write_text("query,positive,negative\n1400,2,1437\n")
    (line,) = faults(root, OWN, sampler)
    assert "stages[0].sampler.triplets: got [1400, 2, 1437]" in line
    assert "expected indices of images, 0 to 1436" in line


def test_other_numbering_is_refused(root):
    (root / "mine.csv").write_text("1,2,3\n4,5,6\n")
    sampler = f"stages.ranking.sampler.triplets={root}/mine.csv"
    assert faults(root, OWN, sampler, "data.selection=2", "data.classes=3") == [
        "data.selection: got 2, expected 0: the triplets of stage ranking number all images of the training split",
        "data.classes: got a choice, expected null: the triplets of stage ranking number all images of the "
        "training split",
    ]


def test_check_no_triplets_at_all(root):
    with pytest.raises(
        RecipeError, match=r"sampler.triplets: got nothing, expected a file of triplets, or data"
    ):
        load_recipe(root / "recipe.yaml", [OWN])


def test_check_miner_that_leaves_the_triplets_unread(root):
    with pytest.raises(RecipeError, match="expected EmbeddingsAlreadyPackagedAsTriplets"):
        load_recipe(
            root / "recipe.yaml", ["stages.ranking.miner={type: UniformTripletMiner, triplets_per_query: 2}"]
        )
