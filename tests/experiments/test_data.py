"""The images of a run, and what a recipe may not ask of them."""

import pytest
import torch

from dr_plugin.datasets import PackedImages
from dr_plugin.experiments import data as data_module
from dr_plugin.experiments.cache import packed_folder
from dr_plugin.experiments.data import RunData, check_data, load_data
from dr_plugin.experiments.recipe import Recipe, RecipeError

SAMPLER = {"type": "MPerClassSampler", "m": 2}


def recipe_with(stages=({},), evaluation=None, **data):
    """A recipe of ranking stages of batches of 8; ``stages`` are changes of each."""
    stage = {
        "kind": "ranking",
        "epochs": 1,
        "batch_size": 8,
        "loss": {"type": "DeepRankingLoss"},
        "optimizer": {"type": "SGD", "lr": 0.1},
    }
    return Recipe.model_validate(
        {
            "name": "small",
            "data": {"dataset": {"type": "Digits"}, "image_size": 8, **data},
            "trunk": {"type": "DeepRankingTrunk", "convnet": {"type": "SmallConvNet"}, "embedding_size": 6},
            "stages": [{"name": f"s{i}", **stage, **changes} for i, changes in enumerate(stages)],
            "evaluation": {"k": 3, **(evaluation or {})},
        }
    )


@pytest.fixture
def small(blobs):
    """48 images of 8 x 8, of 4 classes; 2 a class are set apart, 40 left to fit."""
    selection = torch.arange(48).view(4, 12)[:, :2].flatten()
    fit = torch.arange(48).view(4, 12)[:, 2:].flatten()
    return RunData(blobs, blobs, fit, selection, blobs.class_names)


def faults(recipe, data):
    with pytest.raises(RecipeError) as caught:
        check_data(recipe, data)
    return caught.value.lines


# Neighbours


@pytest.mark.parametrize(
    ("train", "every", "most", "what"),
    [
        (True, 1, 40, "the training images without the selection"),
        (True, 0, 47, "the training images without the query"),
        (False, 0, 48, "the training images"),
    ],
)
def test_check_data_k_larger_than_the_smallest_gallery(small, train, every, most, what):
    stages = [{"evaluate_every": 0}, {"evaluate_every": every}]
    check_data(recipe_with(stages, {"k": most, "recall_at": [1, most], "train": train}), small)
    recipe = recipe_with(stages, {"k": most + 1, "recall_at": [1, most + 2], "train": train})
    assert faults(recipe, small) == [
        f"evaluation.k: got {most + 1}, expected at most {most}, {what}",
        f"evaluation.recall_at: got {most + 2}, expected at most {most}, {what}",
    ]


# Baselines


def test_check_data_hog_needs_a_block_of_pixels(small):
    recipe = recipe_with(evaluation={"baselines": ["untrained", "pixels", "hog"]})
    assert faults(recipe, small) == [
        "evaluation.baselines: got hog, expected stored images of at least 16 x 16 pixels, not 8 x 8"
    ]
    check_data(recipe_with(evaluation={"baselines": ["untrained", "pixels"]}), small)


def test_check_data_pixels_need_train_and_val_of_one_size(small, other_size):
    data = RunData(small.train, other_size, small.fit, small.selection, small.class_names)
    check_data(recipe_with(evaluation={"baselines": ["untrained"]}), data)
    assert faults(recipe_with(evaluation={"baselines": ["pixels"]}), data) == [
        "evaluation.baselines: got pixels, expected train and val images of one size, not 8 x 8 and 16 x 16; "
        "set data.packed_size"
    ]


@pytest.fixture
def other_size(small, tmp_path):
    """The same images, larger."""
    return PackedImages.build(small.train, tmp_path / "large", size=16)


def test_check_data_hog_takes_images_of_one_block(small, other_size):
    data = RunData(other_size, other_size, small.fit, small.selection, small.class_names)
    # Raises if it finds a fault.
    assert check_data(recipe_with(evaluation={"baselines": ["hog"]}), data) is None


# Batches


def test_check_data_every_stage_needs_a_whole_batch(small):
    check_data(recipe_with([{"batch_size": 40}]), small)
    assert faults(recipe_with([{}, {"batch_size": 41}, {"batch_size": 50}]), small) == [
        "stages[1].batch_size: got 41, expected at most 40, the images to train on",
        "stages[2].batch_size: got 50, expected at most 40, the images to train on",
    ]


def test_check_data_sampler_has_to_give_a_whole_batch(small):
    sampler = {"type": "RandomSampler", "replacement": True, "num_samples": 5}
    assert faults(recipe_with([{"sampler": sampler}]), small) == [
        "stages[0].batch_size: got 8, expected at most 5, what RandomSampler gives an epoch"
    ]


def test_check_data_batch_sampler_may_draw_more_than_there_is(small):
    recipe = recipe_with([{"batch_size": 60, "sampler": {"type": "UniformTripletSampler"}}])
    assert check_data(recipe, small) is None  # raises if it finds a fault


def test_check_data_tries_each_sampler_on_the_real_labels(small):
    check_data(recipe_with([{"sampler": SAMPLER}]), small)
    (line,) = faults(recipe_with([{}, {"batch_size": 10, "sampler": SAMPLER}]), small)
    assert "MPerClassSampler refuses its arguments" in line
    assert r"m * (number of unique labels) must be >= batch_size" in line


# Loading


def test_load_data_checks_what_it_loaded(tmp_path):
    recipe = recipe_with(evaluation={"k": 2000}, cache=str(tmp_path))
    with pytest.raises(RecipeError, match=r"evaluation\.k: got 2000, expected at most 1337"):
        load_data(recipe)


def test_load_data_keeps_the_classes_asked_for(tmp_path):
    data = load_data(recipe_with(cache=str(tmp_path), classes=["7", "2"], selection=3))
    assert data.class_names == ["2", "7"]
    assert data.train.labels.unique().tolist() == data.val.labels.unique().tolist() == [0, 1]
    assert torch.bincount(data.train.labels[data.selection]).tolist() == [3, 3]
    assert sorted([*data.fit.tolist(), *data.selection.tolist()]) == list(range(len(data.train)))


def test_load_data_gives_its_progress_to_the_data_set(tmp_path, monkeypatch):
    seen, build_dataset = [], data_module.build.build_dataset
    monkeypatch.setattr(
        data_module.build,
        "build_dataset",
        lambda recipe, split, progress: seen.append(progress) or build_dataset(recipe, split, progress),
    )
    tasks = []

    def progress(task, done, total):
        tasks.append(task)

    load_data(recipe_with(cache=str(tmp_path)), progress)
    assert seen == [progress, progress]
    assert "packing images" in tasks


def test_cache_folder_tells_relative_roots_of_two_places_apart(tmp_path, monkeypatch):
    def folder(root, *place):
        monkeypatch.chdir(tmp_path.joinpath(*place))
        return packed_folder(recipe_with(dataset={"type": "TinyImageNet", "root": root}), "train")

    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert folder("data", "one") == folder("./data", "one") == folder(str(tmp_path / "one" / "data"))
    assert folder("data", "one") != folder("data", "two")
