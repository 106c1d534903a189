"""What `dr export` writes: read again without us, compared with the run by hand, refused where it is wrong."""

import importlib.util
import io
import subprocess
import sys

import pytest
import torch
from torch import nn

from dr_plugin.evaluation import export
from dr_plugin.evaluation.export import export_run
from dr_plugin.experiments import checkpoint
from dr_plugin.trunks import DeepRankingTrunk, NormalizedTrunk, SmallConvNet, load_weights

from . import run_cases as cases

TRUNKS = {
    "multiscale": (),
    "multiscale, sizes that n does not divide": ("data.image_size=30",),
    "single scale": ("trunk.low_resolution=false",),
    "channels last, normalised otherwise": (
        "channels_last=true",
        "data.normalize.mean=[0.1, 0.2, 0.3]",
        "data.normalize.std=[0.5, 1.0, 2.0]",
    ),
    "ConvNetEmbedding": ("trunk={type: ConvNetEmbedding, convnet: {type: SmallConvNet, channels: [4, 8]}}",),
    "ResNet": ("trunk={type: DeepRankingTrunk, convnet: resnet18, embedding_size: 8}", "data.image_size=32"),
}


@pytest.fixture
def folder(tmp_path):
    return cases.finished(tmp_path / "run")


@pytest.mark.parametrize("settings", TRUNKS.values(), ids=TRUNKS)
def test_a_program_embeds_batches_of_any_size_as_the_run_does(tmp_path, settings):
    folder = cases.finished(tmp_path / "run", *settings)
    done = export_run(folder, tmp_path / "model.pt2")
    embed = torch.export.load(done.path).module()
    images = cases.pixels(7, 3, done.image_size, done.image_size)
    expected = cases.by_hand(folder, images)
    assert done.embedding_size == expected.shape[1]
    assert 0 <= done.difference < export.TOLERANCE
    for size in (1, 2, 7):
        found = embed(images[:size])
        assert (found.dtype, found.requires_grad) == (torch.float32, False)
        torch.testing.assert_close(found, expected[:size], atol=1e-5, rtol=1e-5)
    assert torch.pdist(expected).min() > 0.01
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt2", "run"]


