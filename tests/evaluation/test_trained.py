"""A run's model loaded in one line, alone and in PML's InferenceModel."""

import copy
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning.utils.inference import InferenceModel
from torch.utils.data import TensorDataset

import dr_plugin
from dr_plugin.datasets import PackedImages
from dr_plugin.evaluation.model import open_model
from dr_plugin.experiments import checkpoint, shipped
from dr_plugin.experiments.data import load_data
from dr_plugin.experiments.recipe import load_recipe

from . import run_cases as cases


@torch.no_grad()
def test_load_embeds_as_the_runs_evaluation_does(run):
    model = dr_plugin.load(run, device="cpu")
    val = load_data(load_recipe(run / "recipe.yaml")).val
    images, _ = val.batch(range(len(val)))
    assert images.shape[2:] == (8, 8)  # resized to the run's 16
    torch.testing.assert_close(model(images), open_model(str(run), device="cpu").embed(val))
    assert (model.name, model.image_size, model.embedding_size) == ("run", 16, 32)
    assert model.recipe.name == "quickstart"


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("channels_last=true", "precision=bfloat16"),
        ("data.normalize.mean=[0.1, 0.2, 0.3]", "data.normalize.std=[0.5, 1.0, 2.0]"),
    ],
)
def test_images_are_normalised_as_the_recipe_says(tmp_path, settings):
    folder = cases.finished(tmp_path / "run", *settings)
    images = cases.pixels(5, 3, 16, 16)
    embeddings = dr_plugin.load(folder, device="cpu")(images)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, cases.by_hand(folder, images), atol=1e-5, rtol=1e-5)


class Photos:
    """Smooth images of two shapes, their colours running along both sides."""

    labels = (0, 1)

    def __init__(self):
        steps = np.linspace(0, 1, 60)[:, None], np.linspace(0, 1, 40)[None]
        colours = np.stack([255 * (steps[0] ** power) * (1 - steps[1]) for power in (1, 2, 3)])
        self.images = [colours.astype(np.uint8), colours.transpose(0, 2, 1).astype(np.uint8)]

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.from_numpy(np.ascontiguousarray(self.images[index])), self.labels[index]


@torch.no_grad()
@pytest.mark.parametrize("image_size", [24, 16])
def test_images_of_another_shape_are_cropped_as_the_run_stored_its_own(tmp_path, image_size):
    folder = cases.finished(tmp_path / "run", "data.packed_size=24", f"data.image_size={image_size}")
    model, photos = dr_plugin.load(folder, device="cpu"), Photos()
    packed = PackedImages.build(photos, tmp_path / "packed", size=24)
    expected = open_model(str(folder), device="cpu").embed(packed)
    found = torch.cat([model(photos[index][0][None]) for index in range(2)])
    stretched = torch.nn.functional.interpolate(photos[0][0][None].float(), (24, 24), mode="bilinear")
    wrong = (model(stretched.to(torch.uint8)) - expected[:1]).abs().max()
    assert wrong > 0.02
    # PIL rounds each pass to whole levels, so that a pixel may be one level off.
    assert (found - expected).abs().max() < wrong / 5


def test_inference_model_takes_it_as_a_trunk(tmp_path):
    model = dr_plugin.load(cases.finished(tmp_path / "run"), device="cpu")
    images = cases.pixels(6, 3, 16, 16)
    inference = InferenceModel(trunk=model, data_device="cpu")
    inference.train_knn(images, batch_size=4)
    distances, indices = inference.get_nearest_neighbors(images[2:5], k=2)
    assert indices[:, 0].tolist() == [2, 3, 4]
    torch.testing.assert_close(distances[:, 0], torch.zeros(3), atol=1e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(inference.get_embeddings(images), model(images))
    inference.train_knn(TensorDataset(images, torch.arange(6)), batch_size=4)
    assert inference.get_nearest_neighbors(list(images), k=1)[1].flatten().tolist() == list(range(6))
    assert inference.is_match(images[:1], images[:1], threshold=0.999)
    assert not inference.is_match(images[:1], 255 - images[:1], threshold=0.999)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (torch.zeros(2, 3, 16, 16), r"\(2, 3, 16, 16\) torch.float32"),
        (torch.zeros(3, 16, 16, dtype=torch.uint8), r"\(3, 16, 16\) torch.uint8"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"\(2, 1, 16, 16\) torch.uint8"),
        (torch.zeros(2, 16, 16, 3, dtype=torch.uint8), r"\(2, 16, 16, 3\) torch.uint8"),
    ],
)
def test_other_images_are_refused(run, images, got):
    with pytest.raises(ValueError, match=rf"images: got {got}, expected \(B, 3, H, W\) torch.uint8"):
        dr_plugin.load(run, device="cpu")(images)


