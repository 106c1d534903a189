"""What is in an exported file beside the model, and what is said where it cannot be written."""

import io
import zipfile
from types import SimpleNamespace

import pytest
import torch

from dr_plugin.atomic import WriteError
from dr_plugin.evaluation import export
from dr_plugin.evaluation.export import export_run
from dr_plugin.evaluation.trained import finished_run, new_trunk
from dr_plugin.experiments.recipe import load_recipe

from ..experiments.fault_cases import largest_file
from . import run_cases as cases


@pytest.fixture
def folder(tmp_path):
    return cases.finished(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "marker"),
    [("model.pt2", b"aten.conv2d"), ("model.onnx", b"Conv"), ("model.pt", b"SmallConvNet")],
)
def test_a_file_names_no_file_of_this_machine(tmp_path, name, marker):
    """Neither of our source nor of the weights that the run began with."""
    weights = tmp_path / "began.pt"
    torch.save(new_trunk(load_recipe("quickstart")).state_dict(), weights)
    folder = cases.finished(tmp_path / "run", f"trunk.weights={weights}")
    if name == "model.onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    export_run(folder, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    if zipfile.is_zipfile(tmp_path / name):
        with zipfile.ZipFile(tmp_path / name) as archive:
            content = b"".join(archive.read(name) for name in archive.namelist())
    assert marker in content
    for text in ("export.py", "normalized.py", "dr_plugin/", str(tmp_path)):
        assert text.encode() not in content


@pytest.mark.parametrize("name", ["model.pt2", "model.pt"])
def test_a_full_disk_is_told_as_one(folder, tmp_path, name):
    """torch answers to a failed write by errors of its own."""
    (tmp_path / name).write_text("old")
    with (
        largest_file(3000),
        pytest.raises(WriteError, match=rf"{name}: cannot be written \(file too large\)"),
    ):
        export_run(folder, tmp_path / name, force=True)
    assert (tmp_path / name).read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "run"]


def test_a_model_too_large_for_onnx_is_told_of(folder, tmp_path, monkeypatch):
    """protobuf's limit of 2 GB shows when the model is written as bytes."""

    class TooLarge:
        def SerializeToString(self):
            raise ValueError("Message onnx.ModelProto exceeds maximum protobuf size of 2GB")

    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=TooLarge()))
    run = finished_run(folder, device="cpu")
    with pytest.raises(
        ValueError, match=r"exceeds maximum protobuf size of 2GB; a \.pt2 or \.pt file needs no ONNX"
    ):
        export._write_onnx(run, io.BytesIO())
