"""The command line: what a person types, sees, and gets as exit status."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from dr_plugin import __version__
from dr_plugin.cli import PlainReporter, TerminalReporter, main, run
from dr_plugin.experiments import shipped

SHORT = ["--set", "limits.steps=2", "--set", "evaluation.baselines=[]", "--device", "cpu"]


def call(command, *arguments):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def ran(*arguments):
    """A short quickstart; its result."""
    result = call(run, "quickstart", *arguments)
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def short(tmp_path):
    return [*SHORT, "--set", f"data.cache={tmp_path / 'cache'}"]


def test_run_writes_report_and_prints_figures(tmp_path, short):
    result = ran("--output", tmp_path / "run", *short)
    figures = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"{figures['val']['precision_at_30']:.4f}" in result.output
    assert f"report: {tmp_path / 'run' / 'report' / 'report.html'}" in result.output


def test_run_without_output_takes_the_next_free_folder(tmp_path, short, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran(*short)
    ran(*short)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["quickstart", "quickstart-2"]


def test_group_runs_the_same_command(tmp_path, short):
    assert call(main, "run", "quickstart", "--output", tmp_path / "run", *short).exit_code == 0
    assert (tmp_path / "run" / "report" / "report.html").exists()


def test_resume_of_a_finished_run_keeps_its_figures(tmp_path, short):
    ran("--output", tmp_path / "run", *short)
    before = json.loads((tmp_path / "run" / "metrics.json").read_text())
    result = call(run, "--resume", tmp_path / "run", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["val"] == before["val"]


def test_check_touches_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(run, "quickstart", "--check")
    assert (result.exit_code, result.output) == (0, "quickstart: the recipe is good\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["quickstat"], "did you mean quickstart?"),
        ([], "RECIPE: got nothing, expected a recipe's path"),
        (["quickstart", "--set", "sede=1"], "did you mean seed?"),
        (["quickstart", "--set", "seed"], "--set"),
        (
            ["quickstart", "--set", "stages.ranking.miner.triplet_per_query=1"],
            "did you mean triplets_per_query?",
        ),
        (["quickstart", "--device", "abacus"], "--device: got 'abacus', expected auto"),
        (["quickstart", "--previous"], "--previous: goes on with an earlier run; expected --resume"),
        (["--resume", "nowhere"], "--resume: nowhere holds no recipe.yaml"),
        (["--resume", "nowhere", "--set", "seed=1"], "expected no --set and no --output"),
    ],
)
def test_mistakes_end_in_one_line_and_status_2(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = call(run, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output
    assert not list(tmp_path.iterdir())


SWEEP = "sweep={seeds: [0], grid: {stages.ranking.loss.gap: [0.1, 0.4]}, x: stages.ranking.loss.gap}"


def test_sweep_runs_its_points_and_prints_its_table(tmp_path, short):
    result = ran("--output", tmp_path / "sweep", "--set", SWEEP, "--set", "report.queries=0", *short)
    table = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert "point 1/2: gap=0.1, seed 0" in result.output
    for row in table["points"]:
        mean = row["figures"]["val.precision_at_30"]["mean"]
        assert re.search(rf"{row['label']}\b.*\b{mean:.4f} \(n = 1\)", result.output)
    assert f"report: {tmp_path / 'sweep' / 'sweep.html'}" in result.output
    shutil.rmtree(tmp_path / "sweep" / "runs" / "gap=0.4-seed0")
    again = call(run, "--resume", tmp_path / "sweep", "--device", "cpu")
    assert again.exit_code == 0, again.output
    assert "point 2/2: gap=0.4, seed 0" in again.output
    assert "point 1/2" not in again.output


def test_check_of_a_sweep_shows_the_mistakes_of_all_points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(run, "quickstart", "--set", SWEEP, "--check").output == "quickstart: the recipe is good\n"
    wrong = "sweep={seeds: [0], points: [{stages.ranking.loss.gap: -1}, {data.selction: 2}]}"
    result = call(run, "quickstart", "--set", wrong, "--check")
    assert result.exit_code == 2
    gap, selection = result.stderr.splitlines()
    assert "stages[0].loss.gap: got -1" in gap
    assert "did you mean selection?" in selection
    assert not list(tmp_path.iterdir())


def test_interrupted_sweep_says_how_to_go_on(tmp_path, short, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dr_plugin.experiments.stage.StageRun._after_step", interrupt)
    result = call(run, "quickstart", "--output", tmp_path / "sweep", "--set", SWEEP, *short)
    assert result.exit_code == 130
    assert result.stderr == f"interrupted; go on with: dr-run --resume {tmp_path / 'sweep'}\n"


def test_damaged_checkpoint_is_one_line_that_says_how_to_go_on(tmp_path, short):
    """--previous then does, to the same figures; it is for one run, not for a sweep of them."""
    folder = tmp_path / "run"
    ran("--output", folder, *short)
    before = json.loads((folder / "metrics.json").read_text())["val"]
    last, previous = (folder / "checkpoint" / name for name in ("last.pt", "previous.pt"))
    previous.write_bytes(last.read_bytes())
    last.write_bytes(last.read_bytes()[:-1])
    result = call(run, "--resume", folder, "--device", "cpu")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert f"go on from there with --resume {folder} --previous" in result.stderr
    result = call(run, "--resume", folder, "--previous", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "metrics.json").read_text())["val"] == before
    recipe = tmp_path / "sweep" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text(shipped.path("tiny_fig6_cpu").read_text())
    result = call(run, "--resume", recipe.parent, "--previous")
    assert result.exit_code == 2
    assert "is a sweep, expected one run" in result.stderr


def test_mistake_in_a_file_names_file_and_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        shipped.path("quickstart").read_text().replace("\nprecision: float32", "\nprecison: float32")
    )
    line = path.read_text().splitlines().index("precison: float32") + 1
    result = call(run, path, "--check")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"{path}:{line}: precison: got ")
    assert "did you mean precision?" in result.stderr


def test_missing_data_is_one_line_and_leaves_no_folder(tmp_path):
    result = call(
        run, "tiny_uniform_cpu", "--set", f"data.dataset.root={tmp_path}", "--output", tmp_path / "run"
    )
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "tiny-imagenet-200" in result.stderr
    assert not list(tmp_path.iterdir())


def test_interrupt_says_how_to_go_on(tmp_path, short, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dr_plugin.experiments.stage.StageRun._after_step", interrupt)
    result = call(run, "quickstart", "--output", tmp_path / "run", *short)
    assert result.exit_code == 130
    assert result.stderr == f"interrupted; go on with: dr-run --resume {tmp_path / 'run'}\n"


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_is_one_line_that_says_what_to_do(tmp_path, short, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("dr_plugin.experiments.stage.StageRun._after_step", fail)
    result = call(run, "quickstart", "--output", tmp_path / "run", *short)
    reason = str(error).partition("\n")[0] or "MemoryError"
    assert result.exit_code == 1
    assert result.stderr == (
        f"out of memory ({reason}): start anew with a smaller batch_size or evaluation.batch_size, or free memory; "
        f"go on with: dr-run --resume {tmp_path / 'run'}\n"
    )


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (["export", "--to", "model.pt2"], "dr_plugin.evaluation.export.export_run"),
        (["evaluate", "--on", "Digits"], "dr_plugin.evaluation.model.open_model"),
        (["search", "--query", "0"], "dr_plugin.evaluation.search.search_run"),
    ],
)
def test_out_of_memory_of_a_finished_runs_model_is_one_line(monkeypatch, words, place):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(place, fail)
    result = call(main, *words, "run")
    assert result.exit_code == 1
    assert result.stderr == (
        "out of memory (CUDA out of memory. Tried to allocate 2 GiB.): take --device cpu, lower evaluation.batch_size "
        "in the run's recipe.yaml, or free memory\n"
    )


def test_other_runtime_errors_keep_their_traceback(tmp_path, short, monkeypatch):
    def fail(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr("dr_plugin.experiments.stage.StageRun._after_step", fail)
    result = call(run, "quickstart", "--output", tmp_path / "run", *short)
    assert isinstance(result.exception, RuntimeError)
    assert str(result.exception) == "a bug"


def test_package_that_is_missing_is_one_line_and_status_1(tmp_path, short, monkeypatch):
    def fail(*_, **__):
        raise ImportError("faiss is not installed")

    monkeypatch.setattr("dr_plugin.experiments.run.run_experiment", fail)
    result = call(run, "quickstart", "--output", tmp_path / "run", *short)
    assert (result.exit_code, result.stderr) == (1, "faiss is not installed\n")


def test_torch_that_cannot_be_imported_is_one_line_and_status_1(monkeypatch):
    monkeypatch.setitem(sys.modules, "dr_plugin.experiments.recipe", None)
    result = call(run, "quickstart", "--check")
    assert result.exit_code == 1
    assert "dr_plugin.experiments.recipe" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_command_line_imports_no_torch_before_it_runs():
    code = "import sys, dr_plugin.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_output_in_use_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    result = call(run, "quickstart", "--output", tmp_path)
    assert result.exit_code == 2
    assert "is not empty" in result.stderr
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_resume_with_another_recipe_is_refused(tmp_path, short):
    ran("--output", tmp_path / "run", *short)
    result = call(run, "tiny_uniform_cpu", "--resume", tmp_path / "run")
    assert result.exit_code == 2
    assert "was made by another recipe" in result.stderr


def test_recipes_lists_each_with_a_summary():
    for arguments in (["recipes"], ["recipes", "list"]):
        result = call(main, *arguments)
        assert result.exit_code == 0
        names = [line.split()[0] for line in result.output.splitlines()]
        assert names == shipped.names()
        assert all(len(line.split()) > 3 for line in result.output.splitlines())


def test_recipes_show_prints_the_file():
    assert call(main, "recipes", "show", "quickstart").output == shipped.path("quickstart").read_text()
    assert "did you mean quickstart?" in call(main, "recipes", "show", "quikstart").stderr


def test_recipes_copy_does_not_overwrite(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call(main, "recipes", "copy", "quickstart").exit_code == 0
    (tmp_path / "quickstart.yaml").write_text("mine\n")
    result = call(main, "recipes", "copy", "quickstart")
    assert result.exit_code == 2
    assert (tmp_path / "quickstart.yaml").read_text() == "mine\n"


def test_version():
    assert __version__ in call(run, "--version").output


def test_plain_reporter_prints_the_end_and_not_every_step(capsys):
    reporter = PlainReporter(seconds=1000)
    for done in range(1, 101):
        reporter.update("train", done, 100, loss=0.5)
    reporter.note("a note")
    assert capsys.readouterr().out == "train 100/100 loss=0.5\na note\n"


def test_plain_reporter_gives_the_time_left(capsys, monkeypatch):
    clock = iter([0.0, 10.0])
    monkeypatch.setattr("dr_plugin.cli.reporters.time.monotonic", lambda: next(clock))
    reporter = PlainReporter(seconds=5)
    reporter.update("train", 0, 100)
    reporter.update("train", 20, 100)
    assert capsys.readouterr().out == "train 20/100  left=40s\n"


def test_terminal_reporter_starts_a_finished_task_anew():
    with TerminalReporter() as reporter:
        for _ in range(2):
            reporter.update("embed", 1, 2)
            reporter.update("embed", 2, 2, loss=0.25)
        reporter.note("[not markup]")
    assert [(task.completed, task.fields["figures"]) for task in reporter.progress.tasks] == [
        (2, "loss=0.25")
    ] * 2


def test_terminal_reporter_makes_room_for_the_bars_that_move():
    with TerminalReporter() as reporter:
        reporter.update("train", 1, 100)
        for number in range(30):
            reporter.update(f"embed {number}", 1, 1)
    shown = [task.description for task in reporter.progress.tasks]
    assert shown == ["train", *(f"embed {number}" for number in range(22, 30))]
