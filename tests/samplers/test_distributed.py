"""The shares of several processes make the batches of one."""

from itertools import chain

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

from dr_plugin import distributed
from dr_plugin.samplers import DistributedBatchSampler, UniformTripletSampler

from ..processes import on_ranks

LABELS = [label for label in range(4) for _ in range(9)]


def sampler():
    return UniformTripletSampler(LABELS, batch_size=12, seed=3)


def epochs():
    shares = DistributedBatchSampler(sampler(), group=3)
    loader = DataLoader(torch.arange(len(LABELS)), batch_sampler=shares)
    found = [[batch.tolist() for batch in loader] for _ in range(2)]
    shares.set_epoch(0)
    return len(shares), found, list(shares)


@pytest.mark.parametrize("count", [2, 3])
def test_shares_make_the_batches_of_one_process(count):
    one = sampler()
    whole = [list(one), list(one)]
    answers = on_ranks(count, epochs)
    for length, found, again in answers:
        assert length == len(one) == len(found[0])
        assert again == found[0]
        assert all(len(batch) % 3 == 0 for epoch in found for batch in epoch)
    for epoch in range(2):
        joined = [
            list(chain(*parts)) for parts in zip(*(found[epoch] for _, found, _ in answers), strict=True)
        ]
        assert joined == whole[epoch]


def no_image_twice():
    plain = BatchSampler(torch.randperm(40, generator=torch.Generator().manual_seed(1)).tolist(), 10, False)
    return [image for batch in DistributedBatchSampler(plain) for image in batch]


def test_no_image_comes_twice_on_any_process():
    assert sorted(chain(*on_ranks(3, no_image_twice))) == list(range(40))


def short_end():
    shares = DistributedBatchSampler(BatchSampler(range(31), 10, False))
    return len(shares), list(shares)


def test_last_batch_too_short_for_all_is_left_out():
    for number, (length, found) in enumerate(on_ranks(2, short_end)):
        assert length == len(found) == 3
        assert found[0] == list(range(5 * number, 5 * number + 5))


def refused():
    with pytest.raises(
        ValueError, match="sampler: got a batch of 4 for 2 processes in groups of 3, expected whole"
    ):
        list(DistributedBatchSampler(BatchSampler(range(4), 4, False), group=3))
    with pytest.raises(ValueError, match="sampler: got a batch of 3 for 2 processes in groups of 3"):
        list(DistributedBatchSampler(BatchSampler(range(6), 3, False), group=3))


def test_batches_that_cannot_be_divided_are_refused():
    on_ranks(2, refused)


def test_alone_all_batches_are_whole():
    assert list(DistributedBatchSampler(sampler(), group=3)) == list(sampler())


def test_group_is_checked():
    with pytest.raises(ValueError, match="group: got 0"):
        DistributedBatchSampler(sampler(), group=0)


def seeded_by_rank():
    shares = DistributedBatchSampler(UniformTripletSampler(LABELS, batch_size=12, seed=distributed.rank()))
    with pytest.raises(ValueError, match=r"other batches on rank . than on others, expected the same on all"):
        next(iter(shares))
    return True


def test_samplers_that_draw_other_batches_are_refused():
    """Else images would come twice or never."""
    assert on_ranks(2, seeded_by_rank) == [True, True]
