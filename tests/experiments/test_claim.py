"""One process a folder: who comes second is refused, and nobody has to remove what a killed one left."""

import errno
import fcntl
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from dr_plugin.atomic import WriteError
from dr_plugin.experiments import stage
from dr_plugin.experiments.claim import LOCK, claimed
from dr_plugin.experiments.compare import run_comparison
from dr_plugin.experiments.recipe import RecipeError, load_recipe
from dr_plugin.experiments.run import run_experiment

from .fault_cases import write_recipe

HOLDER = """
import os, sys, time
from pathlib import Path
from dr_plugin.experiments.claim import claimed

with claimed(Path(sys.argv[1]), resume=False):
    if sys.argv[2] == "alone":
        print(os.getpid(), flush=True)
    elif os.fork() == 0:  # the forked one tells: by then it has let go
        print(os.getppid(), flush=True)
    time.sleep(600)
"""


@pytest.fixture
def hold():
    """Start a process that holds a folder; gives it once it does."""
    started = []

    def start(folder, how="alone"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), how], stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        assert int(process.stdout.readline()) == process.pid
        return process

    yield start
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_folder_is_made_and_left_as_it_was(tmp_path):
    folder = tmp_path / "runs" / "mine"
    with claimed(folder, resume=False):
        assert (folder / LOCK).read_text() == str(os.getpid())
    assert not list(tmp_path.iterdir())
    with claimed(folder, resume=False):
        (folder / "recipe.yaml").write_text("x")
    assert os.listdir(folder) == ["recipe.yaml"]
    with claimed(folder, resume=True):
        pass
    assert os.listdir(folder) == ["recipe.yaml"]


@pytest.mark.parametrize("how", ["alone", "forks"])
def test_second_process_is_refused_until_the_first_is_killed(tmp_path, hold, how):
    """A process that the first one had forked does not hold it on."""
    process = hold(tmp_path / "run", how)
    refused = f"--output: {tmp_path / 'run'} is in use by process {process.pid}; wait until it has ended"
    with pytest.raises(RecipeError, match=re.escape(refused)), claimed(tmp_path / "run", resume=False):
        pass
    process.kill()
    process.wait()
    assert os.listdir(tmp_path / "run") == [LOCK]
    with claimed(tmp_path / "run", resume=False):  # what it left counts as nothing
        pass


def test_leftovers_of_a_start_that_was_killed_count_as_nothing(tmp_path):
    for name in (LOCK, "recipe.yaml.partial"):
        (tmp_path / name).write_text("12345678")
    with claimed(tmp_path, resume=False):
        pass
    (tmp_path / "mine.txt").touch()
    with pytest.raises(RecipeError, match="is not empty"), claimed(tmp_path, resume=False):
        pass


def test_of_many_at_once_one_holds_it(tmp_path):
    """The file is removed by each that held it, and made anew by the next, while others are opening it."""
    folder, inside, most, refused = tmp_path / "run", [], [], []

    def compete():
        for _ in range(60):
            try:
                with claimed(folder, resume=False):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except RecipeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) + len(refused) == 8 * 60
    assert set(most) == {1}
    assert all("is in use by" in text for text in refused)
    assert not list(tmp_path.rglob(LOCK))


def test_folder_that_others_remove_is_made_again(tmp_path, monkeypatch):
    """Found by mkdir, and gone when it is looked at: another process held it for a moment."""
    folder, make, tries = tmp_path / "run", os.mkdir, []

    def raced(path, *arguments, **settings):
        if str(path) != str(folder):
            return make(path, *arguments, **settings)
        tries.append(path)
        if len(tries) > 1:
            return make(path, *arguments, **settings)
        make(path)
        try:
            return make(path, *arguments, **settings)
        finally:
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", raced)
    with claimed(folder, resume=False):
        assert len(tries) == 2


def test_file_in_the_folders_place_is_told_of(tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "nowhere")
    with (
        pytest.raises(WriteError, match=r"cannot be written \(file exists\)"),
        claimed(tmp_path / "run", resume=False),
    ):
        pass


