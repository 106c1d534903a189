import shutil
import sys

import numpy as np
import pytest
import torch
from torch import nn

from dr_plugin.evaluation.model import open_model
from dr_plugin.experiments.data import batch_augment, load_data
from dr_plugin.experiments.evaluate import Embedder
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.run import run_experiment

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's: networks and functions that are none."""
    (tmp_path / "my_models.py").write_text(
        "import torch\n"
        "mean = lambda images: images.flatten(2).mean(2)\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))\n"
        "class Net(torch.nn.Module):\n    pass\n"
        "number = 3\n"
        "flat = lambda images: images.flatten()\n"
        "fewer = lambda images: images.flatten(1)[1:]\n"
        "nan = lambda images: images.flatten(1) * float('nan')\n"
        "text = lambda images: 'embeddings'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_models", None)


def test_a_run_embeds_as_its_own_evaluation_does(run):
    model = open_model(str(run), device="cpu")
    recipe = load_recipe(run / "recipe.yaml")
    val = load_data(recipe).val
    trunk = model._network.network
    own = Embedder(batch_augment(recipe), torch.device("cpu"), "float32", 512)(trunk, val)
    torch.testing.assert_close(model.embed(val), own)
    assert (model.name, model.image_size, model.distance) == ("run", 16, "euclidean")


def test_a_run_takes_arrays_too(run):
    model = open_model(str(run), device="cpu")
    embeddings = model.embed(IMAGES)
    assert embeddings.shape == (5, 32)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(model.embed(IMAGES[1:3]), embeddings[1:3])


def test_fingerprint_follows_the_weights(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert open_model(str(copy)).fingerprint == open_model(str(run)).fingerprint
    state = torch.load(copy / "checkpoint" / "best.pt", weights_only=True)
    next(iter(state["models"]["trunk"].values())).add_(1)
    torch.save(state, copy / "checkpoint" / "best.pt")
    assert open_model(str(copy)).fingerprint != open_model(str(run)).fingerprint


def test_a_run_may_outlive_the_weights_it_began_with(run, tmp_path):
    weights = tmp_path / "begin.pt"
    shutil.copy(run / "checkpoint" / "best.pt", weights)
    settings = [
        "limits.steps=1",
        f"trunk.weights={weights}",
        f"data.cache={tmp_path / 'c'}",
        "evaluation.baselines=[]",
    ]
    run_experiment(load_recipe("quickstart", settings), tmp_path / "second", device="cpu")
    weights.unlink()
    assert open_model(str(tmp_path / "second")).embed(IMAGES).shape == (5, 32)


def test_unfinished_runs_and_other_folders_are_refused(run, tmp_path):
    with pytest.raises(ValueError, match=r"holds no recipe\.yaml, expected the folder of a run"):
        open_model(str(tmp_path))
    begun = tmp_path / "begun"
    shutil.copytree(run, begun)
    (begun / "metrics.json").unlink()
    with pytest.raises(ValueError, match=r"is not finished, .*go on with: dr-run --resume"):
        open_model(str(begun))


def test_a_checkpoint_of_another_network_is_refused(run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(run, other)
    state = torch.load(other / "checkpoint" / "best.pt", weights_only=True)
    state["models"]["trunk"].popitem()
    torch.save(state, other / "checkpoint" / "best.pt")
    with pytest.raises(ValueError, match="does not fit the run's recipe"):
        open_model(str(other))


def test_image_size_of_a_run_is_its_own(run):
    with pytest.raises(ValueError, match="the run's recipe has its own"):
        open_model(str(run), image_size=32)


def test_a_feature_gives_what_its_transformer_gives():
    from dr_plugin.relevance.features import HOG

    model = open_model("HOG", image_size=16)
    model.fit(IMAGES)
    np.testing.assert_array_equal(model.embed(IMAGES).numpy(), HOG().fit_transform(IMAGES))


def test_a_function_sees_normalised_or_plain_images(mine):
    plain = open_model("my_models:mean", image_size=16, normalize="none").embed(IMAGES)
    torch.testing.assert_close(plain, torch.from_numpy(IMAGES / 255.0).float().flatten(2).mean(2))
    normalised = open_model("my_models:mean", image_size=16).embed(IMAGES)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(normalised, (plain - mean) / std)


def test_a_module_is_evaluated_without_gradient_and_its_weights_are_its_fingerprint(mine):
    model = open_model("my_models:net", image_size=16, device="cpu")
    assert not model.embed(IMAGES).requires_grad
    before = model.fingerprint
    import my_models

    with torch.no_grad():
        my_models.net[1].weight.add_(1)
    assert open_model("my_models:net", image_size=16, device="cpu").fingerprint != before


def test_a_scalar_in_the_state_is_no_hindrance(mine):
    import my_models

    my_models.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(768))
    assert open_model("my_models:net", image_size=16, device="cpu").embed(IMAGES).shape == (5, 768)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flat", r"flat: got \(3840,\) for 5 images, expected a tensor \(5, D\)"),
        ("fewer", r"fewer: got \(4, 768\) for 5 images"),
        ("text", r"text: got a str for 5 images"),
        ("nan", r"nan: got NaN or infinity in its embeddings"),
    ],
)
def test_what_is_no_embedding_is_refused(mine, name, message):
    with pytest.raises(ValueError, match=message):
        open_model(f"my_models:{name}", image_size=16).embed(IMAGES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_models:nothing", "expected package.module:callable that can be imported"),
        ("no_such_module_here:net", "No module named"),
        ("my_models:number", "a int; expected an object that maps images"),
        ("my_models:Net", "a class; expected an object that maps images"),
        ("HOGG", "did you mean HOG"),
        ("my_models:", "got 'my_models:', expected package.module:callable"),
    ],
)
def test_unknown_models_are_one_clear_error(mine, spec, message):
    with pytest.raises(ValueError, match=message):
        open_model(spec)


def test_what_a_network_raises_is_told_with_the_images_it_was_given(mine):
    with pytest.raises(
        ValueError, match=r"net: failed on images \(5, 3, 8, 8\): RuntimeError: .*--image-size"
    ):
        open_model("my_models:net", image_size=8).embed(IMAGES)


def test_image_size_is_a_whole_number():
    with pytest.raises(ValueError, match="image_size: got 0, expected a whole number, at least 1"):
        open_model("HOG", image_size=0)


def test_normalize_is_one_of_two(mine):
    with pytest.raises(ValueError, match="normalize: got 'yes', expected 'imagenet' or 'none'"):
        open_model("my_models:net", normalize="yes")