def test_a_program_needs_nothing_of_ours(folder, tmp_path):
    export_run(folder, tmp_path / "model.pt2")
    code = (
        "import sys; sys.modules['dr_plugin'] = None\n"
        "import torch\n"
        "embed = torch.export.load('model.pt2').module()\n"
        "print(tuple(embed(torch.zeros(3, 3, 16, 16, dtype=torch.uint8)).shape))\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout == "(3, 32)\n"


def test_weights_are_plain_and_load_into_the_trunk(tmp_path):
    folder = cases.finished(tmp_path / "run", "channels_last=true")
    done = export_run(folder, tmp_path / "state_dict")
    assert done.path == tmp_path / "state_dict.pt"
    content = torch.load(done.path, weights_only=True)
    assert content["trunk"]["type"] == "DeepRankingTrunk"
    models, size = content["models"], content["image_size"]
    assert all(value.is_contiguous() for value in models["trunk"].values())
    assert all(
        value.data_ptr() == models["normalized_trunk"][f"trunk.{name}"].data_ptr()
        for name, value in models["trunk"].items()
    )  # they are in the file once
    images = cases.pixels(4, 3, size, size)
    expected = cases.by_hand(folder, images)
    trunk = DeepRankingTrunk(SmallConvNet((32, 64)), embedding_size=32, input_size=size).eval()
    load_weights(trunk, done.path)
    mean, std = (models["normalized_trunk"][name] for name in ("mean", "std"))
    other = DeepRankingTrunk(SmallConvNet((32, 64)), embedding_size=32, input_size=size)
    network = NormalizedTrunk(other).eval()
    network.load_state_dict(models["normalized_trunk"])
    with torch.no_grad():
        torch.testing.assert_close(trunk((images / 255 - mean) / std), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)


def test_weights_of_a_convnet_alone_are_written_too(tmp_path):
    folder = cases.finished(tmp_path / "run", *TRUNKS["ConvNetEmbedding"])
    assert export_run(folder, tmp_path / "model.pth").embedding_size == 8


def test_an_onnx_model_embeds_batches_of_any_size_as_the_run_does(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    for name, settings in TRUNKS.items():
        folder = cases.finished(tmp_path / name, *settings)
        done = export_run(folder, tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(done.path, providers=["CPUExecutionProvider"])
        images = cases.pixels(7, 3, done.image_size, done.image_size)
        expected = cases.by_hand(folder, images)
        for size in (1, 2, 7):
            (found,) = session.run(None, {"images": images[:size].numpy()})
            torch.testing.assert_close(torch.from_numpy(found), expected[:size], atol=1e-4, rtol=0)


def test_missing_packages_are_named_before_the_run_is_opened(tmp_path, monkeypatch):
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if "onnx" in name else original(name, *rest)
    )
    message = r"model.onnx needs the packages onnx, onnxscript, onnxruntime, of which .*'dr-plugin\[onnx\]'"
    with pytest.raises(ImportError, match=message):
        export_run(tmp_path / "no run", tmp_path / "model.onnx")


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime") is not None, reason="nothing is missing")
def test_packages_that_are_not_installed_are_found_missing(folder, tmp_path):
    with pytest.raises(ImportError, match="onnxruntime cannot be found"):
        export_run(folder, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["model.pt2", "model.pt"])
def test_a_file_that_embeds_otherwise_is_not_written(folder, tmp_path, monkeypatch, name):
    original = NormalizedTrunk.forward
    monkeypatch.setattr(NormalizedTrunk, "forward", lambda self, images: 1.01 * original(self, images))
    (tmp_path / name).write_text("old")
    with pytest.raises(
        ValueError, match=rf"{name}: got embeddings that differ from the run's by up to .*expected at"
    ):
        export_run(folder, tmp_path / name, force=True)
    assert (tmp_path / name).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "run"]


def test_a_file_that_gives_nan_or_another_shape_is_not_written(folder, tmp_path, monkeypatch):
    for wrong, message in (
        (torch.full((8, 32), torch.nan), "by up to nan"),
        (torch.zeros(8, 3), r"\(8, 3\)"),
    ):
        kind = export._KINDS[".pt"]._replace(
            read=lambda run, path, wrong=wrong: lambda images: wrong[: len(images)]
        )
        monkeypatch.setitem(export._KINDS, ".pt", kind)
        with pytest.raises(ValueError, match=message):
            export_run(folder, tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_file_that_cannot_be_used_again_is_not_written(folder, tmp_path, monkeypatch):
    def specialised(images):
        if len(images) != 3:
            raise RuntimeError("Expected input.shape[0] to be equal to 3")
        return torch.zeros(3, 32)

    kind = export._KINDS[".pt"]._replace(read=lambda run, path: specialised)
    monkeypatch.setitem(export._KINDS, ".pt", kind)
    with pytest.raises(ValueError, match=r"model.pt: cannot be used again: RuntimeError: Expected input"):
        export_run(folder, tmp_path / "model.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_embeds_as_nan_is_refused(folder, tmp_path):
    best = folder / "checkpoint" / "best.pt"
    state = torch.load(best, weights_only=True)
    state["models"]["trunk"]["embedding.bias"][0] = torch.nan
    checkpoint.save(best, {"models": state["models"]})
    with pytest.raises(ValueError, match="got NaN or infinity in its embeddings"):
        export_run(folder, tmp_path / "model.pt2")


def test_a_file_that_exists_is_replaced_only_by_force_and_only_whole(folder, tmp_path, monkeypatch):
    file = tmp_path / "model.pt"
    file.write_text("old")
    with pytest.raises(ValueError, match=r"model.pt, which exists, expected a new file; .*--force"):
        export_run(folder, file)

    def full(run, opened):
        opened.write(b"half")
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setitem(export._KINDS, ".pt", export._KINDS[".pt"]._replace(write=full))
        with pytest.raises(OSError, match="no space left"):
            export_run(folder, file, force=True)
    assert file.read_text() == "old"
    export_run(folder, file, force=True)
    assert torch.load(io.BytesIO(file.read_bytes()), weights_only=True)["image_size"] == 16


@pytest.mark.parametrize(
    ("to", "device", "message"),
    [
        (
            "model.h5",
            "cpu",
            r"--to: got .*model.h5, expected a file that ends in .pt2, .onnx, .pt, .pth, or state_dict",
        ),
        ("model", "cpu", "expected a file that ends in"),
        ("none/model.pt2", "cpu", "expected a file in a folder that exists: there is no .*none"),
        ("folder.pt", "cpu", "a folder, expected a file"),
        ("model.pt", "cuda", "--device: got cuda for model.pt, expected none: the file is for every device"),
        ("model.pt2", "abacus", "--device: got 'abacus'"),
    ],
)
def test_places_that_no_file_can_have_are_refused(folder, tmp_path, to, device, message):
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match=message):
        export_run(folder, tmp_path / to, device=device)


def test_folders_that_are_no_finished_run_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"holds no recipe\.yaml"):
        export_run(tmp_path, tmp_path / "model.pt2")
    (folder / "metrics.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        export_run(folder, tmp_path / "model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


class Branching(nn.Module):
    """A trunk whose way depends on the pixels."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, images):
        colours = images.mean((2, 3))
        return self.linear(colours if colours.sum() > 0 else -colours)


def test_a_trunk_that_cannot_be_traced_is_named_and_its_weights_are_written(tmp_path, monkeypatch):
    module = type(sys)("branching")
    module.Branching = Branching
    monkeypatch.setitem(sys.modules, "branching", module)
    folder = cases.finished(tmp_path / "run", "trunk={type: branching.Branching}")
    with pytest.raises(
        ValueError, match=r"the trunk Branching cannot be exported: .*; a \.pt file needs no tracing"
    ):
        export_run(folder, tmp_path / "model.pt2")
    assert not (tmp_path / "model.pt2").exists()
    assert export_run(folder, tmp_path / "model.pt").embedding_size == 4


def test_the_precision_of_the_run_is_told(tmp_path):
    folder = cases.finished(tmp_path / "run", "precision=bfloat16")
    done = export_run(folder, tmp_path / "model.pt")
    assert done.notes == ["the run was trained and judged in bfloat16, the file computes in float32"]
    assert done.difference < export.TOLERANCE


def test_the_check_sees_images_that_differ():
    images = export.probe_images(16)
    assert images.shape == (8, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert torch.equal(images, export.probe_images(16))
    means = images.float().mean((2, 3))
    assert torch.pdist(means).min() > 5
    assert export.probe_images(1).shape == (8, 3, 1, 1)
    assert sum(export.BATCHES) == len(images)