FORKS = """
import os, sys
from pathlib import Path
from dr_plugin.experiments.claim import claimed

with claimed(Path(sys.argv[1]), resume=False):
    if (child := os.fork()) == 0:
        sys.exit()  # leaves the block, as its parent will
    os.waitpid(child, 0)
    print(sorted(os.listdir(sys.argv[1])))
"""


def test_forked_process_that_ends_leaves_its_parents_lock(tmp_path):
    arguments = [sys.executable, "-c", FORKS, str(tmp_path / "run")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == f"['{LOCK}']\n"
    assert not list(tmp_path.iterdir())


def test_two_that_start_at_once_one_wins(tmp_path):
    """Real processes, told to start together."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom dr_plugin.experiments.claim import claimed\n"
        "sys.stdin.readline()\n"
        "with claimed(Path(sys.argv[1]), resume=False):\n    print('won', flush=True)\n    sys.stdin.readline()\n"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "run")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    losers = []
    while len(losers) < 2:  # the winner waits for a line
        losers += [process for process in processes if process not in losers and process.poll() is not None]
    (winner,) = [process for process in processes if process not in losers]
    assert winner.communicate("end\n", timeout=60)[0] == "won\n"
    for process in losers:
        assert f"in use by process {winner.pid};" in process.communicate()[1]


def test_lock_of_a_file_that_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    """Its holder removes the file between our opening it and our locking it: another process would make a new one."""
    flock, calls = fcntl.flock, []

    def late(descriptor, how):
        if not calls:
            (tmp_path / "run" / LOCK).unlink()
        calls.append(how)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with claimed(tmp_path / "run", resume=False):
        assert len(calls) == 2
        assert (tmp_path / "run" / LOCK).read_text() == str(os.getpid())


def test_file_system_without_locks_is_told(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", fail)
    notes = []
    with claimed(tmp_path / "run", resume=False, note=notes.append):
        (tmp_path / "run" / "recipe.yaml").touch()
    assert notes == [f"{tmp_path / 'run'}: this file system has no locks; see that no other run works there"]
    assert os.listdir(tmp_path / "run") == ["recipe.yaml"]


# Runs


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory, make_tiny_imagenet):
    return write_recipe(tmp_path_factory.mktemp("data"), make_tiny_imagenet)


def after_the_first_step(monkeypatch, action):
    after_step, done = stage.StageRun._after_step, []

    def act(self, trainer):
        after_step(self, trainer)
        if not done:
            done.append(True)
            action()

    monkeypatch.setattr(stage.StageRun, "_after_step", act)


def test_run_refuses_another_in_its_folder_and_goes_on(recipe_file, tmp_path, monkeypatch):
    recipe, folder = load_recipe(recipe_file, ["limits.steps=1"]), tmp_path / "run"
    met = []

    def meet():
        with pytest.raises(RecipeError, match=f"--resume: .* is in use by process {os.getpid()}"):
            run_experiment(recipe, folder, device="cpu", resume=True)
        met.append(True)

    after_the_first_step(monkeypatch, meet)
    run_experiment(recipe, folder, device="cpu")
    assert met
    assert not (folder / LOCK).exists()


def test_comparison_refuses_another_in_its_folder(recipe_file, tmp_path, monkeypatch):
    variants = "compare={seeds: [0], variants: {a: {}, b: {stages.ranking.loss.gap: 0.2}}}"
    recipe = load_recipe(recipe_file, ["limits.steps=1", variants])
    folder, met = tmp_path / "comparison", []

    def meet():
        with pytest.raises(RecipeError, match=f"--resume: .*comparison is in use by process {os.getpid()}"):
            run_comparison(recipe, folder, device="cpu", resume=True)
        met.append(True)

    after_the_first_step(monkeypatch, meet)
    run_comparison(recipe, folder, device="cpu")
    assert met
    assert not list(folder.rglob(LOCK))


def test_data_that_are_missing_leave_no_folder(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, ["data.dataset.root=nowhere"])
    with pytest.raises(ValueError, match="nowhere"):
        run_experiment(recipe, tmp_path / "runs" / "run", device="cpu")
    assert not list(tmp_path.iterdir())
