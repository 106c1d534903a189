"""Files whole or not there: what a failed write leaves, what it says, and what an older file is kept as."""

import errno
import os
import re
import stat
import tempfile
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from dr_plugin import atomic
from dr_plugin.atomic import (
    WriteError,
    give_name,
    locked,
    replacing,
    settle,
    telling,
    write_json,
    write_text,
)

NOBODY = 65534


def full_disk(path):
    """Let the temporary sibling of ``path`` lie on a disk that is full: the kernel's own /dev/full."""
    path.with_name(path.name + ".partial").symlink_to("/dev/full")


def test_full_disk_is_one_line_and_leaves_what_was_there(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"x": 1})
    full_disk(path)
    with pytest.raises(WriteError) as caught:
        write_text(path, "y" * 100_000)
    assert str(caught.value) == (
        f"{path}: cannot be written (no space left on device); free some space, and go on: what was written before is "
        "as it was"
    )
    assert caught.value.errno == errno.ENOSPC
    assert path.read_text() == '{\n  "x": 1\n}\n'
    assert os.listdir(tmp_path) == ["metrics.json"]


@contextmanager
def powerless():
    """Without root's rights, for which nothing is read-only."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_read_only_folder_is_one_line():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        try:
            for path in (folder / "metrics.json", folder / "new" / "metrics.json"):
                with (
                    powerless(),
                    pytest.raises(
                        WriteError, match=rf"^{re.escape(str(path))}: cannot be written \(permission denied\)"
                    ),
                ):
                    write_text(path, "x")
            assert not list(folder.iterdir())
        finally:
            folder.chmod(0o755)


def test_errors_of_other_files_keep_their_own_words(tmp_path):
    with (
        pytest.raises(FileNotFoundError, match=r"No such file.*source\.png"),
        replacing(tmp_path / "a") as file,
    ):
        file.write((tmp_path / "source.png").read_bytes())
    with pytest.raises(OSError, match=r"^no picture$"), telling(tmp_path / "a"):
        raise OSError("no picture")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("links", [True, False])
def test_file_before_is_kept_and_the_file_is_never_missing(tmp_path, monkeypatch, links):
    path, kept = tmp_path / "last.pt", tmp_path / "previous.pt"
    seen = []

    def watch(name):
        call = getattr(os, name)

        def watched(*arguments):
            seen.append((name, path.read_text()))
            if name == "link" and not links:
                raise OSError(errno.EPERM, "no links here")
            return call(*arguments)

        monkeypatch.setattr(atomic.os, name, watched)

    write_text(path, "1")
    for name in ("link", "replace", "fsync"):
        watch(name)
    for content in "23":
        with replacing(path, keep=kept) as file:
            file.write(content.encode())
        assert (path.read_text(), kept.read_text()) == (content, str(int(content) - 1))
    assert {name for name, _ in seen} == {"link", "replace", "fsync"}
    assert {content for name, content in seen if name != "fsync"} == {"1", "2"}
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


@pytest.mark.skipif(os.name == "nt", reason="cannot open a folder")
def test_folder_is_flushed_after_the_file_and_its_rename(tmp_path, monkeypatch):
    """So that a loss of power takes neither the content nor the name."""
    seen, path = [], tmp_path / "last.pt"
    replace, fsync = os.replace, os.fsync

    def flushed(descriptor):
        seen.append("flush a folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "flush a file")
        fsync(descriptor)

    def renamed(source, target):
        seen.append(f"rename to {Path(target).name}")
        replace(source, target)

    write_text(path, "1")
    monkeypatch.setattr(atomic.os, "fsync", flushed)
    monkeypatch.setattr(atomic.os, "replace", renamed)
    with replacing(path, keep=tmp_path / "previous.pt") as file:
        file.write(b"2")
    assert seen == [
        "flush a file",
        "rename to previous.pt",
        "flush a folder",
        "rename to last.pt",
        "flush a folder",
    ]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_file_system_that_flushes_no_folders_is_no_failure_and_a_bad_disk_is(tmp_path, monkeypatch, number):
    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, "fsync", fail)
    with nullcontext() if number == errno.EINVAL else pytest.raises(OSError, match="Input/output error"):
        settle(tmp_path)


def test_file_that_others_may_write_has_a_temporary_of_this_process(tmp_path):
    (tmp_path / "model.pt.partial").symlink_to("/dev/full")  # another's
    with replacing(tmp_path / "model.pt", shared=True) as file:
        file.write(b"1")
        assert Path(file.name).name == f"model.pt.{os.getpid()}.partial"
    assert (tmp_path / "model.pt").read_text() == "1"
    own = tmp_path / f"model.pt.{os.getpid()}.partial"
    own.mkdir()
    with pytest.raises(WriteError, match=r"model\.pt: cannot be written \(is a directory\)"):
        replacing(tmp_path / "model.pt", shared=True).__enter__()


def test_folder_that_is_filled_is_made_and_locked(tmp_path):
    folder = tmp_path / "new" / "cache"
    with locked(folder), pytest.raises(Timeout):
        FileLock(folder / ".lock").acquire(timeout=0)
    with locked(folder):
        pass


def test_folder_that_cannot_be_filled_is_one_line():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        try:
            for place in (folder, folder / "new"):
                with (
                    powerless(),
                    pytest.raises(
                        WriteError, match=r"\.lock: cannot be written \(permission denied\); choose another"
                    ),
                    locked(place),
                ):
                    pass
        finally:
            folder.chmod(0o755)


def test_folder_without_locks_is_told_of_and_filled(tmp_path, monkeypatch, caplog):
    def no_flock(*_):  # what filelock answers, but for its latest versions, which find another way
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", no_flock)
    with locked(tmp_path):
        pass
    assert "this file system has no locks; see that no other process fills it" in caplog.text


def test_every_lock_is_taken_here():
    """Elsewhere it would end in a bare error; but for a run's, which is told of and is nobody's to wait for."""
    root = Path(atomic.__file__).parent
    found = {path.name for path in root.rglob("*.py") if "filelock" in path.read_text()}
    assert found == {"atomic.py", "claim.py"}


def test_kill_between_the_two_renames_is_made_good_by_the_next_write(tmp_path):
    """Then both names are of one file, and renaming one to the other does nothing, as POSIX has it."""
    path, kept = tmp_path / "last.pt", tmp_path / "previous.pt"
    write_text(path, "1")
    give_name(path, kept)
    (tmp_path / "previous.pt.partial").write_text("left by a kill")
    with replacing(path, keep=kept) as file:
        file.write(b"2")
    assert (path.read_text(), kept.read_text()) == ("2", "1")
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]
