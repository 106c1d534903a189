"""Files whole or not there: what a failed write leaves, what it says, and what an older file is kept as."""

import errno
import os
import re
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from dr_plugin import atomic
from dr_plugin.atomic import WriteError, give_name, replacing, telling, write_json, write_text

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
    assert {content for _, content in seen} == {"1", "2"}
    assert sorted(os.listdir(tmp_path)) == ["last.pt", "previous.pt"]


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