def test_images_without_pixels_are_refused(run):
    with pytest.raises(ValueError, match=r"images: got shape \(2, 3, 0, 16\)"):
        dr_plugin.load(run, device="cpu")(torch.zeros(2, 3, 0, 16, dtype=torch.uint8))


def test_no_images_give_no_embeddings(run):
    model = dr_plugin.load(run, device="cpu")
    assert model(torch.zeros(0, 3, 9, 9, dtype=torch.uint8)).shape == (0, 32)


def test_it_is_a_module_like_any_other(run):
    model = dr_plugin.load(str(run), device="cpu")
    assert not any(module.training for module in model.modules())
    assert set(model.state_dict()) == {f"trunk.{name}" for name in model.trunk.state_dict()}
    images = cases.pixels(2, 3, 10, 12)
    embeddings = model(images)
    torch.testing.assert_close(embeddings, copy.deepcopy(model)(images))
    embeddings[:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert "run: image_size=16, embedding_size=32" in repr(model)


def test_loading_leaves_the_global_generators_alone(run):
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002 - the generator that PML draws from
    torch.manual_seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    random.seed(5)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    dr_plugin.load(run, device="cpu")
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


@pytest.mark.parametrize(
    ("recipe", "kind", "where"),
    [
        ("tiny_fig6_cpu", "sweep", "runs"),
        ("compare_builtin", "comparison", "runs"),
        ("table1", "table", "models"),
    ],
)
def test_folders_of_other_work_are_refused(tmp_path, recipe, kind, where):
    shutil.copy(shipped.path(recipe), tmp_path / "recipe.yaml")
    with pytest.raises(ValueError, match=rf"is a {kind}, expected one run: choose one in .*{where}"):
        dr_plugin.load(tmp_path, device="cpu")


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no recipe\.yaml, expected the folder of a run"):
        dr_plugin.load(tmp_path / "nowhere")


@pytest.mark.parametrize("missing", ["metrics.json", "checkpoint/best.pt"])
def test_a_run_that_is_not_finished_is_refused(run, tmp_path, missing):
    begun = shutil.copytree(run, tmp_path / "begun")
    (begun / missing).unlink()
    with pytest.raises(ValueError, match=r"is not finished, .*go on with: dr-run --resume"):
        dr_plugin.load(begun)


def test_damaged_and_foreign_checkpoints_are_refused(run, tmp_path):
    best = shutil.copytree(run, tmp_path / "run") / "checkpoint" / "best.pt"
    whole = best.read_bytes()
    best.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        dr_plugin.load(tmp_path / "run")
    for models in ({"trunk": {"other": torch.zeros(2)}}, {"net": {}}, [1], {"trunk": 3}):
        checkpoint.save(best, {"models": models})
        with pytest.raises(ValueError, match="does not fit the run's recipe"):
            dr_plugin.load(tmp_path / "run")


def test_code_in_a_checkpoint_does_not_run(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"format": 1, "models": Hostile()}, folder / "checkpoint" / "best.pt")
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        dr_plugin.load(folder)
    assert not (tmp_path / "ran").exists()


def test_unknown_devices_are_refused(run):
    with pytest.raises(ValueError, match="--device: got 'abacus'"):
        dr_plugin.load(run, device="abacus")
