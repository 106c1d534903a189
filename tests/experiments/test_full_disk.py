"""A disk that is full, or may not be written to: one line, nothing half-written, and the run goes on afterwards.

The system itself refuses: by the limit on a file's size, through /dev/full, or on a small disk of its own.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dr_plugin.atomic import WriteError
from dr_plugin.cli import run as command
from dr_plugin.datasets import PackedImages
from dr_plugin.experiments import checkpoint, conclude, journal
from dr_plugin.experiments import run as run_module
from dr_plugin.experiments.journal import Journal, read_journal
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.run import run_experiment
from dr_plugin.experiments.sweep import run_sweep

from .fault_cases import assert_same_run, largest_file, write_recipe

RECORD = {"event": "train", "stage": "softmax", "step": 1, "loss": 0.5}


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, make_tiny_imagenet):
    return write_recipe(tmp_path_factory.mktemp("data"), make_tiny_imagenet)


@pytest.fixture(scope="module")
def whole(recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_experiment(load_recipe(recipe_file), folder, device="cpu")
    return folder


def test_record_is_written_whole_or_not_at_all(tmp_path):
    own = Journal(tmp_path)
    own.write(RECORD)
    size = own.size()
    with (
        largest_file(size + 20),
        pytest.raises(WriteError, match=r"metrics\.jsonl: cannot be written \(file too large"),
    ):
        own.write({**RECORD, "step": 2})
    assert own.size() == size
    own.write({**RECORD, "step": 3})
    own.close()
    assert [record["step"] for record in read_journal(tmp_path)] == [1, 3]


def test_half_a_record_that_a_kill_left_is_cut_off(tmp_path):
    for size, steps in ((None, [1, 3]), (0, [3])):
        own = Journal(tmp_path)
        own.write(RECORD)
        kept = own.size() if size is None else size
        own.close()
        with open(tmp_path / "metrics.jsonl", "ab") as file:
            file.write(b'{"event": "tra')
        own = Journal(tmp_path, size=kept)
        assert own.missing == 0
        own.write({**RECORD, "step": 3})
        own.close()
        assert [record["step"] for record in read_journal(tmp_path)] == steps


def test_journal_that_lost_its_end_keeps_its_whole_lines(tmp_path):
    own = Journal(tmp_path)
    own.write(RECORD)
    size = own.size()
    own.write({**RECORD, "step": 2})
    wanted = own.size()
    own.close()
    os.truncate(tmp_path / "metrics.jsonl", size + 5)
    own = Journal(tmp_path, size=wanted)
    assert own.missing == wanted - size
    own.write({**RECORD, "step": 3})
    own.close()
    assert [record["step"] for record in read_journal(tmp_path)] == [1, 3]


def test_pack_that_does_not_fit_leaves_the_older_one(tmp_path):
    def noise(count):
        return [(np.full((6, 6, 3), index, np.uint8), 0) for index in range(count)]

    PackedImages.build(noise(4), tmp_path)
    with largest_file(3000), pytest.raises(WriteError, match=r"images-\w+\.npy: cannot be written"):
        PackedImages.build(noise(40), tmp_path)
    assert len(PackedImages(tmp_path)) == 4
    assert not list(tmp_path.glob("*.partial"))
    assert len(PackedImages.build(noise(40), tmp_path)) == 40


def full(patched, module, name, matching=""):
    """From the first call of this function on whose arguments match, no file may grow beyond 100 bytes."""
    call = getattr(module, name)

    def limited(*arguments, **settings):
        if not re.search(matching, str(arguments)):
            return call(*arguments, **settings)
        with largest_file(100):
            return call(*arguments, **settings)

    patched.setattr(module, name, limited)


@pytest.mark.parametrize(
    ("module", "name", "matching", "file"),
    [
        (run_module, "load_data", "", r"images-\w+\.npy"),
        (run_module, "write_text", "recipe.yaml", r"recipe\.yaml"),
        (run_module, "write_json", "environment.json", r"environment\.json"),
        (checkpoint, "save", r"last\.pt", r"last\.pt"),
        (checkpoint, "save", r"best\.pt", r"best\.pt"),
        (journal.Journal, "write", "evaluate", r"metrics\.jsonl"),
        (conclude, "write_json", r"metrics\.json", r"metrics\.json"),
        (conclude, "write_report", "", r"report\.html|curves.*\.png|\.report\.new/.*"),
    ],
)
def test_full_disk_ends_a_run_in_one_line_and_it_goes_on(
    recipe_file, whole, tmp_path, monkeypatch, module, name, matching, file
):
    folder = tmp_path / "run"
    cache = [] if name != "load_data" else ["--set", f"data.cache={tmp_path / 'cache'}"]
    with monkeypatch.context() as patched:
        full(patched, module, name, matching)
        arguments = [str(recipe_file), "--output", str(folder), "--device", "cpu", *cache]
        result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert re.search(
        rf"({file}): cannot be written \(file too large\); raise the limit on the size of files", line
    )
    begun = (folder / "recipe.yaml").exists()
    assert line.endswith(f"; go on with: dr-run --resume {folder}") == begun
    assert not list(tmp_path.rglob("*.partial"))
    assert not (folder / "report").exists()
    run_experiment(load_recipe(recipe_file), folder, device="cpu", resume=begun)
    assert_same_run(whole, folder)


def test_full_disk_ends_a_sweep(recipe_file, tmp_path, monkeypatch):
    """The other runs would not fit either: none of them is begun, and none is called failed."""
    grid = "sweep={seeds: [0], grid: {stages.ranking.loss.gap: [0.1, 0.2]}}"
    recipe, folder = load_recipe(recipe_file, ["limits.steps=1", grid]), tmp_path / "sweep"
    with monkeypatch.context() as patched:
        full(patched, checkpoint, "save")
        with pytest.raises(WriteError, match=r"last\.pt: cannot be written"):
            run_sweep(recipe, folder, device="cpu")
    assert [path.name for path in (folder / "runs").iterdir()] == ["gap=0.1-seed0"]
    assert not list(folder.rglob("failure.txt"))
    assert len(run_sweep(recipe, folder, device="cpu", resume=True).metrics["points"]) == 2


SMALL_DISK = """
import os, sys
from pathlib import Path
from dr_plugin.atomic import WriteError
from dr_plugin.experiments.recipe import load_recipe
from dr_plugin.experiments.run import run_experiment

