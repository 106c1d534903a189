"""dr export on the command line."""

import pytest
import torch
from click.testing import CliRunner

from dr_plugin.cli import main, run


def call(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """A finished run, cut short."""
    folder = tmp_path_factory.mktemp("cli")
    settings = (
        "limits.steps=2",
        "evaluation.baselines=[]",
        "report.queries=0",
        f"data.cache={folder / 'cache'}",
    )
    options = [part for setting in settings for part in ("--set", setting)]
    assert call(run, "quickstart", "--output", folder / "run", "--device", "cpu", *options).exit_code == 0
    return folder / "run"


@pytest.mark.parametrize(
    ("name", "what"),
    [("model.pt2", "a program, for torch.export.load"), ("model.pt", "the weights and the normalisation")],
)
def test_export_writes_a_file_and_says_what_it_takes(quickstart, tmp_path, name, what):
    result = call(main, "export", quickstart, "--to", tmp_path / name)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / name}: {what}" in result.output
    assert "takes uint8 images (B, 3, 16, 16), not normalised; gives (B, 32) float32" in result.output
    assert "largest difference from the run's embeddings: " in result.output
    again = call(main, "export", quickstart, "--to", tmp_path / name)
    assert again.exit_code == 1
    assert "to replace it, give --force" in again.output
    assert call(main, "export", quickstart, "--to", tmp_path / name, "--force").exit_code == 0
    if name == "model.pt2":
        embed = torch.export.load(tmp_path / name).module()
        assert embed(torch.zeros(5, 3, 16, 16, dtype=torch.uint8)).shape == (5, 32)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.h5", "expected a file that ends in .pt2, .onnx, .pt, .pth, or state_dict"),
        ("none/model.pt2", "expected a file in a folder that exists"),
        ("model.pt2", "holds no recipe.yaml, expected the folder of a run"),
    ],
)
def test_export_ends_mistakes_in_one_line(tmp_path, name, message):
    result = call(main, "export", tmp_path / "nowhere", "--to", tmp_path / name)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_export_wants_a_file(quickstart):
    result = call(main, "export", quickstart)
    assert result.exit_code == 2
    assert "Missing option '--to'" in result.output
