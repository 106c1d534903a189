"""The journal: what a resume keeps of it."""

import errno

import pytest

from dr_plugin.atomic import WriteError
from dr_plugin.experiments import journal as journal_module
from dr_plugin.experiments.journal import Journal, read_journal

RECORD = {"event": "train", "stage": "softmax", "step": 1, "loss": 0.5}


def test_journal_is_cut_back_to_the_checkpoint(tmp_path):
    journal = Journal(tmp_path)
    journal.write(RECORD)
    size = journal.size()
    journal.write({**RECORD, "step": 2})
    journal.close()
    journal = Journal(tmp_path, size=size)
    journal.write({**RECORD, "step": 3})
    journal.close()
    assert [record["step"] for record in read_journal(tmp_path)] == [1, 3]


def test_journal_starts_new_tensorboard_files_at_each_resume(tmp_path):
    for _ in range(3):
        journal = Journal(tmp_path, tensorboard=True)
        journal.write(RECORD)
        journal.close()
    folders = sorted((tmp_path / "tensorboard").iterdir())
    assert [folder.name for folder in folders] == ["1", "2", "3"]
    assert all(len(list(folder.glob("events*"))) == 1 for folder in folders)


def test_journal_keeps_the_records_where_tensorboard_fails(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    journal.write(RECORD)
    journal.close()

    def fail(folder):
        raise ValueError("no TensorBoard")

    monkeypatch.setattr(journal_module, "_tensorboard_writer", fail)
    with pytest.raises(ValueError, match="no TensorBoard"):
        Journal(tmp_path, tensorboard=True)
    assert len(read_journal(tmp_path)) == 1


def test_full_disk_under_tensorboard_is_told_of(tmp_path, monkeypatch):
    """TensorBoard raises in the call after, what its own thread has met."""
    monkeypatch.setattr(
        "torch.utils.tensorboard.SummaryWriter.add_scalar",
        lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
    )
    journal = Journal(tmp_path, tensorboard=True)
    with pytest.raises(
        WriteError, match=r"tensorboard/1/events: cannot be written \(no space left on device\)"
    ):
        journal.write(RECORD)
    journal.close()
    assert len(read_journal(tmp_path)) == 1


def test_folder_for_tensorboard_that_cannot_be_made_is_told_of(tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(WriteError, match=r"tensorboard/1/events: cannot be written \(not a directory\)"):
        Journal(tmp_path, tensorboard=True)