recipe, disk, whole = load_recipe(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
(disk / "ballast").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 60_000))
try:
    run_experiment(recipe, disk / "run", device="cpu")
except WriteError as error:
    print(error)
print(sorted(str(path) for path in disk.rglob("*.partial")))
(disk / "ballast").unlink()
run_experiment(recipe, disk / "run", device="cpu", resume=True)
import shutil
shutil.copytree(disk / "run", whole)  # the disk goes with this process
"""


def test_disk_of_its_own_that_is_full(recipe_file, whole, tmp_path):
    """A file system of its own, whose kernel says ENOSPC, in a mount namespace of the process's own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=16m tmpfs "$0"'
    unshare = shutil.which("unshare") or "unshare"
    try:
        subprocess.run([unshare, "--mount", "sh", "-c", mount, disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"mounting is not allowed here: {error}")
    command = [sys.executable, "-c", SMALL_DISK, recipe_file, disk, tmp_path / "run"]
    process = subprocess.run(
        [unshare, "--mount", "sh", "-c", f'{mount} && exec "$@"', disk, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert process.returncode == 0, process.stderr
    error, left = process.stdout.splitlines()
    assert re.search(r": cannot be written \(no space left on device\); free some space, and go on", error)
    assert left == "[]"
    assert_same_run(whole, tmp_path / "run")


def test_read_only_cache_is_one_line():
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        cache = Path(name)
        cache.chmod(0o555)
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(
                WriteError,
                match=r"pack/\.lock: cannot be written \(permission denied\); choose another folder",
            ):
                PackedImages.build([(np.zeros((4, 4, 3), np.uint8), 0)], cache / "pack")
        finally:
            if root:
                os.seteuid(0)
            cache.chmod(0o755)
        assert not list(cache.iterdir())


def test_read_only_output_is_one_line(recipe_file):
    """As a user without root's rights."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        recipe = load_recipe(recipe_file, ["limits.steps=1"])
        if root:
            os.seteuid(65534)
        try:
            with pytest.raises(
                WriteError, match=r"run/\.lock: cannot be written \(permission denied\); choose another"
            ):
                run_experiment(recipe, folder / "run", device="cpu")
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
        assert not list(folder.iterdir())
