"""A damaged checkpoint is refused, whatever the damage, and the run goes on from the one before it."""

import random
import shutil
import zipfile
from contextlib import contextmanager

import pytest
import torch

from dr_plugin.atomic import WriteError
from dr_plugin.experiments import checkpoint, stage
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.run import run_experiment

from .fault_cases import assert_same_run, flip, largest_file, write_recipe

FLIPS = 900
STATE = {
    "models": {"trunk": {"w": torch.arange(24.0).reshape(2, 3, 4), "n": torch.tensor([1, 2])}},
    "best": {"epoch": 3, "value": 0.25},
    "names": ["a", None, True],
}


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(tmp_path / "last.pt", STATE)
    return tmp_path / "last.pt"


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return (
            isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
        )
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def outcome(path, content):
    """Whether such a file loads: to nothing but what was saved, or else to one line."""
    path.write_bytes(content)
    try:
        state = checkpoint.load(path)
    except ValueError as error:
        one_line = str(error).startswith(f"{path}: ") and str(error).isprintable()
        return "refused" if one_line else f"refused by {error!r}"
    assert same(state, {"format": checkpoint.FORMAT, **STATE})
    return "the same"


def test_flipped_bit_is_refused_or_changes_nothing(saved):
    """Anywhere: in the weights, the headers, the padding between them, the directory at the end."""
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        directory = archive.start_dir
        weights = next(member for member in archive.infolist() if member.filename.endswith("data/0"))
    draw = random.Random(0)
    bits = draw.sample(range(8 * len(whole)), FLIPS // 2)
    bits += draw.sample(range(8 * directory, 8 * len(whole)), FLIPS // 2)
    found = []
    for bit in bits:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        found.append(outcome(saved, content))
    assert set(found) == {"refused", "the same"}
    assert found.count("refused") > FLIPS // 3
    start = whole.index(STATE["models"]["trunk"]["w"].numpy().tobytes())
    assert weights.header_offset < start
    for bit in range(
        8 * start, 8 * (start + weights.file_size), 7
    ):  # torch itself loads these as other weights
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        assert outcome(saved, content) == "refused"


def test_truncated_file_is_refused_wherever_it_was_cut(saved):
    whole = saved.read_bytes()
    assert all(outcome(saved, whole[:length]) == "refused" for length in range(0, len(whole), 3))
    assert outcome(saved, whole[:-1]) == "refused"
    assert outcome(saved, whole) == "the same"


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="torch always does")
def test_checksums_are_written_whatever_the_process_has_set(saved):
    torch.serialization.set_crc32_options(False)
    try:
        checkpoint.save(saved, STATE)
        assert torch.serialization.get_crc32_options() is False
    finally:
        torch.serialization.set_crc32_options(True)
    assert same(checkpoint.load(saved), {"format": checkpoint.FORMAT, **STATE})


@pytest.mark.parametrize("size", [100, 1200])
def test_full_disk_keeps_both_checkpoints(saved, size):
    """torch answers to a failed write by an error of its own, which is not the one shown."""
    previous = saved.with_name("previous.pt")
    checkpoint.save(saved, {"steps": 2}, keep=previous)
    with (
        largest_file(size),
        pytest.raises(WriteError, match=r"last\.pt: cannot be written \(file too large\)"),
    ):
        checkpoint.save(saved, STATE, keep=previous)
    assert checkpoint.load(saved)["steps"] == 2
    assert same(checkpoint.load(previous), {"format": checkpoint.FORMAT, **STATE})
    assert sorted(path.name for path in saved.parent.iterdir()) == ["last.pt", "previous.pt"]


class Interrupted:
    """A file whose fourth write meets Ctrl-C."""

    def __init__(self, file):
        self.file, self.writes = file, 0

    def write(self, content):
        self.writes += 1
        if self.writes == 4:
            raise KeyboardInterrupt
        return self.file.write(content)

    def __getattr__(self, name):
        return getattr(self.file, name)


def test_interrupt_while_it_is_written_is_an_interrupt(saved, monkeypatch):
    """Which torch would turn into an error of its own, too."""
    replacing = checkpoint.replacing

    @contextmanager
    def interrupted(path, **settings):
        with replacing(path, **settings) as file:
            yield Interrupted(file)

    monkeypatch.setattr(checkpoint, "replacing", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, {"steps": 2})
    assert same(checkpoint.load(saved), {"format": checkpoint.FORMAT, **STATE})


# The run


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, make_tiny_imagenet):
    return write_recipe(tmp_path_factory.mktemp("data"), make_tiny_imagenet)


VALUES = {("softmax", 1): 0.6, ("softmax", 2): 0.5, ("ranking", 1): 0.3, ("ranking", 2): 0.7}


@pytest.fixture
def scripted(monkeypatch):
    """Selection figures such that the first stage's best is older than its end, and the next stage's best is worse."""
    rank, evaluate = stage.rank, stage.StageRun._evaluate
    now = []

    def remember(self, trainer):
        now[:] = [(self.stage.name, trainer.epochs_done)]
        return evaluate(self, trainer)

    def figure(*arguments, **settings):
        ranked = rank(*arguments, **settings)
        ranked.figures["precision_at_3"] = VALUES[now[0]]
        return ranked

    monkeypatch.setattr(stage.StageRun, "_evaluate", remember)
    monkeypatch.setattr(stage, "rank", figure)


