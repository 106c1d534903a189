"""The batch that is read one step ahead."""

import threading

import pytest
import torch

from dr_plugin.experiments.prefetch import Prefetch

from .test_trainer import assert_same, ranking_trainer, weights

FIRST, SECOND, THIRD = torch.tensor([0]), torch.tensor([1]), torch.tensor([2])


@pytest.fixture
def reads():
    """What was read, by which thread."""
    return []


@pytest.fixture
def prefetch(reads):
    def read(indices):
        reads.append((int(indices), threading.current_thread() is threading.main_thread()))
        if int(indices) == 2:
            raise ValueError("image 2 is damaged")
        return indices * 10, indices

    return Prefetch(read)


def test_each_batch_is_read_once_and_the_following_one_beside_the_main_thread(prefetch, reads):
    assert prefetch.take(FIRST, SECOND)[0].tolist() == [0]
    assert prefetch.take(SECOND)[0].tolist() == [10]
    assert reads == [(0, True), (1, False)]


def test_other_batch_than_the_one_told_is_read_itself(prefetch, reads):
    """As after a state was loaded, or an epoch cut short."""
    prefetch.take(FIRST, SECOND)
    assert prefetch.take(torch.tensor([1]))[0].tolist() == [10]
    assert prefetch.take(SECOND)[0].tolist() == [10]
    assert reads.count((1, True)) == 2


def test_nothing_is_read_ahead_where_nothing_follows(prefetch, reads):
    prefetch.take(FIRST)
    assert reads == [(0, True)]


def test_error_comes_when_the_batch_is_taken(prefetch):
    assert prefetch.take(SECOND, THIRD)[0].tolist() == [10]
    with pytest.raises(ValueError, match="image 2 is damaged"):
        prefetch.take(THIRD)
    assert prefetch.take(FIRST)[0].tolist() == [0]


def test_training_is_the_same_with_batches_read_ahead(blobs, monkeypatch):
    threads, batch = set(), blobs.batch

    def watched(*given, **options):
        threads.add(threading.current_thread() is threading.main_thread())
        return batch(*given, **options)

    monkeypatch.setattr(blobs, "batch", watched)
    trained = []
    for reads_ahead in (False, True):
        trainer = ranking_trainer(blobs)  # seeds everything
        assert not trainer.reads_ahead  # on a CPU
        trainer.reads_ahead = reads_ahead
        trainer.train(num_epochs=3)
        trained.append(weights(trainer))
        assert threads == ({True, False} if reads_ahead else {True})
    assert_same(*trained)
