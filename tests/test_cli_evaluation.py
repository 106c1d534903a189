"""dr evaluate, dr search and tables on the command line."""

import json

import pytest
from click.testing import CliRunner
from PIL import Image

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


def test_evaluate_prints_a_table_and_writes_json(quickstart, tmp_path):
    output = tmp_path / "figures.json"
    result = call(main, "evaluate", quickstart, "--on", "Digits", "--cache", tmp_path, "--output", output)
    assert result.exit_code == 0, result.output
    figures = json.loads(output.read_text())
    of_the_run = json.loads((quickstart / "metrics.json").read_text())["val"]
    assert figures["precision_at_30"] == pytest.approx(of_the_run["precision_at_30"], abs=2e-3)
    assert f"{figures['precision_at_30']:.4f}" in result.output
    assert "recall_at_32" in result.output


def test_evaluate_takes_a_callable_of_the_working_folder(tmp_path, monkeypatch, make_rated_triplets):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models_here.py").write_text("def mean(images):\n    return images.mean((2, 3))\n")
    root = make_rated_triplets(tmp_path / "rated")
    arguments = ("--on", root, "--image-size", 24, "--cache", tmp_path / "cache", "--k", 3)
    result = call(main, "evaluate", "models_here:mean", *arguments)
    assert result.exit_code == 0, result.output
    assert "similarity_precision" in result.output
    assert "score_at_top_3" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("HOGG", "--on", "Digits"), "did you mean HOG?"),
        (("HOG", "--on", "Digitz"), "did you mean Digits?"),
        (("HOG", "--on", "Digits", "--k", 0), "--k: got 0, expected a whole number, at least 1"),
        (("no_such_thing:net", "--on", "Digits"), "expected package.module:callable that can be imported"),
    ],
)
def test_evaluate_ends_mistakes_in_one_line(arguments, message):
    result = call(main, "evaluate", *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def test_search_prints_the_nearest_and_writes_a_picture(quickstart, tmp_path):
    gallery = tmp_path / "gallery"
    gallery.mkdir()
    for name, grey in (("dark", 10), ("grey", 120), ("light", 250)):
        Image.new("RGB", (20, 20), (grey, grey, grey)).save(gallery / f"{name}.png")
    picture = tmp_path / "found.png"
    arguments = ("--query", gallery / "grey.png", "--gallery", gallery, "-k", 2, "--output", picture)
    result = call(main, "search", quickstart, *arguments)
    assert result.exit_code == 0, result.output
    assert "the nearest of 3 images" in result.output
    assert "grey.png" in result.output
    with Image.open(picture) as shown:
        assert shown.width > 20
    missing = call(
        main, "search", quickstart, "--query", tmp_path / "none.png", "--gallery", gallery, "-k", 2
    )
    assert missing.exit_code == 1
    assert "none.png" in missing.output


def test_a_table_is_checked_run_and_printed(tmp_path, make_rated_triplets):
    root = make_rated_triplets(tmp_path / "rated")
    (tmp_path / "mine.yaml").write_text(
        f"rated:\n  dataset: {{type: SimilarityTriplets, root: {root}}}\n  image_size: 24\n"
        "learn_from:\n  dataset: {type: Digits}\n  images: 20\n  image_size: 24\n"
        f"cache: {tmp_path / 'cache'}\nk: 3\nresamples: 100\n"
        "rows:\n  - name: colours\n    feature: {type: LABHistogram}\n"
    )
    checked = call(run, tmp_path / "mine.yaml", "--check")
    assert (checked.exit_code, checked.output) == (0, "mine: the recipe is good\n")
    result = call(run, tmp_path / "mine.yaml", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "mine: similarity precision" in result.output
    assert f"report: {tmp_path / 'out' / 'table.html'}" in result.output
    again = call(run, "--resume", tmp_path / "out")
    assert again.exit_code == 0, again.output
    wrong = call(run, tmp_path / "mine.yaml", "--set", "rows.colours.feature.bims=4", "--check")
    assert wrong.exit_code == 2
    assert "did you mean bins?" in wrong.output