def stopped_before(number, recipe, folder, monkeypatch):
    """Run until the checkpoint of this number would be written: as a kill there leaves the folder."""
    save, count = checkpoint.save, 0

    def stop(*arguments, **settings):
        nonlocal count
        if count == number:
            raise KeyboardInterrupt
        count += 1
        save(*arguments, **settings)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoint, "save", stop)
        run_experiment(recipe, folder, device="cpu")


def test_run_goes_on_from_the_checkpoint_before_a_damaged_one(recipe_file, tmp_path, monkeypatch, scripted):
    """After each of the nine files that the run writes: last, best, last, last (a stage's end), and so on.

    best.pt may then be one that the checkpoint before the last knows nothing of: of a later epoch, or another stage.
    """
    recipe, whole = load_recipe(recipe_file), tmp_path / "whole"
    run_experiment(recipe, whole, device="cpu")
    for number in range(3, 9):
        folder = tmp_path / str(number)
        stopped_before(number, recipe, folder, monkeypatch)
        if number == 5:  # best.pt is due, and still the other stage's
            copy = shutil.copytree(folder, tmp_path / "undamaged")
            run_experiment(recipe, copy, device="cpu", resume=True)
            assert_same_run(whole, copy)
        flip(folder / "checkpoint" / "last.pt")
        with pytest.raises(ValueError, match=r"last\.pt: not a readable.*--resume .* --previous$"):
            run_experiment(recipe, folder, device="cpu", resume=True)
        run_experiment(recipe, folder, device="cpu", resume=True, previous=True)
        assert_same_run(whole, folder)


def test_whole_checkpoint_is_not_given_up(recipe_file, tmp_path, monkeypatch):
    recipe, folder = load_recipe(recipe_file), tmp_path / "run"
    stopped_before(4, recipe, folder, monkeypatch)
    before = {path: path.read_bytes() for path in (folder / "checkpoint").iterdir()}
    with pytest.raises(RecipeError, match=r"--previous: .*last\.pt is whole, and what was trained since"):
        run_experiment(recipe, folder, device="cpu", resume=True, previous=True)
    assert {path: path.read_bytes() for path in (folder / "checkpoint").iterdir()} == before
    (folder / "checkpoint" / "last.pt").unlink()
    run_experiment(recipe, folder, device="cpu", resume=True, previous=True)


def test_way_out_can_be_pasted(recipe_file, tmp_path, monkeypatch):
    folder = tmp_path / "my run"
    stopped_before(4, load_recipe(recipe_file), folder, monkeypatch)
    flip(folder / "checkpoint" / "last.pt")
    with pytest.raises(ValueError, match=f"--resume '{folder}' --previous$"):
        run_experiment(load_recipe(recipe_file), folder, device="cpu", resume=True)


def test_best_of_another_run_is_not_taken_for_this_ones(recipe_file, tmp_path, monkeypatch, scripted):
    """Of the same stage and epoch, but of other figures."""
    recipe, folder = load_recipe(recipe_file), tmp_path / "run"
    stopped_before(3, recipe, folder, monkeypatch)
    path = folder / "checkpoint" / "best.pt"
    content = checkpoint.load(path)
    checkpoint.save(path, {**content, "best": {**content["best"], "precision_at_3": 0.9}})
    with pytest.raises(ValueError, match=r"best\.pt: missing, damaged or of another run"):
        run_experiment(recipe, folder, device="cpu", resume=True)


def test_both_checkpoints_damaged_are_told(recipe_file, tmp_path, monkeypatch):
    recipe, folder = load_recipe(recipe_file), tmp_path / "run"
    stopped_before(4, recipe, folder, monkeypatch)
    for name in ("last.pt", "previous.pt"):
        flip(folder / "checkpoint" / name)
    with pytest.raises(ValueError, match="there is no whole one before it: start anew in another folder"):
        run_experiment(recipe, folder, device="cpu", resume=True)
    with pytest.raises(ValueError, match=r"previous\.pt: not a readable checkpoint"):
        run_experiment(recipe, folder, device="cpu", resume=True, previous=True)
    # Missing is damaged: a new start would not be told from the old.
    (folder / "checkpoint" / "last.pt").unlink()
    with pytest.raises(ValueError, match=r"last\.pt: no checkpoint here"):
        run_experiment(recipe, folder, device="cpu", resume=True)


def test_best_that_is_damaged_is_refused_where_it_is_needed(recipe_file, tmp_path, monkeypatch, scripted):
    recipe, folder = load_recipe(recipe_file), tmp_path / "run"
    # The second epoch's last.pt is written, the first is the best.
    stopped_before(3, recipe, folder, monkeypatch)
    flip(folder / "checkpoint" / "best.pt")
    with pytest.raises(
        ValueError, match=r"best\.pt: missing, damaged or of another run, expected .* epoch 1"
    ):
        run_experiment(recipe, folder, device="cpu", resume=True)


def test_damaged_run_is_no_model(recipe_file, tmp_path):
    from dr_plugin.evaluation.model import open_run

    run_experiment(load_recipe(recipe_file, ["limits.steps=1"]), tmp_path / "run", device="cpu")
    flip(tmp_path / "run" / "checkpoint" / "best.pt")
    with pytest.raises(ValueError, match=r"best\.pt: not a readable checkpoint"):
        open_run(tmp_path / "run", device="cpu")
